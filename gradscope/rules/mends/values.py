"""Mends of values that were copied or left torch: tensors go on as they are."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cut
from gradscope.graph.facts import Operation, Span
from gradscope.graph.flow import StepFlow
from gradscope.graph.rewriting import Edits, Text, text_of

_LEAVING = ("item", "tolist", "numpy")
_ON_THE_WAY = (*_LEAVING, "detach", "cpu")


def carried_on(ask: Ask, cut: Cut) -> Edits:
    """A tensor made of the values of others becomes those tensors: `torch.stack` of a list, or the one that it is."""
    text, call = _call(ask, cut.operation.span)
    if text is None or call is None or not _is_free(text, call):
        return ()
    mended = _rebuilt(text, call, cut.flow, cut.operation, {})
    return (text.replaced(call, mended),) if mended is not None else ()


def _is_free(text: Text, call: ast.Call) -> bool:
    """Whether a result may take the place of a new parameter: what a module has registered as one may not."""
    statement = text.statement(call)
    owner = next(text.around(call, ast.ClassDef), None)
    if not isinstance(statement, ast.Assign) or owner is None:
        return True
    kept = [text.source(target) for target in statement.targets if isinstance(target, ast.Attribute)]
    others = (node for node in ast.walk(owner) if isinstance(node, ast.Assign) and node is not statement)
    again = {text.source(target) for node in others for target in node.targets}
    method = next(text.around(call, ast.FunctionDef), None)
    return not again.intersection(kept) and getattr(method, "name", "") != "__init__"


def kept_in_torch(ask: Ask, cut: Cut) -> Edits:
    """`.item()`, `float()` or the way through numpy left out, and what made a tensor of the number again."""
    left, back = cut.operation, cut.came_back
    text, exit_ = _call(ask, left.span)
    if text is None or exit_ is None or left.span is None:
        return ()
    inner = _without_exits(exit_)
    if inner is None:
        return ()
    if back is None or back.span is None or not ops.is_a(back, ops.ENTERS):
        return _plain(text, exit_, inner)
    again, entry = _call(ask, back.span)
    if again is None or entry is None:
        return ()
    if again is text and any(node is exit_ for node in ast.walk(entry)):
        mended = _rebuilt(text, entry, cut.flow, back, {exit_: text.bracketed(inner)})
        return (text.replaced(entry, mended),) if mended is not None else ()
    entered = _rebuilt(again, entry, cut.flow, back, {})
    first = _plain(text, exit_, inner)
    return (*first, again.replaced(entry, entered)) if first and entered is not None else ()


def _call(ask: Ask, span: Span | None) -> tuple[Text | None, ast.Call | None]:
    text = ask(text_of, span.file) if span is not None else None
    return text, text.at(span, ast.Call) if text is not None and span is not None else None


def _plain(text: Text, exit_: ast.Call, inner: ast.expr) -> Edits:
    """The way out of torch less."""
    outer: ast.AST = text.parents[exit_]
    if isinstance(outer, ast.FormattedValue) or not _goes_on(text, exit_):
        return ()
    return (text.replaced(exit_, text.bracketed(inner)),)


def _without_exits(node: ast.expr) -> ast.expr | None:
    """What leaves torch: `x` of `x.item()`, `float(x)` and `x.detach().cpu().numpy()`; None for other calls."""
    left = False
    while isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in _ON_THE_WAY and not node.args:
            left, node = left or function.attr in _LEAVING, function.value
        elif isinstance(function, ast.Name) and function.id == "float" and len(node.args) == 1:
            left, node = True, node.args[0]
        else:
            break
    return node if left else None


def _goes_on(text: Text, node: ast.expr) -> bool:
    """Whether what surrounds an expression computes with tensors as with numbers."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("numpy", "tolist"):
        return False
    while not isinstance(parent := text.parents[node], ast.stmt):
        if not _is_arithmetic(parent, node) or not isinstance(parent, ast.expr):
            return False
        node = parent
    return True


def _is_arithmetic(parent: ast.AST, node: ast.expr) -> bool:
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr == "append":
        return node in parent.args
    return isinstance(parent, (ast.BinOp, ast.UnaryOp, ast.Tuple, ast.List, ast.ListComp, ast.IfExp, ast.Dict))


# --- what is made of values ------------------------------------------------------------------------------------------


def _rebuilt(
    text: Text, call: ast.Call, flow: StepFlow, operation: Operation, mended: Mapping[ast.expr, str]
) -> str | None:
    """The text of tensors in the place of a new one made of their values; None where that is not sure."""
    if not call.args or isinstance(call.args[0], ast.Starred):
        return None
    argument = call.args[0]
    made = _made_of(text, argument, flow, operation, mended)
    if made is None:
        return None
    options = []
    for keyword in call.keywords:
        if keyword.arg in ("dtype", "device"):
            options.append(f"{keyword.arg}={text.source(keyword.value)}")
        elif keyword.arg not in ("requires_grad", "copy"):
            return None
    if options:
        return f"{made}.to({', '.join(options)})"
    return made


def _made_of(
    text: Text, argument: ast.expr, flow: StepFlow, operation: Operation, mended: Mapping[ast.expr, str]
) -> str | None:
    # `torch.Tensor([a, b])` asks each of them for its number.
    asked = [o for o in flow.operations if o.span == operation.span and ops.is_a(o, ops.EXITS)] or [operation]
    taken = dict.fromkeys(value for part in asked for value in part.inputs)
    shapes = [tensor.shape for value in taken if (tensor := flow.tensor(value)) is not None]
    made = next((tensor.shape for value in operation.outputs if (tensor := flow.tensor(value)) is not None), None)
    if isinstance(argument, (ast.List, ast.Tuple)):
        return _stacked(text, argument, shapes, mended)
    several = isinstance(argument, ast.ListComp) or len(shapes) > 1
    if not shapes and made is not None:  # of plain numbers, whose tensors are known by the number of axes only
        several = len(made) == 1 and not mended
    if several:
        how = _joining(shapes)
        return f"{text.torch}.{how}({text.source(argument)})" if how and text.torch and not mended else None
    code = _arithmetic(text, argument, mended)
    if code is None or (shapes and made is not None and shapes[0] != made):
        return None
    return code if argument in mended or isinstance(argument, (ast.Name, ast.Attribute, ast.Call)) else f"({code})"


def _joining(shapes: Sequence[tuple[int, ...]]) -> str | None:
    """How tensors become one with an element of each: numbers are stacked, vectors of one element joined."""
    kinds = set(shapes) or {()}
    return "stack" if kinds == {()} else "cat" if kinds == {(1,)} else None


def _stacked(
    text: Text, node: ast.List | ast.Tuple, shapes: Sequence[tuple[int, ...]], mended: Mapping[ast.expr, str]
) -> str | None:
    """`torch.stack` of the elements of a list, and of lists in it."""
    how = _joining(shapes)
    parts = []
    for element in node.elts:
        if isinstance(element, (ast.List, ast.Tuple)):
            part = _stacked(text, element, shapes, mended)
        elif isinstance(element, (ast.Constant, ast.Starred)):
            return None
        else:
            part = _arithmetic(text, element, mended)
        if part is None:
            return None
        parts.append(part)
    nested = any(isinstance(element, (ast.List, ast.Tuple)) for element in node.elts)
    if how is None or not parts or text.torch is None or (nested and how == "cat"):
        return None
    if shapes and len(shapes) < len(parts) and not nested:
        return None  # some are plain numbers
    return f"{text.torch}.{how}([{', '.join(parts)}])"


def _arithmetic(text: Text, node: ast.expr, mended: Mapping[ast.expr, str]) -> str | None:
    """The text of an expression that computes with a tensor as it does with a number."""
    for old, new in mended.items():
        if node is old:
            return new
        if any(part is old for part in ast.walk(node)):
            return _with_parts(text, node, mended)
    return None if mended else text.source(node)


def _with_parts(text: Text, node: ast.expr, mended: Mapping[ast.expr, str]) -> str | None:
    if node in mended:
        return mended[node]
    if not any(part in mended for part in ast.walk(node)):
        return text.source(node)
    if isinstance(node, ast.BinOp):
        parts = [_with_parts(text, part, mended) for part in (node.left, node.right)]
        if None in parts:
            return None
        code = text.source(node)
        for part, new in zip((node.right, node.left), reversed(parts), strict=True):
            code = _put(text, node, part, code, new or "")
        return code
    if isinstance(node, ast.UnaryOp):
        inner = _with_parts(text, node.operand, mended)
        return _put(text, node, node.operand, text.source(node), inner) if inner is not None else None
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(node, ast.Call) and isinstance(function, ast.Attribute) and len(node.args) == 1:
        inner = _with_parts(text, node.args[0], mended)
        if (
            inner is not None
            and ast.unparse(function.value) in ("math", "np", "numpy")
            and function.attr in ops.OF_MATH
        ):
            return f"{text.torch}.{function.attr}({inner})" if text.torch is not None else None
    return None


def _put(text: Text, whole: ast.expr, part: ast.expr, code: str, new: str) -> str:
    """The text of an expression with another text for one of its parts; parts behind it may have changed before."""
    start, place = text.span(whole), text.span(part)
    lines = text.source(whole).split("\n")
    before = (place.line - start.line, (place.column or 1) - (start.column or 1 if place.line == start.line else 1))
    first = sum(len(line) + 1 for line in lines[: before[0]]) + before[1]
    return code[:first] + new + code[first + len(text.source(part)) :]
