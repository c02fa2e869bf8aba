"""Edits that put the arguments of a call in another order."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from gradscope.graph.facts import Span
from gradscope.graph.naming import expression, source_of


def swapped_arguments(span: Span | None, sources: Mapping[str, Mapping[int, str]]) -> tuple[Span, str] | None:
    """A call of one line with its first two arguments, both given by their place, the other way round."""
    node = expression(span, sources) if span is not None else None
    text = source_of(span, sources) if span is not None else None
    if span is None or text is None or "\n" in text or not text.isascii() or not isinstance(node, ast.Call):
        return None
    if len(node.args) < 2 or any(isinstance(argument, ast.Starred) for argument in node.args[:2]):
        return None
    first, second = node.args[:2]
    if first.end_col_offset is None or second.end_col_offset is None:
        return None
    # The expression was read in a bracket of its own.
    a, b = (first.col_offset - 1, first.end_col_offset - 1), (second.col_offset - 1, second.end_col_offset - 1)
    return span, text[: a[0]] + text[slice(*b)] + text[a[1] : b[0]] + text[slice(*a)] + text[b[1] :]
