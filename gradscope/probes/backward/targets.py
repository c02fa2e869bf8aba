"""What a loss compares with what an activation has cut off: how much of it lies beyond, looked at in a few passes.

Only operations that are written anyway are gone through: those of steps that are kept, in which what compares can be
shown. What they compared is alive before the pass: the target in the program, the result of an activation in the graph.
Nothing is looked at where no activation leads straight to a loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradscope.graph import ops
from gradscope.graph.naming import short_name
from gradscope.probes.backward.nonfinite import graph_behind
from gradscope.probes.program.names import function_name
from gradscope.probes.tensors.quiet import detached
from gradscope.probes.tensors.shards import values_of

if TYPE_CHECKING:
    from gradscope.probes.records import OperationRecord, ValueRecord
    from gradscope.probes.tape import Tape

_LARGEST = 4_000_000
_MARGIN = 1e-3  # of the range of the targets: rounding, or labels that lie at the limit


@dataclass(slots=True)
class Compared:
    """An activation and the operation that compared its result, over the passes that were looked at."""

    operation: OperationRecord
    squash: OperationRecord
    looks: int = 0
    beyond: float = 0.0  # the sum of the shares
    low: float = math.inf
    high: float = -math.inf

    def add(self, beyond: float, low: float, high: float) -> None:
        """One more look."""
        self.looks += 1
        self.beyond += beyond
        self.low, self.high = min(self.low, low), max(self.high, high)


def look_at_targets(tape: Tape, roots: Sequence[torch.Tensor]) -> None:
    """A pass is about to run: see what the losses of the step have compared."""
    written = tape.written_anyway()
    makers = {value[0]: operation for operation in written for value in operation.outputs}
    for operation in written:
        name = _name(operation.function)
        if operation.within is None and operation.nodes[1] > operation.nodes[0] and name in _COMPARING:
            for squash, target in _pairs(operation, makers, logits=name in ops.TAKES_LOGITS):
                _look(tape, operation, squash, target, roots)


def _pairs(
    operation: OperationRecord, makers: dict[int, OperationRecord], *, logits: bool
) -> Iterator[tuple[OperationRecord, ValueRecord | None]]:
    """The activations whose results an operation compares, each with the target; logits have none that counts."""
    if logits:
        squash = _squash_behind(operation.inputs[0], makers) if operation.inputs else None
        if squash is not None and _name(squash.function) in ops.RECTIFIES:
            yield squash, None
        return
    if len(operation.inputs) != 2:
        return
    for prediction, target in (operation.inputs, operation.inputs[::-1]):
        squash = _squash_behind(prediction, makers) if prediction[2] and not target[2] else None
        if squash is not None:
            yield squash, target


def _squash_behind(value: ValueRecord, makers: dict[int, OperationRecord]) -> OperationRecord | None:
    """The activation or dropout that a value was picked from, with nothing but views and choices between."""
    seen = set[int]()
    while value[0] not in seen and (maker := makers.get(value[0])) is not None:
        seen.add(value[0])
        name = _name(maker.function)
        if name in ops.RANGES:
            return maker
        if name in ops.DROPOUTS:
            return maker if maker.number else None
        if name not in ops.PICKS or not maker.inputs:
            return None
        value = maker.inputs[0]
    return None


def _look(
    tape: Tape,
    operation: OperationRecord,
    squash: OperationRecord,
    target: ValueRecord | None,
    roots: Sequence[torch.Tensor],
) -> None:
    key = (operation.function, operation.site, squash.site)
    if target is None:
        given = _given(squash, roots)
        told = None if given is None else (float((given == 0).sum()) / given.numel(), 0.0, 0.0)
    elif _name(squash.function) in ops.DROPOUTS:
        told = float(squash.number or 0.0), 0.0, 0.0
    else:
        told = _beyond(target, *ops.RANGES[_name(squash.function)])
    if told is not None:
        tape.compared.setdefault(key, Compared(operation, squash)).add(*told)


def _given(squash: OperationRecord, roots: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """What an activation gave, as its node has saved it."""
    for node in graph_behind(roots):
        if squash.nodes[0] <= node._sequence_nr() < squash.nodes[1]:
            saved = getattr(node, "_saved_result", None)
            values = values_of(saved) if isinstance(saved, torch.Tensor) else None
            return values if values is not None and 0 < values.numel() <= _LARGEST else None
    return None


def _beyond(target: ValueRecord, low: float, high: float) -> tuple[float, float, float] | None:
    """The share of a target that lies outside of a range, and its own range."""
    tensor = target[1].ref()
    if tensor is None or target[1].value != target[0] or not tensor.is_floating_point():
        return None
    values = values_of(tensor)
    if values is None or not 0 < values.numel() <= _LARGEST:
        return None
    values = detached(values)
    least, most = (float(bound) for bound in torch.aminmax(values))
    if not math.isfinite(least) or not math.isfinite(most):
        return None
    margin = _MARGIN * max(most - least, abs(least), abs(most))
    outside = (values < low - margin) | (values > high + margin)
    return float(outside.sum()) / values.numel(), least, most


@functools.cache
def _short(function: str) -> str:
    return short_name(function)


def _name(function: object) -> str:
    return _short(function_name(function))


_COMPARING = ops.COMPARES_VALUES | ops.TAKES_LOGITS
