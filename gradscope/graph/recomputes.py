"""Where a function under `checkpoint` left its first run, when backward ran it again."""

from __future__ import annotations

import math
from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Operation, Recomputed, Run, Span
from gradscope.graph.naming import short_name
from gradscope.graph.refusals import RefusedBackward


class _Stretch(NamedTuple):
    """What one expression calls in a row, and the shape of what it gives."""

    span: Span
    name: str
    shape: tuple[int, ...] | None


class Departure(NamedTuple):
    """The first expression that differs between the runs.

    `first` is what ran the first time, `again` what ran the second time; None where the expression of the other ran in
    addition. Where both are one expression, it gave another shape.
    """

    first: _Stretch | None
    again: _Stretch | None

    @property
    def told(self) -> _Stretch:
        """The one that a reader is to look at."""
        found = self.again or self.first
        assert found is not None
        return found


def departure(ask: Ask, refused: RefusedBackward) -> Departure | None:
    """Where the second run left the first; None where both went the same way, as far as they were seen."""
    recomputed = refused.backward.refused.recomputed if refused.backward.refused is not None else None
    if recomputed is None:
        return None
    first = _first_run(ask.run, recomputed)
    again = _again(recomputed, refused.backward.span)
    for place, (before, now) in enumerate(zip(first, again, strict=False)):
        if before.span == now.span:
            if before.shape != now.shape:
                return Departure(before, now)
            continue
        spans = [stretch.span for stretch in first[place:]]
        returns = before.span in [stretch.span for stretch in again[place:]]
        if now.span in spans and not returns:
            return Departure(before, None)
        return Departure(None if returns else before, now)
    if len(again) < len(first):
        if refused.crash.symptom != "recomputed otherwise":
            return None  # it was cut short by what it raised
        return Departure(first[len(again)], None) if again else None
    return Departure(None, again[len(first)]) if len(again) > len(first) else None


def _first_run(run: Run, recomputed: Recomputed) -> list[_Stretch]:
    """What ran the first time, as far as it was seen."""
    ended = recomputed.ended if recomputed.ended is not None else math.inf
    all_ = (operation for step in run.steps for operation in step.operations)
    operations = sorted((op for op in all_ if recomputed.began < op.id < ended), key=lambda op: op.id)
    around = {operation.within for operation in operations}
    tensors, holder = run.tensor_by_id, run.holder
    found: list[_Stretch] = []
    for operation in operations:
        if operation.id in around or operation.span is None or not _makes(operation):
            continue
        made = tensors.get(holder[operation.outputs[0]])
        _join(found, _Stretch(operation.span, operation.name, made.shape if made is not None else None))
    return found


def _makes(operation: Operation) -> bool:
    return bool(operation.outputs) and not ops.is_a(operation, ops.WRITES_PARTS)


def _again(recomputed: Recomputed, backward: Span | None) -> list[_Stretch]:
    found: list[_Stretch] = []
    for call in recomputed.again:
        if call.span != backward and short_name(call.name) not in ops.WRITES_PARTS:
            _join(found, _Stretch(call.span, call.name, call.shape))
    return found


def _join(found: list[_Stretch], stretch: _Stretch) -> None:
    """The recorder and a mode may take an expression for other numbers of calls: it counts once."""
    if found and found[-1].span == stretch.span:
        found.pop()
    found.append(stretch)


def joins(stretch: _Stretch | None) -> bool:
    """Whether it puts tensors together, as a cache does with what it holds."""
    return stretch is not None and short_name(stretch.name) in ops.JOINS
