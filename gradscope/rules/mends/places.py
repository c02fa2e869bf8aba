"""Mends of changes in place: the result goes into a new tensor, or the change is no part of what is differentiated."""

from __future__ import annotations

import ast

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Span
from gradscope.graph.naming import is_library
from gradscope.graph.rewriting import Edits, Text, called, node_at, text_of, texts

_SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.MatMult: "@",
}
# What has no twin without the underscore: these fill with something else, or change more than values.
_WITHOUT_TWIN = ops.FILLS | ops.CHANGES_MORE


def into_a_new_tensor(ask: Ask, span: Span | None) -> Edits:
    """The result of a change in place in a new tensor: `h = h + x` for `h += x`, `relu(x)` for `relu_(x)`.

    What is written to a part of a tensor is written to a copy of the whole.
    """
    text = ask(text_of, span.file) if span is not None else None
    if text is None or span is None:
        return ()
    statement = text.at(span, ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.AnnAssign)
    node = text.at(span, ast.Call)
    if isinstance(statement, ast.AugAssign) and (node is None or not _is_inside(text, node, statement.value)):
        return _assigned(text, statement)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript) and node is None:
        return _on_a_copy(text, statement, statement.targets[0])
    if node is None:
        return ()
    if any(keyword.arg == "inplace" for keyword in node.keywords):
        return text.without_keyword(node, "inplace")
    return _by_its_twin(text, node, statement)


def _is_inside(text: Text, node: ast.AST, whole: ast.AST) -> bool:
    return node is whole or any(parent is whole for parent in text.around(node, ast.AST))


def _assigned(text: Text, statement: ast.AugAssign) -> Edits:
    sign = _SIGNS.get(type(statement.op))
    if isinstance(statement.target, ast.Subscript):
        return _on_a_copy(text, statement, statement.target)
    if sign is None or _is_shared(text, statement, statement.target):
        return ()
    target = text.source(statement.target)
    simple = isinstance(statement.value, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant))
    value = text.source(statement.value) if simple or sign == "+" else f"({text.source(statement.value)})"
    return (text.replaced(statement, f"{target} = {target} {sign} {value}"),)


def _on_a_copy(text: Text, statement: ast.stmt, part: ast.expr) -> Edits:
    """`h = h.clone()` before something is written to a part of `h`."""
    while isinstance(part, ast.Subscript):
        part = part.value
    if not isinstance(part, (ast.Name, ast.Attribute)) or _is_shared(text, statement, part):
        return ()
    name = text.source(part)
    return text.before(statement, f"{name} = {name}.clone()")


def _by_its_twin(text: Text, call: ast.Call, statement: ast.stmt | None) -> Edits:
    """`relu(x)` for `relu_(x)`; where nobody takes the result, the tensor's name is given to it."""
    function = call.func
    name = called(call)
    if not name.endswith("_") or name.endswith("__") or name in _WITHOUT_TWIN or statement is None:
        return ()
    twin = name[:-1]
    own = isinstance(function, ast.Attribute) and not is_library(function.value)
    changed = function.value if own and isinstance(function, ast.Attribute) else call.args[0] if call.args else None
    alone = isinstance(statement, ast.Expr) and statement.value is call
    if not alone:
        if isinstance(changed, (ast.Name, ast.Attribute)) and not _is_taken_over(text, statement, changed):
            return ()
        if isinstance(function, ast.Attribute):
            return (Edit(text.attribute(function), twin),)
        return (text.replaced(function, twin),)
    if isinstance(changed, ast.Subscript):
        return _on_a_copy(text, statement, changed)
    if not isinstance(changed, (ast.Name, ast.Attribute)) or _is_shared(text, statement, changed):
        return ()
    whole = text.span(call)
    start = Span(text.file, whole.line, whole.column, whole.line, whole.column)
    place = text.attribute(function) if isinstance(function, ast.Attribute) else text.span(function)
    return Edit(start, f"{text.source(changed)} = "), Edit(place, twin)


def _is_taken_over(text: Text, statement: ast.stmt, changed: ast.expr) -> bool:
    """Whether what a statement computes takes the place of what it changes: `h = h.relu_()`, or a return."""
    if isinstance(statement, ast.Assign):
        return text.source(changed) in [text.source(target) for target in statement.targets]
    return isinstance(statement, ast.Return)


def _is_shared(text: Text, statement: ast.stmt, target: ast.expr) -> bool:
    """Whether another name for the tensor would miss what is written: the variable of a loop is a part of a whole."""
    name = text.source(target)
    loops = (loop for loop in text.around(statement, ast.For) if isinstance(loop, ast.For))
    return any(
        isinstance(part, ast.Name) and part.id == name.partition(".")[0]
        for loop in loops
        for part in ast.walk(loop.target)
    )


def without_grad_mode(ask: Ask, span: Span | None) -> Edits:
    """An update, and those that follow it, inside of `with torch.no_grad():`."""
    found = node_at(ask, span, ast.stmt)
    if found is None:
        return ()
    text, statement = found
    if text.torch is None:
        return ()
    if not isinstance(statement, (ast.Expr, ast.Assign, ast.AugAssign)):
        return ()
    block = text.block(statement)
    name, last = _changed(text, statement), block[block.index(statement)]
    for other in block[block.index(statement) + 1 :]:
        changed = _changed(text, other)
        if changed is None or (changed != name and ".grad" not in text.source(other)):
            break
        last = other
    return text.wrapped(statement, last, f"with {text.torch}.no_grad():")


def _changed(text: Text, statement: ast.stmt) -> str | None:
    """What a statement changes in place."""
    target: ast.expr | None = None
    if isinstance(statement, ast.AugAssign):
        target = statement.target
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
        target = statement.targets[0]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        if isinstance(function, ast.Attribute) and function.attr.endswith("_"):
            target = function.value
    while isinstance(target, ast.Subscript):
        target = target.value
    return text.source(target) if target is not None else None


def after_backward(ask: Ask, step: Span | None, backward: Span | None) -> Edits:
    """A step that changes what a later backward of its block still needs, moved behind that backward."""
    text = ask(text_of, step.file) if step is not None else None
    if text is None or step is None or backward is None or step.file != backward.file:
        return ()
    moved, target = text.at(step, ast.Expr), text.at(backward, ast.Expr)
    if moved is None or target is None or target not in text.block(moved) or moved.lineno >= target.lineno:
        return ()
    return text.moved(moved, after=target)


def constructed_otherwise(ask: Ask, kind: str) -> Edits:
    """The only module of a kind that is made to work in place, made without that: `nn.ReLU()`."""
    found = [
        (text, node)
        for text in ask(texts)
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Call) and called(node) == kind
    ]
    edits: Edits = ()
    for text, call in found:
        if any(keyword.arg == "inplace" for keyword in call.keywords):
            edits += text.without_keyword(call, "inplace")
        elif kind in ("ReLU", "ReLU6", "SiLU", "Mish") and len(call.args) == 1:
            edits += (text.replaced(call.args[0], "False"),)
    return edits
