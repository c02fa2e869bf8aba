"""Mends of modes: `train()` before training goes on, `eval()` before something is evaluated or gives targets."""

from __future__ import annotations

import ast

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Optimizer, Span
from gradscope.graph.rewriting import Edits, Text, head, statement_at, text_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)
_KEEPS_NO_GRADIENT = ("no_grad", "inference_mode")


def trained_again(ask: Ask, optimizer: Optimizer, by: str | None, switched: Span | None) -> Edits:
    """`train()` before the loop that steps; before the forward where the switch is reached from within the loop."""
    text, step = statement_at(ask, optimizer.stepped)
    if text is None or step is None or switched is None or by is None or "." in by:
        return ()
    home = next(text.around(step, *_FUNCTIONS), text.tree)
    loop = next(text.loops(step), None)
    name, forward = _called(ask, text, loop or home)
    if name is None or forward is None:
        return ()
    if loop is None:
        function = home if isinstance(home, ast.FunctionDef) else None
        return text.before(head(function), f"{name}.train()") if function is not None else ()
    inside = switched.file == text.file and loop.lineno <= switched.line <= (loop.end_lineno or loop.lineno)
    function_name = (switched.function or "").rpartition(".")[2]
    calls = (node.func for node in ast.walk(loop) if isinstance(node, ast.Call))
    inside = inside or any(ast.unparse(called).rpartition(".")[2] == function_name for called in calls)
    return text.before(forward if inside else loop, f"{name}.train()")


def _called(ask: Ask, text: Text, place: ast.AST) -> tuple[str | None, ast.stmt | None]:
    """What the one module is called that runs at a place, and the first statement that runs it."""
    first, last = getattr(place, "lineno", 1), getattr(place, "end_lineno", None) or len(text.lines)
    names: dict[str, ast.stmt] = {}
    for step in ask.run.steps:
        for call in step.calls:
            if call.span.file == text.file and first <= call.span.line <= last:
                node = text.at(call.span, ast.Call)
                statement = text.statement(node) if node is not None else None
                if node is None or statement is None:
                    return None, None
                known = names.setdefault(text.source(node.func), statement)
                if statement.lineno < known.lineno:
                    names[text.source(node.func)] = statement
    if len(names) != 1:
        return None, None
    name, first_run = next(iter(names.items()))
    return (name, first_run) if all(part.isidentifier() for part in name.split(".")) else (None, None)


def evaluated(ask: Ask, call: Span | None, *, teacher: bool) -> Edits:
    """`eval()` before a module runs without gradients; `train()` behind, where nothing else says it in a loop."""
    text = ask(text_of, call.file) if call is not None else None
    node = text.at(call, ast.Call) if text is not None and call is not None else None
    statement = text.statement(node) if text is not None and node is not None else None
    if text is None or node is None or statement is None:
        return ()
    name = text.source(node.func)
    if not all(part.isidentifier() for part in name.split(".")) or name == "self":
        return ()
    if teacher:
        return text.before(statement, f"{name}.eval()")
    for parent in text.around(node, ast.With, *_FUNCTIONS):
        if isinstance(parent, ast.With) and any(_is_without_gradient(item.context_expr) for item in parent.items):
            back = _back(ask, text, parent.body, name) if _returns(parent) else text.after(parent, f"{name}.train()")
            return _both(text.before(parent, f"{name}.eval()"), back, needed=not _trains_in_a_loop(ask))
        if isinstance(parent, ast.FunctionDef) and any(map(_is_without_gradient, parent.decorator_list)):
            back = _back(ask, text, parent.body, name)
            return _both(text.before(head(parent), f"{name}.eval()"), back, needed=not _trains_in_a_loop(ask))
        if isinstance(parent, _FUNCTIONS):
            return ()
    return ()


def _both(there: Edits, back: Edits, *, needed: bool) -> Edits:
    if not needed:
        return there
    return (*there, *back) if there and back else ()


def _back(ask: Ask, text: Text, body: list[ast.stmt], name: str) -> Edits:
    """`train()` at the end of a block that may end with a return, which must not run the module once more."""
    last = body[-1]
    if not isinstance(last, ast.Return):
        return () if any(map(_returns, body)) else text.after(last, f"{name}.train()")
    runs = any(isinstance(node, ast.Call) and text.source(node.func) == name for node in ast.walk(last))
    early = any(map(_returns, body[:-1]))
    return () if runs or early else text.before(last, f"{name}.train()")


def _returns(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Return) for part in ast.walk(node))


def _is_without_gradient(node: ast.expr) -> bool:
    named = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(named).rpartition(".")[2] in _KEEPS_NO_GRADIENT


def _trains_in_a_loop(ask: Ask) -> bool:
    """Whether some loop, or some function, puts a module into training mode."""
    for file in ask.run.whole:
        text = ask(text_of, file)
        for node in ast.walk(text.tree) if text is not None else ():
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or text is None:
                continue
            repeated = next(text.around(node, ast.For, ast.While, ast.FunctionDef), None) is not None
            if node.func.attr == "train" and repeated:
                return True
    return False
