"""Code frames: the user's lines with a caret under the guilty expression."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

from gradscope.graph.facts import Finding, Span
from gradscope.reports.cells import cells
from gradscope.reports.escaping import shown_letters

WIDTH = 88  # columns, so that a report pastes into a forum
_LONGEST = 200  # a line of code beyond this is shown around what is pointed at
_BEFORE, _AFTER = 40, 100
_CODES = {"error": "31;1", "warning": "33;1", "info": "36;1"}


def paint(text: str, severity: str, colour: bool) -> str:
    """The text in the severity's colour for a terminal."""
    return f"\x1b[{_CODES[severity]}m{text}\x1b[0m" if colour else text


def frame(finding: Finding, sources: Mapping[str, Mapping[int, str]], colour: bool = False) -> list[str]:
    """The lines of a plain finding and its labels, in file order; other files follow in frames of their own."""
    assert finding.span is not None
    marks: dict[str, list[tuple[Span, str, bool]]] = {}
    marks.setdefault(finding.span.file, []).append((finding.span, finding.caret, True))
    for label in finding.labels:
        marks.setdefault(label.span.file, []).append((label.span, label.message, False))
    lines: list[str] = []
    for file, found in marks.items():
        first = next((span for span, _, main in found if main), found[0][0])
        arrow = "  -->" if file == finding.span.file else "  :::"
        lines.append(f"{arrow} {file}:{first.line}" + (f":{first.column}" if first.column else ""))
        lines += _snippet(found, sources.get(file, {}), finding.severity, colour)
    return lines


def _snippet(found: list[tuple[Span, str, bool]], source: Mapping[int, str], severity: str, colour: bool) -> list[str]:
    shown: set[int] = set()
    for span, _, main in found:
        shown.add(span.line)
        if main:
            shown.update({span.line - 1, span.line + 1} & source.keys())
    shown = {number for number in shown if source.get(number, "").strip() or any(number == s.line for s, _, _ in found)}
    if not any(number in source for number in shown):
        return []
    gutter = len(str(max(shown)))
    lines = [f"{'':{gutter}} |"]
    previous = None
    for number in sorted(shown):
        if previous is not None and number > previous + 1:
            lines.append("...")
        previous = number
        whole = source.get(number, "")
        here = sorted((mark for mark in found if mark[0].line == number), key=lambda mark: not mark[2])
        code = excerpt(whole, here[0][0].column if here else None)
        lines.append(f"{number:>{gutter}} | {code.text}".rstrip())
        for span, message, main in here:
            if message:
                start, end = map(code.cell, _columns(span, whole))
                pointer = ("^" if main else "-") * max(1, end - start)
                margin = f"{'':{gutter}} | "
                if len(margin) + start + len(pointer) + 1 + cells(message) <= WIDTH:
                    lines.append(f"{margin}{'':{start}}{paint(f'{pointer} {message}', severity, colour and main)}")
                else:
                    # Too long to stand beside the pointer: below it, as far to the right as there is room.
                    indent = max(0, min(start, WIDTH - len(margin) - cells(message)))
                    lines.append(f"{margin}{'':{start}}{paint(pointer, severity, colour and main)}")
                    lines.append(f"{margin}{'':{indent}}{paint(message, severity, colour and main)}")
    lines.append(f"{'':{gutter}} |")
    return lines


class Excerpt(NamedTuple):
    """A line of code as it is shown: `text`, and the cell of it at which each letter of the line begins, from 0.

    `first` is the place of the letter that is shown first; the last of `edges` is where the last one ends.
    """

    text: str
    first: int
    edges: tuple[int, ...]

    def cell(self, place: int) -> int:
        """The cell at which the letter at a place of the whole line begins, or that of the next which is shown."""
        return self.edges[min(max(0, place - self.first), len(self.edges) - 1)]


def excerpt(code: str, column: int | None) -> Excerpt:
    """A line of code, or of a very long one the part around a column. A tab is one blank, so that pointers fit."""
    start, end = 0, len(code)
    if len(code) > _LONGEST:
        place = (column or 1) - 1
        start = place - _BEFORE if place > _BEFORE else 0
        end = min(place + _AFTER, end)
    before, behind = "..." if start else "", "..." if end < len(code) else ""
    letters = shown_letters(code[start:end].replace("\t", " "))
    edges = accumulate(map(cells, letters), initial=len(before))
    return Excerpt(before + "".join(letters) + behind, start, tuple(edges))


def _columns(span: Span, code: str) -> tuple[int, int]:
    """Where the pointer starts and ends on the span's first line, from 0."""
    indent = len(code) - len(code.lstrip())
    start = span.column - 1 if span.column else indent
    one_line = span.end_line in (None, span.line) and span.end_column is not None
    return start, (span.end_column or 0) - 1 if one_line else len(code)
