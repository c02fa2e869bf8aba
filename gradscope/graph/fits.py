"""Layers and the sizes that they take: what was given instead, and the line that fixed the number."""

from __future__ import annotations

import math
from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.calls import Argument, literals_of
from gradscope.graph.facts import Label, Span, Tensor
from gradscope.graph.operands import is_held, tensor_of, way
from gradscope.graph.ops import spelled
from gradscope.graph.refusals import Refusal


class Fit(NamedTuple):
    """A layer and what comes in: the axis that must have a size, that size, and the layer's weight."""

    value: int
    given: Tensor
    weight: Tensor
    axis: int
    wanted: int

    @property
    def size(self) -> int:
        """What the axis has."""
        return self.given.shape[self.axis]


def fit_of(ask: Ask, refused: Refusal) -> Fit | None:
    """What a refused call of a layer takes, and what it was given."""
    operation = refused.operation
    operands = [(value, tensor) for value in operation.inputs if (tensor := tensor_of(ask, value)) is not None]
    taken = next(((value, tensor) for value, tensor in operands if not is_held(tensor)), None)
    weights = [tensor for _, tensor in operands if is_held(tensor) and tensor.shape]
    if taken is None or not weights or not taken[1].shape:
        return None
    value, given, weight, name = *taken, weights[0], spelled(operation.name)
    axis, wanted = -1, weight.shape[-1]
    if ops.is_a(operation, ops.CONVOLVES):
        count = ops.CONVOLUTIONS[name]
        axis = 1 if len(given.shape) == count + 2 else 0
        wanted = weight.shape[0] if ops.is_a(operation, ops.TRANSPOSED) else weight.shape[1] * _groups(refused)
        if len(given.shape) not in (count + 1, count + 2):
            return None
    elif ops.is_a(operation, ops.NORMS_CHANNELS):
        axis, wanted = 1, weight.shape[0]
        if len(given.shape) < 2:
            return None
    elif not (
        ops.is_a(operation, ops.LINEAR, ops.CELLS, ops.ATTENTION, ops.RECURRENT_MODULES, ops.RECURRENT)
        or name in ("layer_norm", "rms_norm")
    ):
        return None
    return Fit(value, given, weight, axis, wanted)


def _groups(refused: Refusal) -> int:
    told = refused.crash.message.partition("groups=")[2].partition(",")[0]
    return int(told) if told.isdigit() else 1


def mend_of_axes(ask: Ask, refused: Refusal, fit: Fit) -> str | None:
    """Where the numbers are right, and the axes are not where the layer looks for them."""
    shape, wanted, operation = fit.given.shape, fit.wanted, refused.operation
    called = name_in_code(fit.given)
    mend = None
    if ops.is_a(operation, ops.LINEAR) and len(shape) > 1:
        parts = [math.prod(shape[start:]) for start in range(len(shape) - 1)]
        if wanted != shape[-1] and wanted in parts:
            start = len(parts) - 1 - parts[::-1].index(wanted)
            return f"flatten it first: `{called}.flatten({start or ''})`"
        others = [axis for axis in range(1, len(shape) - 1) if shape[axis] == wanted != shape[-1]]
        if others:
            mend = f"move that axis to the end: `{called}.transpose({others[-1]}, -1)`"
        elif len(shape) == 2 and shape[0] == wanted != shape[1] and not list(way(ask, fit.value)):
            mend = f"turn it round, so that each row is a sample: `{called}.T`"
    elif ops.is_a(operation, ops.CONVOLVES) and fit.size != wanted and not _convolved(ask, fit.value):
        count = ops.CONVOLUTIONS[spelled(operation.name)]
        if len(shape) == count + 1 and wanted == 1:
            mend = f"give each sample its one channel: `{called}.unsqueeze(1)`"
        elif shape[-1] == wanted and len(shape) == count + 2:
            order = ", ".join(map(str, (0, count + 1, *range(1, count + 1))))
            moved = f"{called}.permute({order})" if count > 1 else f"{called}.transpose(1, 2)"
            mend = f"channels come second: `{moved}`"
    elif ops.is_a(operation, ops.RECURRENT_MODULES, ops.RECURRENT) and len(shape) == 3 and fit.size != wanted:
        others = [axis for axis in range(2) if shape[axis] == wanted]
        if others:
            mend = f"features come last: `{called}.transpose({others[-1]}, 2)`"
    return mend


def _convolved(ask: Ask, value: int) -> bool:
    return any(ops.is_a(stage.operation, ops.CONVOLVES) for stage in way(ask, value))


def name_in_code(tensor: Tensor) -> str:
    """What a tensor may be called in a line that is proposed."""
    name = tensor.name or ""
    return name if name.isidentifier() else "x"


def fixed_at(
    ask: Ask, made: Span | None, said: Argument | None, fit: Fit, call: Span | None
) -> tuple[Span | None, Argument | None, tuple[Label, ...]]:
    """The line that fixed the number, the number there if it can be changed alone, and labels on what is around."""
    sources = ask.run.sources
    if made is None:
        labels = (Label(fit.weight.made, f"made for {fit.wanted:,} here"),) if fit.weight.made is not None else ()
        return call, None, labels
    if said is not None and said.literal:
        return made, said, ()
    handed = literals_of(fit.weight.built, fit.wanted, sources)
    if said is not None and said.text.isidentifier() and len(handed) == 1 and fit.weight.built is not None:
        return fit.weight.built, handed[0], (Label(made, f"`{said.text}` is {fit.wanted:,} here"),)
    labels = (Label(fit.weight.built, "built here"),) if fit.weight.built not in (None, made) else ()
    return made, None, tuple(label for label in labels if label.span is not None)


def number_of(ask: Ask, fit: Fit) -> tuple[str, int]:
    """The number as a reader would write it, `8 * 13 * 13` for what was flattened, and its value."""
    shape = fit.given.shape
    if fit.axis == -1 and len(shape) == 4 and _convolved(ask, fit.value):
        return _times(shape[1:]), math.prod(shape[1:])
    stage = next(way(ask, fit.value), None)
    if fit.axis == -1 and stage is not None and ops.is_a(stage.operation, ops.FLATTENS):
        before = tensor_of(ask, stage.taken)
        if before is not None and len(before.shape) > 2 and math.prod(before.shape[1:]) == fit.size:
            return _times(before.shape[1:]), fit.size
    return str(fit.size), fit.size


def _times(sizes: tuple[int, ...]) -> str:
    return " * ".join(map(str, sizes)) if math.prod(sizes) != max(sizes) else str(max(sizes))
