"""Mends that keep a history: what ended it is left out of the source."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cut, cause_of, grad_mode_switch
from gradscope.graph.facts import Edit, Operation, Run, Span
from gradscope.graph.naming import is_library, short_name
from gradscope.graph.rewriting import Edits, Text, called, node_at, texts
from gradscope.rules.mends import switches
from gradscope.rules.mends.leaves import updated_in_place

_DETACHING = ("detach", "detach_", "data")


def kept(ask: Ask, cut: Cut) -> Edits:
    """The history goes on where it was cut, and at every further place on the way; none where one of them stays."""
    found: list[Edits] = []
    further = [operation for operation in cut.further if not _goes_along(cut, operation)]
    for operation in (cut.operation, *further):
        match cause_of(cut.flow, operation):
            case "detach":
                found.append(undetached(ask, operation.span))
            case "no-grad":
                found.append(with_grad_mode(ask, cut, operation))
            case "missing-create-graph":
                found.append(with_graph(ask, operation.span))
            case "non-differentiable-op":
                found.append(resampled(ask, cut, operation))
            case _:
                found.append(())
    edits = tuple(dict.fromkeys(edit for part in found for edit in part))
    return edits if all(found) and not _overlap(edits) else ()


def _goes_along(cut: Cut, operation: Operation) -> bool:
    """Whether a further operation is a part of what the mend of the first one changes."""
    if operation.span == cut.operation.span:
        return True
    first, switch = (grad_mode_switch(cut.flow, other) for other in (cut.operation, operation))
    return cause_of(cut.flow, operation) == "no-grad" == cut.cause and first is not None and first == switch


def _overlap(edits: Edits) -> bool:
    """Whether two edits are of the same place, so that they cannot both be made."""
    places = sorted(
        (e.span.file, (e.span.line, e.span.column or 1), (e.span.end_line or e.span.line, e.span.end_column or 1))
        for e in edits
    )
    return any(a[0] == b[0] and b[1] < a[2] for a, b in itertools.pairwise(places))


# --- detach and .data ------------------------------------------------------------------------------------------------


def undetached(ask: Ask, span: Span | None) -> Edits:
    """`.detach()` or `.data` left out; a statement that would do nothing then goes as a whole."""
    found = node_at(ask, span, ast.Call, ast.Attribute)
    if found is None:
        return ()
    text, node = found
    link = node.func if isinstance(node, ast.Call) else node
    if (
        not isinstance(node, (ast.Call, ast.Attribute))
        or not isinstance(link, ast.Attribute)
        or link.attr not in _DETACHING
        or _is_meant(text, node)
    ):
        return ()
    if is_library(link.value):
        return (text.replaced(node, text.bracketed(node.args[0])),) if isinstance(node, ast.Call) and node.args else ()
    statement = text.statement(node)
    if statement is None:
        return ()
    if _does_nothing_else(text, statement, node, link.value):
        return _statement_less(ask, text, statement)
    return (*_without_links(text, node), *_asked_to_require_grad(text, statement, node))


def _is_meant(text: Text, node: ast.expr) -> bool:
    """Whether a detached value is a part of something that needs it so.

    `a + (b - a).detach()` is a straight-through estimator, and `p.data.add_(g)` or `p.data -= g` an update by hand.
    """
    parent = text.parents[node]
    if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Add):
        inner = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
        other = parent.left if parent.right is node else parent.right
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub):
            return ast.unparse(inner.right) == ast.unparse(other)
    if isinstance(node, ast.Attribute):
        changed = isinstance(parent, ast.Attribute) and parent.attr.endswith("_")
        return changed or not isinstance(node.ctx, ast.Load) or isinstance(parent, (ast.AugAssign, ast.Subscript))
    return False


def _does_nothing_else(text: Text, statement: ast.stmt, node: ast.expr, value: ast.expr) -> bool:
    """Whether a statement without this link would be `x` or `x = x`."""
    if isinstance(statement, ast.Assign) and statement.value is node and len(statement.targets) == 1:
        return text.source(statement.targets[0]) == text.source(value)
    return isinstance(statement, ast.Expr) and statement.value is node


def _statement_less(ask: Ask, text: Text, statement: ast.stmt) -> Edits:
    """A statement less; where it is all that a method does, the only call of that method goes in its place."""
    parent = text.parents[statement]
    if not isinstance(parent, ast.FunctionDef) or [n for n in parent.body if not _is_docstring(n)] != [statement]:
        return text.left_out(statement)
    calls = [
        (other, node)
        for other in ask(texts)
        for node in ast.walk(other.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and called(node.value) == parent.name
    ]
    return calls[0][0].left_out(calls[0][1]) if len(calls) == 1 else ()


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _without_links(text: Text, node: ast.Call | ast.Attribute) -> Edits:
    """A link of a chain less, and with it a `.requires_grad_()` behind it."""
    link = text.link(node)
    if link is None:
        return ()
    behind = text.parents[node]
    asked = text.parents.get(behind)
    if isinstance(behind, ast.Attribute) and behind.attr == "requires_grad_" and isinstance(asked, ast.Call):
        end = text.span(asked)
        link = Span(link.file, link.line, link.column, end.end_line, end.end_column)
    return (Edit(link, ""),)


def _asked_to_require_grad(text: Text, statement: ast.stmt, node: ast.expr) -> Edits:
    """`code.requires_grad = True` behind `code = f(x).detach()` less: a result requires grad by itself."""
    if not isinstance(statement, ast.Assign) or statement.value is not node:
        return ()
    name = text.source(statement.targets[0])
    block = text.block(statement)
    found: Edits = ()
    for other in block[block.index(statement) + 1 :]:
        if isinstance(other, (ast.Assign, ast.Expr)) and re.match(
            rf"{re.escape(name)}\.requires_grad(_\(| =)", text.source(other)
        ):
            found += text.left_out(other)
    return found


# --- grad mode -------------------------------------------------------------------------------------------------------


def with_grad_mode(ask: Ask, cut: Cut, operation: Operation) -> Edits:
    """What turned grad mode off left out, where all that ran without may keep its history."""
    span, switch = operation.span, grad_mode_switch(cut.flow, operation)
    if short_name(operation.name) == "CheckpointFunction":
        found = node_at(ask, span, ast.Call)
        return found[0].with_keyword(found[1], "use_reentrant", "False") if found is not None else ()
    if update := updated_in_place(ask, span):
        return update
    if switch is None or switch.span is None or span is None or _writes_leaves(ask, switch):
        return ()
    return switches.left_out(ask, switch.span, span, decorator="decorator" in switch.name)


def _writes_leaves(ask: Ask, switch: Operation) -> bool:
    """Whether anything that ran since a switch, up to the next one, changes a leaf in place: torch would refuse it."""
    end = min((other.id for other in ask.run.grad_mode_switches if other.id > switch.id), default=None)
    return any(
        _writes_a_leaf(ask.run, operation)
        for step in ask.run.steps
        for operation in step.operations
        if operation.id > switch.id and (end is None or operation.id < end)
    )


def _writes_a_leaf(run: Run, operation: Operation) -> bool:
    if ops.is_a(operation, ops.SETS_DATA, ops.FLAGS):
        return False
    taken = {run.holder[value] for value in operation.inputs}
    new = (run.holder[value] for value in operation.outputs if value not in operation.inputs)
    changed = (run.tensor_by_id[number] for number in new if number in taken)
    return any(tensor.leaf and tensor.requires_grad for tensor in changed)


# --- gradients of gradients ------------------------------------------------------------------------------------------


def with_graph(ask: Ask, span: Span | None) -> Edits:
    """`create_graph=True` for a call that gives gradients; it keeps the graph, so `retain_graph` is not needed.

    Gradients that `backward` leaves in `.grad` would hold their graph for good, so that call is left alone.
    """
    found = node_at(ask, span, ast.Call)
    if found is None:
        return ()
    text, call = found
    if called(call) == "backward":
        return ()
    given = {keyword.arg: keyword for keyword in call.keywords}
    if "create_graph" in given and not isinstance(given["create_graph"].value, ast.Constant):
        return ()
    retained = given.get("retain_graph")
    if retained is None or "create_graph" in given or not isinstance(retained.value, ast.Constant):
        return text.with_keyword(call, "create_graph", "True")
    return (text.replaced(retained, "create_graph=True"),)


# --- samples ---------------------------------------------------------------------------------------------------------


def resampled(ask: Ask, cut: Cut, operation: Operation) -> Edits:
    """`rsample()` for `sample()` where the distribution has it, and `mean + std * randn_like(std)` for `normal`."""
    span = operation.span
    found = node_at(ask, span, ast.Call)
    if found is None:
        return ()
    text, call = found
    if called(call) == "sample" and isinstance(call.func, ast.Attribute):
        drawn = [other for other in cut.flow.operations if other.span == span]
        if any(ops.is_a(o, ops.CHOICES) for o in drawn) or not any(ops.is_a(o, ops.DRAWS_FROM_A_SCALE) for o in drawn):
            return ()
        return (Edit(text.attribute(call.func), "rsample"),)
    if called(call) == "normal" and text.torch is not None and is_library(call.func):
        return _shifted_noise(text, call)
    return ()


def _shifted_noise(text: Text, call: ast.Call) -> Edits:
    given = dict(_arguments(call, "mean", "std"))
    if set(given) != {"mean", "std"} or len(call.args) + len(call.keywords) != 2:
        return ()
    mean, std = text.bracketed(given["mean"]), text.bracketed(given["std"])
    like = mean if isinstance(given["std"], ast.Constant) else std
    return (text.replaced(call, f"({mean} + {std} * {text.torch}.randn_like({like}))"),)


def _arguments(call: ast.Call, *names: str) -> Iterator[tuple[str, ast.expr]]:
    """The arguments of a call by their names."""
    yield from zip(names, call.args, strict=False)
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg, keyword.value
