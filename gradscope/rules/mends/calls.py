"""Mends of calls that torch refuses: a loss is reduced, a tensor gets a dtype, a backward returns its gradients."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import CustomBackward, Span
from gradscope.graph.rewriting import Edits, Text, called, node_at, text_of


def reduced(ask: Ask, span: Span | None) -> Edits:
    """`.mean()` where the loss gets its name, or before `.backward()`; what `autograd.grad` takes is summed."""
    found = node_at(ask, span, ast.Call)
    if found is None:
        return ()
    text, call = found
    if not isinstance(call.func, ast.Attribute):
        return ()
    if call.func.attr != "backward" or call.keywords or call.args:
        outputs = next((k.value for k in call.keywords if k.arg == "outputs"), next(iter(call.args), None))
        given = any(k.arg == "grad_outputs" for k in call.keywords)
        return text.appended(outputs, ".sum()") if outputs is not None and not given else ()
    loss = call.func.value
    made = _assignment(text, call, text.source(loss))
    return text.appended(made.value, ".mean()") if made is not None else text.appended(loss, ".mean()")


def _assignment(text: Text, node: ast.AST, name: str) -> ast.Assign | None:
    """The latest statement of the same block that gives a variable its value, before this one."""
    statement = text.statement(node)
    if statement is None:
        return None
    block = text.block(statement)
    for other in reversed(block[: block.index(statement)]):
        if any(
            isinstance(part, (ast.Name, ast.Attribute)) and _is_stored(text, part, name) for part in ast.walk(other)
        ):
            plain = isinstance(other, ast.Assign) and len(other.targets) == 1 and text.source(other.targets[0]) == name
            return other if plain and isinstance(other, ast.Assign) else None
    return None


def _is_stored(text: Text, node: ast.AST, name: str) -> bool:
    return isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store) and text.source(node) == name


# --- whole numbers ---------------------------------------------------------------------------------------------------


def floating(ask: Ask, span: Span | None, *, plain: bool) -> Edits:
    """A tensor of whole numbers with a floating point dtype. `plain` says that it was computed from no other tensor."""
    text = ask(text_of, span.file) if span is not None else None
    call = text.at(span, ast.Call) if text is not None and span is not None else None
    if text is None or span is None:
        return ()
    if call is None:
        statement = text.at(span, ast.Assign)
        target = statement.targets[0] if statement is not None else None
        if statement is None or not isinstance(target, ast.Attribute) or not plain:
            return ()
        return _converted(text, statement, target.value)
    name = called(call)
    if name == "Parameter" and call.args:
        return _made_floating(text, call.args[0])
    if name == "requires_grad_" and isinstance(call.func, ast.Attribute) and plain:
        if not isinstance(call.func.value, ast.Name):
            return _made_floating(text, call.func.value)
        asking = text.statement(call)
        return _converted(text, asking, call.func.value) if asking is not None else ()
    return _made_floating(text, call) if name in ops.FACTORIES else ()


def _made_floating(text: Text, node: ast.expr) -> Edits:
    """`dtype=torch.float32` for a call that makes a tensor of numbers, `.float()` behind anything else."""
    if isinstance(node, ast.Call) and text.torch is not None:
        named = any(keyword.arg == "dtype" for keyword in node.keywords)
        if named or called(node) in ops.FACTORIES:
            return text.with_keyword(node, "dtype", f"{text.torch}.float32")
    return text.appended(node, ".float()")


def _converted(text: Text, statement: ast.stmt, value: ast.expr) -> Edits:
    """A variable converted where it gets its value, or before the statement that asks it to require grad."""
    if not isinstance(value, ast.Name):
        return ()
    made = _assignment(text, statement, value.id)
    if made is not None:
        return _made_floating(text, made.value)
    return text.before(statement, f"{value.id} = {value.id}.float()")


# --- custom functions ------------------------------------------------------------------------------------------------


def returning(ask: Ask, function: CustomBackward) -> Edits:
    """A backward with as many gradients as `forward` has arguments.

    One that ends without a `return` returns those of its variables that are called for the arguments, as
    `grad_weight` is for `weight`; None stands for what needs no gradient.
    """
    text, backward = _method(ask, function, "backward")
    _, forward = _method(ask, function, "forward")
    if text is None or backward is None or forward is None:
        return ()
    expected, returns = len(function.needed), _returns(backward)
    if function.returned is None and not returns:
        values = _gradientscalled(backward, [a.arg for a in forward.args.args[1:]], function.needed)
        last = backward.body[-1]
        if values is None or len(values) != expected:
            return ()
        return text.after(last, f"return {', '.join(values)}")
    if function.returned is None or len(returns) != 1 or returns[0].value is None:
        return ()
    value = returns[0].value
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    if len(parts) < expected and not any(function.needed[len(parts) :]):
        code = ", ".join([*map(text.source, parts), *["None"] * (expected - len(parts))])
        return (text.replaced(value, code),)
    if len(parts) > expected and all(_is_none(part) for part in parts[expected:]):
        return (text.replaced(value, ", ".join(map(text.source, parts[:expected]))),)
    return ()


def times_upstream(ask: Ask, function: CustomBackward) -> Edits:
    """The only gradient that a backward returns, times the one that comes in."""
    text, backward = _method(ask, function, "backward")
    if text is None or backward is None or len(backward.args.args) != 2:
        return ()
    upstream, returns = backward.args.args[1].arg, _returns(backward)
    value = returns[0].value if len(returns) == 1 else None
    parts = [p for p in (value.elts if isinstance(value, ast.Tuple) else [value]) if p is not None and not _is_none(p)]
    if len(parts) != 1:
        return ()
    product = isinstance(parts[0], ast.BinOp) and isinstance(parts[0].op, (ast.Mult, ast.Pow))
    code = text.source(parts[0]) if product else text.bracketed(parts[0])
    return (text.replaced(parts[0], f"{upstream} * {code}"),)


def _method(ask: Ask, function: CustomBackward, name: str) -> tuple[Text | None, ast.FunctionDef | None]:
    """A method of the class of a custom Function."""
    text = ask(text_of, function.span.file) if function.span is not None else None
    for node in ast.walk(text.tree) if text is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == function.name.rpartition(".")[2]:
            found = (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == name)
            return text, next(found, None)
    return None, None


def _returns(function: ast.FunctionDef) -> list[ast.Return]:
    return [node for node in ast.walk(function) if isinstance(node, ast.Return)]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _gradientscalled(backward: ast.FunctionDef, arguments: Sequence[str], needed: Sequence[int]) -> list[str] | None:
    """For each argument of forward the variable of backward that is called for it; None where one is missing."""
    given = {argument.arg for argument in backward.args.args}
    made = [n.id for n in ast.walk(backward) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    found: list[str] = []
    for argument, wanted in zip(arguments, needed, strict=False):
        names = [name for name in dict.fromkeys(made) if name not in given and _is_called_for(name, argument)]
        if wanted and (len(names) != 1 or names[0] in found):
            return None
        found.append(names[0] if wanted else "None")
    return found


def _is_called_for(name: str, argument: str) -> bool:
    """Whether a variable is called for an argument: `grad_W` and `dW` for `W` and `W_col`."""
    told = re.fullmatch(r"(?:grad|d|g)_?(.+?)|(.+?)_?grad", name, re.IGNORECASE)
    of = (told[1] or told[2]).lower() if told is not None else ""
    return bool(of) and (argument.lower() == of or argument.lower().startswith(f"{of}_"))
