"""Mends of NaN and infinity: what an operation takes is kept where its result and its derivative are finite."""

from __future__ import annotations

import ast

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Nonfinite, Operation, Span
from gradscope.graph.flow import StepFlow
from gradscope.graph.naming import is_library, short_name
from gradscope.graph.rewriting import Edits, Text, statement_at, text_of
from gradscope.graph.spoilt import again, counts_nothing

# In float16 what is smaller is 0; in float32 one over the square root of 1e-8 is 10,000, which gradients bear.
_SMALL, _SMALL_HALF = "1e-8", "1e-4"
_FAR = "-1e4"  # no exponential of it is left beside one of 0, and float16 holds it
_LARGEST = "80.0"  # `exp` of it is below the largest float32
_SAFE = {"sigmoid": "logsigmoid", "softmax": "log_softmax"}


def kept_finite(ask: Ask, event: Nonfinite) -> Edits:
    """A small number added or a limit set where an operation meets 0, and masks with a large number for -inf."""
    if event.custom is not None:
        return _divided_safely(ask, event.custom)
    operation = event.operation
    if operation is None or operation.span is None or event.taken:
        return ()
    if event.node in ops.SOFTMAX_NODES:
        return _masked_softly(ask, operation)
    text = ask(text_of, operation.span.file)
    node = text.at(operation.span, ast.Call, ast.BinOp) if text is not None else None
    if text is None or not isinstance(node, (ast.Call, ast.BinOp)):
        return ()
    small = _SMALL_HALF if "float16" in _types(ask, operation) else _SMALL
    match event.node, event.low:
        case "Log", low if event.kind == "forward":
            return _log(text, node, small) if low is None or low >= 0 else ()
        case "Log", _:
            return _limited(text, node, f".clamp(min={small})")
        case "Sqrt", low if low is None or low >= 0:
            return _raised(text, node, small)
        case "Pow", low if low is None or low >= 0:
            return _raised(text, node, small)
        case "Div", low if low is not None and low >= 0 and isinstance(node, ast.BinOp):
            least = "1" if counts_nothing(ask, event) else small
            return text.appended(node.right, f".clamp(min={least})") if isinstance(node.op, ast.Div) else ()
        case "Exp", _ if event.kind == "gradient" and small is _SMALL:
            return _limited(text, node, f".clamp(max={_LARGEST})")
        case (("Acos" | "Asin"), _):
            return _limited(text, node, ".clamp(-1 + 1e-6, 1 - 1e-6)")
    return ()


def _types(ask: Ask, operation: Operation) -> set[str]:
    run = ask.run
    return {run.tensor_by_id[run.holder[value]].dtype for value in operation.inputs if value in run.holder}


def _argument(node: ast.expr) -> ast.expr | None:
    """What a function of one tensor is given: `x` of `torch.sqrt(x)`, `x.sqrt()` and `x ** p`."""
    if isinstance(node, ast.BinOp):
        return node.left if isinstance(node.op, ast.Pow) else None
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute) and not is_library(node.func.value):
        return node.func.value
    return node.args[0] if node.args and not isinstance(node.args[0], ast.Starred) else None


def _raised(text: Text, node: ast.expr, small: str) -> Edits:
    """A small number added to what is given."""
    argument = _argument(node)
    if argument is None:
        return ()
    code = f"{text.source(argument)} + {small}"
    whole = isinstance(node, ast.Call) and argument in node.args
    return (text.replaced(argument, code if whole else f"({code})"),)


def _limited(text: Text, node: ast.expr, limit: str) -> Edits:
    argument = _argument(node) if isinstance(node, ast.Call) else None
    return text.appended(argument, limit) if argument is not None else ()


def _log(text: Text, node: ast.expr, small: str) -> Edits:
    """`logsigmoid(x)` for the logarithm of a sigmoid, `log_softmax` for that of a softmax, else a limit."""
    argument = _argument(node)
    if not isinstance(node, ast.Call) or argument is None:
        return ()
    made: ast.expr = argument
    if isinstance(argument, ast.Name):
        made = _only_used_here(text, argument) or argument
    stable = _stable(text, made)
    if stable is None:
        return text.appended(argument, f".clamp(min={small})")
    if made is argument:
        return (text.replaced(node, stable),)
    return (text.replaced(made, stable), text.replaced(node, text.source(argument)))


def _stable(text: Text, node: ast.expr) -> str | None:
    """A logarithm and what it is of in one, for `torch.sigmoid(x)`, `x.softmax(dim=1)` and their like."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    safe, owner, functional = _SAFE.get(node.func.attr), node.func.value, text.functional
    if safe is None or functional is None:
        return None
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    method = not is_library(owner)
    parts = [text.source(owner)] if method else []
    parts += [text.source(argument) for argument in node.args]
    parts += [f"{keyword.arg}={text.source(keyword.value)}" for keyword in node.keywords]
    if safe == "logsigmoid" and len(given) != (0 if method else 1):
        return None
    return f"{functional}.{safe}({', '.join(parts)})"


def _only_used_here(text: Text, name: ast.Name) -> ast.expr | None:
    """The expression that gives a variable its only value, where it is used at this place only."""
    home = next(text.around(name, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module), text.tree)
    uses = [node for node in ast.walk(home) if isinstance(node, ast.Name) and node.id == name.id]
    if len(uses) != 2:
        return None
    statement = text.statement(next(node for node in uses if node is not name))
    return statement.value if isinstance(statement, ast.Assign) and statement.targets == [uses[0]] else None


def _masked_softly(ask: Ask, softmax: Operation) -> Edits:
    """A large negative number for minus infinity where the scores of a softmax are masked."""
    for flow, operation in again(ask, softmax):
        for place in _filled(flow, operation):
            text, statement = statement_at(ask, place)
            if text is None or statement is None:
                continue
            infinite = [node for node in ast.walk(statement) if isinstance(node, ast.expr) and _is_minus_infinity(node)]
            if len(infinite) == 1:
                return (text.replaced(infinite[0], _FAR),)
    return ()


def _filled(flow: StepFlow, softmax: Operation) -> list[Span]:
    """Where the elements of what a softmax takes were filled in, the latest first."""
    waiting, found, seen = list(softmax.inputs[:1]), [], set(softmax.inputs)
    while waiting:
        value = waiting.pop(0)
        maker = flow.maker.get(value)
        if maker is None:
            continue
        if maker.span is not None and short_name(maker.name) in (
            "masked_fill",
            "masked_fill_",
            "where",
            "setitem",
            "add",
        ):
            found.append(maker.span)
        fresh = [source for source in maker.inputs if source not in seen] if ops.is_a(maker, ops.KEEPS_ELEMENTS) else []
        seen.update(fresh)
        waiting += fresh
    return found


def _is_minus_infinity(node: ast.expr) -> bool:
    """Whether an expression is `float("-inf")`, `-float("inf")`, `-math.inf` or its like, as a whole."""
    code = ast.unparse(node).lower().replace('"', "'")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = code.removeprefix("-")
        return inner in ("float('inf')", "inf") or inner.endswith(".inf")
    return code in ("float('-inf')", "float('-infinity')")


def _divided_safely(ask: Ask, place: Span) -> Edits:
    """A norm that is divided by, kept above 0, where a line has one division only."""
    text, statement = statement_at(ask, place)
    if text is None or statement is None:
        return ()
    divided = [node for node in ast.walk(statement) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    if len(divided) != 1 or not isinstance(divided[0].right, ast.Call):
        return ()
    divisor = divided[0].right
    norm = isinstance(divisor.func, ast.Attribute) and divisor.func.attr in ("norm", "vector_norm", "std", "sum")
    return text.appended(divisor, ".clamp(min=1e-12)") if norm else ()
