"""The arguments of a call at a line, as the source has them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from gradscope.graph.facts import Edit, Span
from gradscope.graph.naming import callee, expression, source_of

_ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument; `literal` says that it is a number that stands there, or a product of such."""

    text: str
    span: Span
    literal: bool

    def becomes(self, text: str) -> tuple[Edit, ...]:
        """The edit that puts another expression in its place."""
        return (Edit(self.span, text),)


def argument(
    span: Span | None, sources: Mapping[str, Mapping[int, str]], place: int, keyword: str | None = None
) -> Argument | None:
    """The argument at a place, or of that keyword, of the call at a span; a single tuple counts as its items."""
    node = expression(span, sources) if span is not None else None
    if span is None or not isinstance(node, ast.Call):
        return None
    given: list[ast.expr] = list(node.args)
    if len(given) == 1 and isinstance(given[0], (ast.Tuple, ast.List)) and keyword is None:
        given = given[0].elts
    if any(isinstance(part, ast.Starred) for part in given[: place + 1]):
        return None
    found = next((part.value for part in node.keywords if part.arg == keyword and keyword is not None), None)
    if found is None:
        if place >= len(given):
            return None
        found = given[place]
    where = _place(span, found, sources)
    return Argument(ast.unparse(found), where, _is_literal(found)) if where is not None else None


def constructor(span: Span | None, kind: str | None, sources: Mapping[str, Mapping[int, str]]) -> Span | None:
    """The span itself, where it calls what makes a module of this kind."""
    return span if span is not None and kind is not None and callee(span, sources) == kind else None


def literals_of(span: Span | None, number: int, sources: Mapping[str, Mapping[int, str]]) -> list[Argument]:
    """The arguments of a call that are this number."""
    node = expression(span, sources) if span is not None else None
    if span is None or not isinstance(node, ast.Call):
        return []
    parts = [*node.args, *(keyword.value for keyword in node.keywords)]
    fitting = [part for part in parts if isinstance(part, ast.Constant) and part.value == number]
    places = [(part, _place(span, part, sources)) for part in fitting]
    return [Argument(ast.unparse(part), where, True) for part, where in places if where is not None]


def _is_literal(node: ast.expr) -> bool:
    return all(isinstance(part, _ARITHMETIC) for part in ast.walk(node))


def _place(span: Span, node: ast.expr, sources: Mapping[str, Mapping[int, str]]) -> Span | None:
    """Where a part of the expression at a span stands: `expression` reads it in brackets, which count one byte."""
    text = source_of(span, sources)
    if text is None or node.end_lineno is None or node.end_col_offset is None:
        return None
    lines = ("(" + text).split("\n")

    def column(line: int, offset: int) -> int:
        characters = len(lines[line - 1].encode()[:offset].decode(errors="ignore"))
        return characters - 1 + (span.column or 1) if line == 1 else characters + 1

    return Span(
        span.file,
        span.line + node.lineno - 1,
        column(node.lineno, node.col_offset),
        span.line + node.end_lineno - 1,
        column(node.end_lineno, node.end_col_offset),
        span.function,
    )
