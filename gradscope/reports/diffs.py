"""A mend as a diff: the lines that its edits change, before and after."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from gradscope.graph.facts import Edit
from gradscope.graph.rewriting import applied

Sources = Mapping[str, Mapping[int, str]]


class Change(NamedTuple):
    """Lines that stand together in a file: `before` as they are from the line `first` on, `after` as they are to be."""

    file: str
    first: int
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def column(self) -> int:
        """The column of the first letter that differs, from 1."""
        before, after = self.before[0] if self.before else "", self.after[0] if self.after else ""
        same = takewhile(lambda letters: letters[0] == letters[1], zip(before, after, strict=False))
        return sum(1 for _ in same) + 1


def changes(edits: Sequence[Edit], sources: Sources) -> list[Change]:
    """What edits change, in the order of the lines; empty where some of these lines were not kept."""
    found: list[Change] = []
    for file in dict.fromkeys(edit.span.file for edit in edits):
        kept = sources.get(file, {})
        for first, last, together in _clusters([edit for edit in edits if edit.span.file == file]):
            lines = [kept.get(number, "") for number in range(first, last + 1)]
            # The line after the last one may not exist: an edit that takes whole lines ends at its beginning.
            if not kept.keys() >= set(range(first, last)) or (last not in kept and last - 1 not in kept):
                return []
            shifted = [_shifted(edit, first - 1) for edit in together]
            found += _narrowed(file, first, lines, applied(shifted, lines))
    return found


def _clusters(edits: list[Edit]) -> Iterator[tuple[int, int, list[Edit]]]:
    """Edits whose lines touch, with the first and the last of these lines."""
    waiting: list[Edit] = []
    first = last = 0
    for edit in sorted(edits, key=lambda edit: (edit.span.line, edit.span.column or 1)):
        end = edit.span.end_line or edit.span.line
        if waiting and edit.span.line <= last + 1:
            waiting.append(edit)
            last = max(last, end)
            continue
        if waiting:
            yield first, last, waiting
        waiting, first, last = [edit], edit.span.line, end
    if waiting:
        yield first, last, waiting


def _shifted(edit: Edit, less: int) -> Edit:
    span = edit.span
    end = span.end_line or span.line
    place = type(span)(span.file, span.line - less, span.column, end - less, span.end_column)
    return Edit(place, edit.text)


def _narrowed(file: str, first: int, before: list[str], after: list[str]) -> Iterator[Change]:
    """The lines that really differ."""
    for what, start, end, new, new_end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if what != "equal":
            yield Change(file, first + start, tuple(before[start:end]), tuple(after[new:new_end]))
