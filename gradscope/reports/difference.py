"""What a change did: two reports side by side."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gradscope.graph.facts import Finding
from gradscope.reports.document import Document, TensorRow
from gradscope.reports.escaping import plain, shown

_LISTED = 20


class Difference(msgspec.Struct, frozen=True):
    """Findings of the second report that the first has not, and the other way round; tensors that began to learn.

    A tensor learns where a gradient reached it and its value moved. `stays` counts the findings that both have.
    """

    gone: tuple[Finding, ...]
    new: tuple[Finding, ...]
    stays: int
    learns_now: tuple[str, ...]
    learns_no_longer: tuple[str, ...]


def difference(before: Document, after: Document) -> Difference:
    """Compare two reports. A finding is the same if its rule is and it names the same tensors or the same line."""
    left = list(before.findings)
    new: list[Finding] = []
    for finding in after.findings:
        same = next((other for other in left if _is_same(other, finding)), None)
        if same is None:
            new.append(finding)
        else:
            left.remove(same)
    learnt = {row.name for row in before.tensors if learns(row)}
    learn = {row.name for row in after.tensors if learns(row)}
    return Difference(
        tuple(left),
        tuple(new),
        len(after.findings) - len(new),
        tuple(row.name for row in after.tensors if row.name in learn - learnt),
        tuple(row.name for row in before.tensors if row.name in learnt - learn),
    )


def _is_same(one: Finding, other: Finding) -> bool:
    if one.rule != other.rule:
        return False
    if one.tensors and set(one.tensors) == set(other.tensors):
        return True
    places = [(row.span.file, row.span.line) if row.span is not None else None for row in (one, other)]
    return places[0] == places[1]


def learns(row: TensorRow) -> bool:
    """Whether a gradient reached a tensor and its value moved."""
    return row.received is not None and row.received.steps > 0 and (bool(row.moved) or row.from_zero)


def difference_text(found: Difference, before: str, after: str) -> str:
    """The difference as text."""
    found = plain(found)
    lines = [f"gradscope: {shown(before)} -> {shown(after)}"]
    lines[0] += f", {_count(len(found.gone), 'gone')}, {_count(len(found.new), 'new')}"
    lines[0] += f", {found.stays} in both" if found.stays else ""
    for word, findings in (("gone", found.gone), ("new", found.new)):
        for row in findings:
            place = f" {row.span.file}:{row.span.line}" if row.span is not None else ""
            lines.append(f"{word}: {row.severity}[{row.rule}]{place}: {row.message}")
    lines += _listed("learns now", found.learns_now)
    lines += _listed("learns no longer", found.learns_no_longer)
    if len(lines) == 1:
        lines.append("the same tensors learn")
    return "\n".join(lines) + "\n"


def _count(number: int, what: str) -> str:
    return f"{number} finding{'' if number == 1 else 's'} {what}"


def _listed(word: str, names: Sequence[str]) -> list[str]:
    lines = [f"{word}: {name}" for name in names[:_LISTED]]
    if len(names) > _LISTED:
        lines.append(f"{word}: {len(names) - _LISTED} more")
    return lines
