"""Masks: what sets some of a softmax's probabilities to 0, and whether they sum to 1 again later."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Operation
from gradscope.graph.flow import StepFlow, flows


class Masked(NamedTuple):
    """An operation that sets some of what `softmax` gave to 0, so that what weighs something sums to less than 1."""

    flow: StepFlow
    softmax: Operation
    mask: Operation
    probabilities: int


def masked_probabilities(ask: Ask) -> list[Masked]:
    """Probabilities of which some are set to 0, and that weigh something without being normalised again."""
    axes = {reading.value: reading.axis for reading in ask.run.softmaxes}
    found = []
    for flow in ask(flows):
        for softmax in flow.operations:
            axis = axes.get(softmax.inputs[0]) if softmax.inputs else None
            if not ops.is_a(softmax, ops.PROBABILITIES) or axis is None or not softmax.outputs:
                continue
            if not flow.history[softmax.outputs[0]] or _is_masked_before(flow, softmax.inputs[0]):
                continue
            masked = _masked_after(flow, softmax, axis)
            if masked is not None:
                found.append(masked)
    return found


def _masked_after(flow: StepFlow, softmax: Operation, axis: int) -> Masked | None:
    """Follow probabilities as long as they keep their shape."""
    shape = _shape(flow, softmax.outputs[0])
    same = {softmax.outputs[0]}
    masked: Masked | None = None
    weighs = False
    for operation in flow.operations:
        if operation.id <= softmax.id or same.isdisjoint(operation.inputs):
            continue
        taken = next(value for value in operation.inputs if value in same)
        if masked is None:
            if _is_mask(flow, operation, taken, softmax, shape, axis):
                masked = Masked(flow, softmax, operation, taken)
                same = set(operation.outputs)
            elif ops.is_a(operation, ops.KEEPS_WEIGHTS):
                same.update(operation.outputs)
            continue
        if ops.is_a(operation, ops.NORMALISES):
            return None  # divided by a sum, or told to a distribution that divides
        scales = all(value == taken or flow.is_scalar(value) for value in operation.inputs)
        if ops.is_a(operation, ops.CONTRACTS) and not scales:
            weighs = weighs or not flow.behind_roots.isdisjoint(operation.outputs)
        elif ops.is_a(operation, ops.KEEPS_WEIGHTS):
            same.update(operation.outputs)
    return masked if weighs else None


def _is_mask(
    flow: StepFlow, operation: Operation, taken: int, softmax: Operation, shape: tuple[int, ...], axis: int
) -> bool:
    """Whether an operation sets probabilities to 0 by a mask that tells places along the axis of the softmax apart.

    Not by chance, as dropout does, and not by the probabilities themselves, as a choice of the largest does.
    """
    if ops.is_a(operation, ops.MASKS):
        if operation.number:
            return False  # it is another number that is put there
    elif not ops.is_a(operation, ops.MULTIPLIES):
        return False
    others = [value for value in operation.inputs if value != taken]
    for other in others:
        mask = flow.tensor(other)
        if mask is None or flow.history[other] or softmax.outputs[0] in flow.behind([other]):
            continue
        varies = len(mask.shape) >= len(shape) - axis and mask.shape[axis - len(shape)] == shape[axis] > 1
        if varies and _is_of_truth(flow, other) and not _is_random(flow, other, softmax):
            return True
    return False


def _is_of_truth(flow: StepFlow, value: int) -> bool:
    """Whether a value says yes or no: it is boolean, or was made of what is."""
    seen = 0
    waiting = [value]
    while waiting and seen < 12:
        seen += 1
        value = waiting.pop()
        tensor, maker = flow.tensor(value), flow.maker.get(value)
        if tensor is not None and (tensor.dtype == "bool" or (tensor.dtype.startswith(("int", "uint")) and seen == 1)):
            return True
        if maker is not None and ops.is_a(maker, ops.TRIANGLES):
            return True
        if maker is not None and ops.is_a(maker, ops.CASTS, ops.KEEPS_ELEMENTS, ops.RESHAPES, ops.COMPLEMENTS):
            waiting += maker.inputs
    return False


def _is_random(flow: StepFlow, value: int, softmax: Operation) -> bool:
    """Whether a mask is drawn within the model, as that of dropout: data are drawn before the model begins."""
    behind = flow.behind(softmax.inputs)
    began = min(
        (op.id for op in flow.operations if any(flow.history[made] and made in behind for made in op.outputs)),
        default=softmax.id,
    )
    drawn = flow.behind([value])
    return any(
        operation.id > began and ops.is_a(operation, ops.DRAWS) and not drawn.isdisjoint(operation.outputs)
        for operation in flow.operations
    )


def _is_masked_before(flow: StepFlow, value: int) -> bool:
    """Whether the scores were masked already: what is set to 0 afterwards are rows in which nothing is left."""
    waiting, seen = [value], {value}
    while waiting:
        maker = flow.maker.get(waiting.pop())
        if maker is None or not ops.is_a(maker, ops.KEEPS_ELEMENTS, ops.MASKS, ops.SCALES, ops.SUMS):
            continue
        if ops.is_a(maker, ops.MASKS):
            return True
        if ops.is_a(maker, ops.DIFFERENCES) and any(not flow.history[source] for source in maker.inputs):
            return True
        fresh = [source for source in maker.inputs if flow.history[source] and source not in seen]
        seen.update(fresh)
        waiting += fresh
    return False


def _shape(flow: StepFlow, value: int) -> tuple[int, ...]:
    tensor = flow.tensor(value)
    return tensor.shape if tensor is not None else ()
