"""Mends of grad mode: a `with`, a decorator or a call that turns it off goes, or ends where it should."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Span
from gradscope.graph.rewriting import Edits, Text, called, text_of, texts

_OFF = ("no_grad", "inference_mode", "set_grad_enabled")


def left_out(ask: Ask, switch: Span, cut: Span, *, decorator: bool) -> Edits:
    """What turns grad mode off at a place goes.

    A call that stands alone holds until somebody turns grad mode on: it becomes a `with` around the rest of its
    block, unless that is what is to keep its history.
    """
    text = ask(text_of, switch.file)
    if text is None:
        return ()
    if decorator:
        return _undecorated(ask, text, switch, cut)
    call = _call(text, switch)
    if call is None or not _turns_off(call):
        return ()
    parent = text.parents[call]
    if isinstance(parent, ast.withitem):
        block = text.parents[parent]
        return text.unwrapped(block, parent) if isinstance(block, ast.With) else ()
    statement = text.statement(call)
    if not isinstance(statement, ast.Expr) or statement.value is not call:
        return ()
    rest = text.block(statement)
    rest = rest[rest.index(statement) + 1 :]
    inside = cut.file == switch.file and any(s.lineno <= cut.line <= (s.end_lineno or s.lineno) for s in rest)
    if inside or not rest:
        return text.left_out(statement)
    taken, put = text.left_out(statement), text.wrapped(rest[0], rest[-1], f"with {text.torch}.no_grad():")
    return (*taken, *put) if taken and put and text.torch is not None else ()


def _call(text: Text, switch: Span) -> ast.expr | None:
    """The expression that turns grad mode off at a place, which may be a whole `with`."""
    call = text.at(switch, ast.Call)
    if call is not None and _turns_off(call):
        return call
    block = text.at(switch, ast.With)
    items = [item.context_expr for item in block.items] if block is not None else []
    return next((item for item in items if _turns_off(item)), call)


def _undecorated(ask: Ask, text: Text, switch: Span, cut: Span) -> Edits:
    """The decorated function that the switch belongs to, which is told at its call: without its decorator.

    It is the function in which the history is lost, or the one that is called there, or there is only one.
    """
    found = [
        (other, node, decorator)
        for other in ask(texts)
        for node in ast.walk(other.tree)
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if _turns_off(decorator)
    ]
    call = text.at(switch, ast.Call)
    name = called(call) if call is not None else None
    own = [entry for entry in found if entry[0].file == cut.file and _path(entry[0], entry[1]) == cut.function]
    there = [entry for entry in found if entry[1].name == name]
    chosen = own or there or found
    return chosen[0][0].undecorated(chosen[0][2]) if len(chosen) == 1 else ()


def _path(text: Text, node: ast.FunctionDef) -> str:
    """The qualified name of a function, as the interpreter has it."""
    parts = [node.name]
    for outer in text.around(node, ast.FunctionDef, ast.ClassDef):
        if isinstance(outer, ast.FunctionDef):
            parts.append("<locals>")
        if isinstance(outer, (ast.FunctionDef, ast.ClassDef)):
            parts.append(outer.name)
    return ".".join(reversed(parts))


def trainable(ask: Ask, switch: Span) -> Edits:
    """`no_grad` in the place of `inference_mode`: its results may be trained on."""
    text = ask(text_of, switch.file)
    if text is None:
        return ()
    found = next(_decorators(text, switch), None) or _call(text, switch)
    named = found.func if isinstance(found, ast.Call) else found
    if found is None or named is None or not ast.unparse(named).endswith("inference_mode"):
        return ()
    arguments = [*found.args, *(keyword.value for keyword in found.keywords)] if isinstance(found, ast.Call) else []
    if any(not isinstance(argument, ast.Constant) or argument.value is not True for argument in arguments):
        return ()
    name = f"{ast.unparse(named.value)}.no_grad" if isinstance(named, ast.Attribute) else f"{text.torch}.no_grad"
    if not isinstance(named, ast.Attribute) and text.torch is None:
        return ()
    return (text.replaced(found, name + "()"),) if arguments else (Edit(text.span(named), name),)


def _decorators(text: Text, span: Span) -> Iterator[ast.expr]:
    """The decorators that turn grad mode off of the function that begins at a line."""
    for node in ast.walk(text.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.decorator_list:
            lines = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
            if span.line in lines:
                yield from (d for d in node.decorator_list if _turns_off(d))


def _turns_off(node: ast.expr) -> bool:
    named = node.func if isinstance(node, ast.Call) else node
    name = ast.unparse(named).rpartition(".")[2]
    if name == "set_grad_enabled":
        arguments = node.args if isinstance(node, ast.Call) else []
        return [ast.unparse(argument) for argument in arguments] == ["False"]
    return name in _OFF
