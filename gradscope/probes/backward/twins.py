"""Rows of a parameter that are equal when training starts, get equal gradients, and are equal still at the end.

Looked for once, in the first gradient of each tensor, at a few columns; what has no rows alike there is never looked at
again. Of what has, a few later passes tell whether its gradients part the rows, as they mostly do in the first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradscope.probes.tensors.quiet import detached, item_of, set_item
from gradscope.probes.tensors.shards import values_of

if TYPE_CHECKING:
    from gradscope.probes.records import Subject
    from gradscope.probes.tape import Tape

_COLUMNS = 16  # of a row, that are compared before all of it is
_MOST = 100_000  # rows
_SHARE = 0.5  # of the rows, that have a twin
# Relative to the largest element: kernels add up in another order for rows at the edge of a block.
_ROUNDING = 1e-5


@dataclass(slots=True)
class Twins:
    """Rows that are alike: `first` has for each row the first one that is equal to it."""

    subject: Subject
    first: torch.Tensor
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor whose rows are alike at the end, how many are and how many there are, and who is alike with it."""

    subject: Subject
    alike: int
    rows: int
    looks: int
    others: tuple[Subject, ...]


def look_at_twins(tape: Tape, arrived: Iterable[tuple[Subject, torch.Tensor, torch.Tensor | None]]) -> None:
    """A pass is over, and the step that uses its gradients is to come."""
    for subject, tensor, gradient in arrived:
        if subject.serial not in tape.twins_sought:
            tape.twins_sought.add(subject.serial)
            first = alike(tensor, 0)
            if first is not None:
                tape.twins[subject.serial] = Twins(subject, first)
        twins = tape.twins.get(subject.serial)
        if twins is None or gradient is None:
            continue
        values = values_of(gradient)
        if values is None or not _has_rows(values) or values.shape[:1] != twins.first.shape:
            del tape.twins[subject.serial]
        elif bool(values.any()):
            if _are_alike(values.flatten(1), twins.first):
                twins.looks += 1
            else:
                del tape.twins[subject.serial]


def alike(tensor: torch.Tensor, dim: int) -> torch.Tensor | None:
    """For each slice along a dimension the first that is equal to it; None unless many have a twin."""
    values = values_of(tensor)
    if values is None or not _has_rows(values) or not values.is_floating_point():
        return None
    rows = detached(values).transpose(0, dim).flatten(1)
    if not (1 < rows.shape[0] <= _MOST and rows.shape[1] > 1):
        return None
    stride = max(1, rows.shape[1] // _COLUMNS)
    some = item_of(rows, (slice(None), slice(None, None, stride)))
    if _grouped(some) is None:
        return None
    return _grouped(rows) if stride > 1 else _grouped(some)


def _has_rows(values: torch.Tensor) -> bool:
    return values.layout is torch.strided and not values.is_nested and values.dim() > 1


def _grouped(rows: torch.Tensor) -> torch.Tensor | None:
    """The first row equal to each, found by sorting them by one number each."""
    wide = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)  # which has no float64
    places = torch.arange(1, wide.shape[1] + 1, dtype=wide.dtype, device=wide.device)
    order = (wide * torch.sin(places)).sum(1).argsort(stable=True)
    ordered = item_of(rows, order)
    same = (item_of(ordered, slice(1, None)) == item_of(ordered, slice(None, -1))).all(1)
    nothing = torch.zeros(1, dtype=torch.bool, device=rows.device)
    paired = torch.cat([nothing, same]) | torch.cat([same, nothing])
    if int(paired.sum()) < max(2, _SHARE * len(rows)):
        return None
    begins = torch.cat([torch.ones(1, dtype=torch.bool, device=rows.device), ~same])
    starts = item_of(item_of(order, begins), begins.cumsum(0) - 1)
    first = torch.empty_like(order)
    set_item(first, order, starts)
    return first


def _are_alike(rows: torch.Tensor, first: torch.Tensor) -> bool:
    """Whether each row is still equal to its first twin, but for rounding."""
    rows = detached(rows)
    largest = float(rows.abs().max())
    apart = float((rows - item_of(rows, first.to(rows.device))).abs().max())
    return math.isfinite(largest) and apart <= _ROUNDING * largest


def twins_at_end(tape: Tape) -> Iterator[Found]:
    """Those whose rows are alike at the end, each with what belongs to the same units: biases, and who takes them."""
    held = [
        (subject, tensor)
        for subject in tape.leaves.values()
        if subject.course is not None and subject.course.optimizer is not None and (tensor := subject.ref()) is not None
    ]
    for twins in tape.twins.values():
        tensor = twins.subject.ref()
        values = values_of(tensor) if tensor is not None else None
        if values is None or not twins.looks or values.shape[:1] != twins.first.shape:
            continue
        if not _are_alike(values.flatten(1), twins.first):
            continue
        rows = len(twins.first)
        counts = torch.bincount(twins.first, minlength=rows)
        others = [
            subject
            for subject, other in held
            if subject is not twins.subject and subject.serial not in tape.twins and _belongs(other, twins)
        ]
        yield Found(twins.subject, int(item_of(counts, counts > 1).sum()), rows, twins.looks, tuple(others))


def _belongs(tensor: torch.Tensor, twins: Twins) -> bool:
    """Whether a tensor has one element a unit, or takes what they give, and is the same for those that are alike."""
    values = values_of(tensor)
    if values is None or values.layout is not torch.strided or not values.is_floating_point():
        return False
    rows = len(twins.first)
    if values.dim() == 1 and len(values) == rows:
        return _are_alike(values.unsqueeze(1), twins.first)
    if values.dim() > 1 and values.shape[1] == rows:
        return bool(values.any()) and _are_alike(values.transpose(0, 1).flatten(1), twins.first)
    return False
