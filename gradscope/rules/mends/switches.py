"""Mends of grad mode: a `with`, a decorator or a call that turns it off goes, or ends where it should."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Span
from gradscope.graph.rewriting import Edits, Text, text_of

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
        found = next(_decorators(text, switch), None)
        return text.undecorated(found) if found is not None else ()
    call = text.at(switch, ast.Call)
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


def trainable(ask: Ask, switch: Span) -> Edits:
    """`no_grad` in the place of `inference_mode`: its results may be trained on."""
    text = ask(text_of, switch.file)
    if text is None:
        return ()
    found = next(_decorators(text, switch), None) or text.at(switch, ast.Call)
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
