"""Mends of tensors that are carried on with their graph: what is kept is kept without it."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Backward, Span, Tensor
from gradscope.graph.rewriting import Edits, Text, called, node_at
from gradscope.graph.ties import Tie


def targets_at(ask: Ask, span: Span | None) -> list[str]:
    """The variables to which a line gives what it computes."""
    found = node_at(ask, span, ast.stmt)
    if found is None or not isinstance(found[1], ast.Assign):
        return []
    return [_name(found[0], part) for target in found[1].targets for part in (target, *_elements(target))]


def detached_where_kept(ask: Ask, span: Span | None, names: Iterable[str] = ()) -> Edits:
    """`.detach()` behind what a line keeps: what it assigns, returns, adds to a sum or puts into a container."""
    found = node_at(ask, span, ast.stmt)
    if found is None:
        return ()
    text, statement = found
    if isinstance(statement, ast.AugAssign):
        return _detached(text, statement.value) if isinstance(statement.op, (ast.Add, ast.Sub)) else ()
    if isinstance(statement, (ast.Assign, ast.Return)) and statement.value is not None:
        if isinstance(statement, ast.Assign):
            target = text.source(statement.targets[0])
            if isinstance(statement.targets[0], (ast.Tuple, ast.List)):
                return ()
            if any(isinstance(part, ast.expr) and text.source(part) == target for part in ast.walk(statement.value)):
                # What was kept before goes in without its graph; what comes out of it may be needed with its own.
                return text.before(statement, f"{target} = {target}.detach()")
        return _detached(text, statement.value)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and statement.value.args:
        return _argument_detached(text, statement.value, set(names))
    return ()


def _argument_detached(text: Text, call: ast.Call, names: set[str]) -> Edits:
    """What a call such as `append` puts away without its graph; of several things, those that have these names."""
    last = call.args[-1]
    parts = [*last.args, *(k.value for k in last.keywords)] if isinstance(last, ast.Call) else _elements(last)
    named = [part for part in parts if isinstance(part, (ast.Name, ast.Attribute)) and _name(text, part) in names]
    if named:
        return tuple(edit for part in named for edit in text.appended(part, ".detach()"))
    if isinstance(last, (ast.Tuple, ast.List, ast.Dict)) or (isinstance(last, ast.Call) and _constructs(last)):
        return ()
    return text.appended(last, ".detach()")


def _elements(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Dict):
        return node.values
    return node.elts if isinstance(node, (ast.Tuple, ast.List)) else []


def _constructs(call: ast.Call) -> bool:
    """Whether a call makes an object of a class rather than a tensor, as its capital says."""
    return called(call)[:1].isupper()


def _name(text: Text, node: ast.expr) -> str:
    return text.source(node).removeprefix("self.")


def _detached(text: Text, value: ast.expr) -> Edits:
    if isinstance(value, ast.ListComp):
        return text.appended(value.elt, ".detach()")
    if isinstance(value, (ast.List, ast.Tuple)):
        return tuple(edit for element in value.elts for edit in text.appended(element, ".detach()"))
    if isinstance(value, (ast.Dict, ast.DictComp, ast.Lambda, ast.IfExp)):
        return ()
    return text.appended(value, ".detach()")


def detached_where_named(ask: Ask, backward: Span | None, name: str) -> Edits:
    """`.detach()` behind the value of the only statement that gives a variable its value in the file of a backward."""
    found = node_at(ask, backward, ast.stmt)
    if found is None:
        return ()
    text, root = found[0], name.partition("[")[0]
    assigned = [
        node
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Assign) and any(text.source(target) == root for target in node.targets)
    ]
    return detached_where_kept(ask, text.span(assigned[0].value)) if len(assigned) == 1 else ()


def detached_as(ask: Ask, span: Span | None, name: str | None) -> Edits:
    """`.detach()` behind the value that a variable of this name gets at a line."""
    found = node_at(ask, span, ast.stmt)
    if found is None or not isinstance(found[1], ast.Assign) or _name(found[0], found[1].targets[0]) != name:
        return ()
    return detached_where_kept(ask, span)


def carried_without_graph(ask: Ask, span: Span | None, name: str | None) -> Edits:
    """What is computed from its own value of before, without the graph of that.

    `total += loss.item()` where a plain number is summed up, `.detach()` of a sum or an average, and `h = h.detach()`
    before a layer takes its state again, so that it goes on to be trained by what it gives.
    """
    found = node_at(ask, span, ast.stmt)
    if found is None:
        return ()
    text, statement = found
    if isinstance(statement, ast.AugAssign):
        if _is_a_number(text, statement):
            return text.appended(statement.value, ".item()")
        return detached_where_kept(ask, span)
    if not isinstance(statement, ast.Assign):
        return ()
    if isinstance(statement.value, ast.BinOp):
        return _detached(text, statement.value)
    root = (name or "").partition("[")[0]
    targets = {text.source(part) for target in statement.targets for part in (target, *_elements(target))}
    own = next((part for part in (root, f"self.{root}") if part in targets), None)
    if own is None or any(_is_none_at_first(node, own, text) for node in ast.walk(text.tree)):
        return ()
    several = f"tuple(part.detach() for part in {own})"
    return text.before(statement, f"{own} = {several if '[' in (name or '') else f'{own}.detach()'}")


def _is_none_at_first(node: ast.AST, name: str, text: Text) -> bool:
    """Whether a statement gives a variable None, or a number, which cannot be detached."""
    named = isinstance(node, ast.Assign) and name in map(text.source, node.targets)
    return named and isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


def without_history(ask: Ask, span: Span | None) -> Edits:
    """`@torch.no_grad()` for the function around a line, where it evaluates and calls no backward."""
    found = node_at(ask, span, ast.stmt)
    if found is None:
        return ()
    text, statement = found
    function = next(text.around(statement, ast.FunctionDef), None)
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or text.torch is None:
        return ()
    calls = {called(node) for node in ast.walk(function) if isinstance(node, ast.Call)}
    if "eval" not in calls or calls & {"backward", "grad", "step", "manual_backward"}:
        return ()
    return text.before(function, f"@{text.torch}.no_grad()")


def _is_a_number(text: Text, statement: ast.AugAssign) -> bool:
    """Whether what is added to begins as a number, and nothing asks for more than that of it."""
    target = statement.target
    if not isinstance(target, ast.Name) or not isinstance(statement.value, (ast.Name, ast.Attribute)):
        return False
    starts = [
        node.value
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == target.id for t in node.targets)
    ]
    asked = any(
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == target.id
        for node in ast.walk(text.tree)
    )
    return bool(starts) and all(isinstance(start, ast.Constant) for start in starts) and not asked


def between_windows(ask: Ask, tie: Tie, backward: Backward) -> Edits:
    """A state that one pass hands to the next without its graph: detached at the head of the loop around backward."""
    span = backward.span
    found = node_at(ask, span, ast.stmt)
    if found is None:
        return ()
    text, statement = found
    loop = next((node for node in text.around(statement, ast.For, ast.While)), None)
    if not isinstance(loop, (ast.For, ast.While)):
        return ()
    lines = dict.fromkeys(_carried_on(text, loop, name) for name in _variables(tie.carried))
    code = [line for line in lines if line is not None]
    return text.before(loop.body[0], *code) if code and len(code) == len(lines) else ()


def _variables(tensors: Iterable[Tensor]) -> list[str]:
    """The variables that hold tensors: `hidden` for `hidden[0]` and `hidden[1]`; none where one has no name."""
    names = [tensor.name or "" for tensor in tensors]
    return list(dict.fromkeys(names)) if all(names) else []


def _carried_on(text: Text, loop: ast.For | ast.While, name: str) -> str | None:
    """The line that detaches what a variable carries into the next turn of a loop; None for what is none."""
    root, bracket, _ = name.partition("[")
    assigned = {
        text.source(part)
        for node in ast.walk(loop)
        if isinstance(node, ast.Assign)
        for target in node.targets
        for part in (target, *_elements(target))
    }
    before = {
        text.source(part)
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Assign) and node.lineno < loop.lineno
        for target in node.targets
        for part in (target, *_elements(target))
    }
    if root not in assigned & before:
        return None
    return f"{root} = tuple(part.detach() for part in {root})" if bracket else f"{root} = {root}.detach()"


def detached_for_a_pass(ask: Ask, backward: Span | None, names: Iterable[str]) -> Edits:
    """Tensors that a loss is computed from, detached there: its backward is not meant to go behind them."""
    found = node_at(ask, backward, ast.Call)
    if found is None:
        return ()
    text, call = found
    statement = text.statement(call)
    if statement is None or not isinstance(call.func, ast.Attribute):
        return ()
    block, wanted = text.block(statement), {text.source(call.func.value)}
    places: list[ast.expr] = []
    # The statements that the loss is computed by, from the last one back.
    for other in reversed(block[: block.index(statement)]):
        if isinstance(other, ast.Assign) and wanted.intersection(map(text.source, other.targets)):
            parts = [part for part in ast.walk(other.value) if isinstance(part, (ast.Name, ast.Attribute))]
            wanted |= {text.source(part) for part in parts} - set(names)
            places += [part for part in parts if text.source(part) in set(names)]
    return tuple(edit for part in places for edit in text.appended(part, ".detach()"))


def retained(ask: Ask, backward: Span | None) -> Edits:
    """`retain_graph=True` for a backward."""
    found = node_at(ask, backward, ast.Call)
    return found[0].with_keyword(found[1], "retain_graph", "True") if found is not None else ()
