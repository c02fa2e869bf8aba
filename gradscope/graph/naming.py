"""How reports and rules say what operations, shapes and places are."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gradscope.graph.facts import UNKNOWN, Span, Tensor

# Methods by which lists, sets and dicts take something in.
ADDING = frozenset({"add", "append", "appendleft", "extend", "insert", "setdefault", "update"})


def short_name(operation: str) -> str:
    """An operation's name as a reader says it: `matmul` for `Tensor.__matmul__`."""
    last = operation.removesuffix(" =").split(".")[-1]
    if last.startswith("__") and last.endswith("__") and len(last) > 4:
        return last[2:-2]
    return last or operation


def shape_text(shape: Sequence[int]) -> str:
    """A shape as reports write it: `5x3`, or `scalar`; a size that is not one number is `?`."""
    return "x".join("?" if size == UNKNOWN else str(size) for size in shape) if shape else "scalar"


def amount(number: int) -> str:
    """A large number in three digits: `7.09M`."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def source_of(span: Span, sources: Mapping[str, Mapping[int, str]]) -> str | None:
    """The text of a span; None where it was not kept or the interpreter gave no columns."""
    if span.column is None or span.end_column is None or span.end_line is None:
        return None
    kept = sources.get(span.file, {})
    lines = [kept.get(number) for number in range(span.line, span.end_line + 1)]
    if any(line is None for line in lines):
        return None
    found = [line or "" for line in lines]
    found[-1] = found[-1][: span.end_column - 1]
    found[0] = found[0][span.column - 1 :]
    return "\n".join(found)


def expression(span: Span, sources: Mapping[str, Mapping[int, str]]) -> ast.expr | ast.stmt | None:
    """The syntax tree of the expression or statement at a span."""
    text = source_of(span, sources)
    if text is None:
        return None
    try:
        # In brackets, the lines of an expression may be indented as they like.
        return ast.parse(f"({text}\n)", mode="eval").body
    except SyntaxError:
        pass
    try:
        return ast.parse(text).body[0]
    except (SyntaxError, IndexError):
        return None


def last_call(span: Span, sources: Mapping[str, Mapping[int, str]]) -> Span:
    """The end of a chain of calls: `.detach()` of `self.encoder(x).detach()`. Other spans stay as they are."""
    node = expression(span, sources)
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Attribute) or span.end_line != span.line or span.column is None:
        return span
    text = source_of(span, sources) or ""
    before = function.value.end_col_offset
    if before is None or is_library(function.value):
        return span
    characters = len(f"({text}".encode()[:before].decode()) - 1
    return replace(span, column=span.column + characters)


def changed_name(span: Span, sources: Mapping[str, Mapping[int, str]]) -> str | None:
    """What is changed in place at a span, as it is called there: `h` in `h[0] = x`, `h.add_(x)` and `h.append(x)`."""
    node: ast.AST | None = expression(span, sources)
    if isinstance(node, ast.Call):
        function = node.func
        changes = isinstance(function, ast.Attribute) and (function.attr.endswith("_") or function.attr in ADDING)
        node = function.value if changes and isinstance(function, ast.Attribute) else None
    elif isinstance(node, ast.AugAssign):
        node = node.target
    elif isinstance(node, ast.Assign):
        node = node.targets[0]
    while isinstance(node, ast.Subscript):
        node = node.value
    inner = node
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    if node is None or not isinstance(inner, ast.Name) or is_library(inner):
        return None
    return ast.unparse(node).removeprefix("self.")


def line_of(span: Span | None) -> tuple[str, int] | None:
    """The file and the line at which a span begins."""
    return (span.file, span.line) if span is not None else None


def named(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Those tensors that have a name: of others nothing can be told."""
    return (tensor for tensor in tensors if tensor.name is not None)


def within(inner: Span, outer: Span) -> bool:
    """Whether a span lies inside another one of the same file."""
    if inner.file != outer.file or None in (inner.column, inner.end_column, outer.column, outer.end_column):
        return False
    starts = (outer.line, outer.column or 0) <= (inner.line, inner.column or 0)
    return starts and (inner.end_line or 0, inner.end_column or 0) <= (outer.end_line or 0, outer.end_column or 0)


def is_library(node: ast.AST) -> bool:
    """`torch`, `F`, `nn.functional`: where functions live, rather than a tensor whose method is called."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in ("torch", "F", "nn", "functional", "np", "numpy", "math")


def operands_of(node: ast.AST) -> list[ast.AST]:
    """What an expression computes with but for numbers and strings: the object of a method is the first operand."""
    return [operand for operand in _all_operands(node) if not _is_literal(operand)]


def _is_literal(node: ast.AST) -> bool:
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def _all_operands(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign):
        return [node.target, node.value]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, (ast.Subscript, ast.Attribute)):
        return [node.value]
    if isinstance(node, ast.Call):
        arguments: list[ast.AST] = [*node.args, *(keyword.value for keyword in node.keywords)]
        if any(isinstance(argument, ast.Starred) for argument in arguments):
            return []
        if isinstance(node.func, ast.Attribute) and not is_library(node.func.value):
            return [node.func.value, *arguments]
        return arguments
    return []


def plain_name(node: ast.AST | None) -> str | None:
    """The text of a name, an attribute path or an item with a constant or plain index."""
    inner = node
    while isinstance(inner, (ast.Attribute, ast.Subscript)):
        if isinstance(inner, ast.Subscript) and not isinstance(inner.slice, (ast.Constant, ast.Name)):
            return None
        inner = inner.value
    if node is None or not isinstance(inner, ast.Name):
        return None
    return ast.unparse(node).removeprefix("self.")


def loop_around(span: Span, sources: Mapping[str, Mapping[int, str]]) -> Span | None:
    """The head of the innermost `for` whose body a span lies in; None where it was not kept or there is none."""
    lines = sources.get(span.file, {})
    depth = _indent(lines.get(span.line, ""))
    for number in range(span.line - 1, 0, -1):
        text = lines.get(number)
        if text is None:
            return None
        if text.strip() and text.lstrip()[0] not in "#)]}" and _indent(text) < depth:
            depth = _indent(text)
            if text.lstrip().startswith(("for ", "async for ")):
                end = len(text.rstrip()) + 1
                return Span(span.file, number, depth + 1, number, end, span.function)
            if text.lstrip().startswith(("def ", "class ", "async def ")):
                return None
    return None


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def entered_at(name: str | None, use: Span, sources: Mapping[str, Mapping[int, str]]) -> Span | None:
    """The last assignment above a use that gives a variable numbers from outside, by `from_numpy`.

    No function mode sees that call.
    """
    lines = sources.get(use.file, {})
    if name is None or not name.isidentifier() or not lines:
        return None
    try:
        tree = ast.parse("\n".join(lines.get(number, "") for number in range(1, max(lines) + 1)))
    except SyntaxError:
        return None  # not all of its lines are kept
    assigned = [
        node
        for node in _statements_of(tree, use)
        if isinstance(node, ast.Assign)
        and node.lineno < use.line
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    value = max(assigned, key=lambda node: node.lineno).value if assigned else None
    if not isinstance(value, ast.Call) or plain_name(value.func) not in ("torch.from_numpy", "from_numpy"):
        return None
    column, end = value.col_offset + 1, (value.end_col_offset or value.col_offset) + 1
    return Span(use.file, value.lineno, column, value.end_lineno or value.lineno, end, use.function)


def _statements_of(tree: ast.Module, use: Span) -> Iterator[ast.AST]:
    """The statements of the function in which a use lies, or of the module outside of all functions."""
    scopes = (ast.FunctionDef, ast.AsyncFunctionDef)
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, scopes) and node.lineno <= use.line <= (node.end_lineno or node.lineno)
    ]
    waiting: list[ast.AST] = list((around[-1] if around else tree).body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*scopes, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def callee(span: Span, sources: Mapping[str, Mapping[int, str]]) -> str | None:
    """The last part of the name of the function called at a span: `sample` for `dist.sample()`."""
    node = expression(span, sources)
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


def operand_names(span: Span, operation: str, sources: Mapping[str, Mapping[int, str]]) -> list[str | None]:
    """The operands of the call of an operation at a span, as they are called there; none where it calls another.

    A number is no operand, and what is only scaled or shifted by one is called as it is: `h` in `exp(0.5 * h)`.
    """
    node = expression(span, sources)
    if node is None or (isinstance(node, ast.Call) and callee(span, sources) != short_name(operation)):
        return []
    return [plain_name(_unscaled(operand)) for operand in operands_of(node)]


def spelled_operands(span: Span | None, sources: Mapping[str, Mapping[int, str]]) -> tuple[str, ...]:
    """What an expression computes with, as it is written there: `self.source` in `u + self.source`."""
    node = expression(span, sources) if span is not None else None
    if node is None:
        return ()
    names = (ast.unparse(operand) for operand in operands_of(node) if plain_name(operand) is not None)
    return tuple(dict.fromkeys(name for name in names if name != "self"))


def spelled_first(span: Span | None, sources: Mapping[str, Mapping[int, str]]) -> tuple[str, ...]:
    """The first operand of an expression as it is written, where it has a name: `frames` in `frames.view(t, b)`."""
    node = expression(span, sources) if span is not None else None
    first = operands_of(node)[:1] if node is not None else []
    return tuple(ast.unparse(operand) for operand in first if plain_name(operand) is not None)


def spelled_callee(span: Span | None, sources: Mapping[str, Mapping[int, str]]) -> str | None:
    """The object that is called at a span, or whose method is, as it is written there: `self.drop`, `self.model`."""
    node = expression(span, sources) if span is not None else None
    if not isinstance(node, ast.Call):
        return None
    switches = isinstance(node.func, ast.Attribute) and node.func.attr in ("eval", "train")
    called = node.func.value if switches and isinstance(node.func, ast.Attribute) else node.func
    return ast.unparse(called) if plain_name(called) is not None and not is_library(called) else None


def _unscaled(node: ast.AST) -> ast.AST:
    while True:
        if isinstance(node, ast.UnaryOp):
            node = node.operand
        elif isinstance(node, ast.BinOp) and _is_literal(node.left):
            node = node.right
        elif isinstance(node, ast.BinOp) and _is_literal(node.right):
            node = node.left
        else:
            return node


def argument_name(span: Span, sources: Mapping[str, Mapping[int, str]]) -> str | None:
    """What the only argument of a call is called: `features` in `self.head(features)`."""
    node = expression(span, sources)
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        return plain_name(node.args[0])
    return None


def argument_names(span: Span, keyword: str, place: int, sources: Mapping[str, Mapping[int, str]]) -> list[str | None]:
    """What the parts of one argument of a call are called: `x` and `t` in `grad(u, [x, t])`."""
    node = expression(span, sources)
    if not isinstance(node, ast.Call):
        return []
    given = next((part.value for part in node.keywords if part.arg == keyword), None)
    if given is None and len(node.args) > place:
        given = node.args[place]
    if given is None:
        return []
    return [plain_name(part) for part in (given.elts if isinstance(given, (ast.Tuple, ast.List)) else [given])]


def written_at(span: Span | None, sources: Mapping[str, Mapping[int, str]], *, line: bool = False) -> tuple[str, ...]:
    """What an expression calls the tensor, or the container, that it changes, fills or starts from.

    That is `p` in `p.add_(g)`, `self.storage` in `self.storage.append(q)` and `self.total[key] += loss`; with `line`,
    also what its line assigns it to. A reader knows it by this name there, whatever it is called elsewhere.
    """
    found = _target_of(expression(span, sources)) if span is not None else None
    if found is None and span is not None and line:
        text = sources.get(span.file, {}).get(span.line, "")
        found = _target_of(expression(Span(span.file, span.line, _indent(text) + 1, span.line, len(text) + 1), sources))
    return (found,) if found is not None else ()


def _target_of(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Expr):
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    elif isinstance(node, ast.AugAssign):
        node = node.target
    elif isinstance(node, ast.Assign):
        node = node.targets[0]
    else:
        return None
    while isinstance(node, ast.Subscript):
        node = node.value
    return None if is_library(node) or plain_name(node) is None else ast.unparse(node)
