"""Terms of a loss that are divided by their own value: they are 1, whatever they were."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.graph import limits, ops
from gradscope.graph.facts import Operation
from gradscope.graph.flow import StepFlow, data_of
from gradscope.graph.naming import short_name


class Ratios(NamedTuple):
    """The divisions that a loss is a sum of; `own` are those of a value by itself, `attached` says that one is whole.

    A ratio is attached where its divisor has history as well: then nothing of it can be learned.
    """

    own: tuple[Operation, ...]
    others: tuple[Operation, ...]
    attached: bool


def ratios(flow: StepFlow, root: int) -> Ratios:
    """The divisions at the ends of the sums and scalings that a scalar root is."""
    own: list[Operation] = []
    others: list[Operation] = []
    attached = False
    waiting, seen = [root], {root}
    while waiting:
        value = waiting.pop()
        operation = flow.maker.get(value)
        if operation is None:
            continue
        divisor = _divisor(operation)
        if divisor is not None or _divides_by_number(flow, operation):
            itself = _is_of_itself(flow, operation, divisor)
            (own if itself else others).append(operation)
            attached = attached or (itself and divisor is not None and flow.history[divisor])
        elif ops.is_a(operation, ops.SUMS, ops.SCALES, ops.CASTS):
            fresh = [source for source in data_of(operation) if source not in seen and flow.history[source]]
            seen.update(fresh)
            waiting += fresh
    return Ratios(tuple(own), tuple(others), attached)


def _divisor(operation: Operation) -> int | None:
    """The divisor of a division of one tensor by another."""
    if not ops.is_a(operation, ops.DIVIDES) or len(operation.inputs) < 2:
        return None
    return operation.inputs[1]


def _divides_by_number(flow: StepFlow, operation: Operation) -> bool:
    """Whether a tensor is divided by a number that has left torch before."""
    return (
        ops.is_a(operation, ops.DIVIDES, ops.MULTIPLIES)
        and len(operation.inputs) == 1
        and operation.number is not None
        and _left(flow, operation, operation.inputs[0])
    )


def _left(flow: StepFlow, operation: Operation, value: int) -> bool:
    """Whether the number that a division takes, or one over it, is what a value was when it left torch."""
    number = operation.number or 0.0
    wanted = [number] if ops.is_a(operation, ops.DIVIDES) else [1 / number] if number else []
    return any(
        exit_.number is not None
        and exit_.id < operation.id
        and _same(exit_.number, number_)
        and any(_is_the_same(flow, value, taken) for taken in exit_.inputs)
        for exit_ in flow.operations
        if not exit_.outputs and ops.is_a(exit_, ops.EXITS)
        for number_ in wanted
    )


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= limits.EXACT * max(abs(one), abs(other))


def _is_of_itself(flow: StepFlow, operation: Operation, divisor: int | None) -> bool:
    if divisor is None:
        return True  # its number is told by `_left`
    return any(_is_the_same(flow, operation.inputs[0], origin) for origin in _origins(flow, divisor))


def _is_the_same(flow: StepFlow, one: int, other: int, depth: int = 0) -> bool:
    """Whether two values are one, or come from the same operations on the same values, with or without history."""
    one, other = (min(_origins(flow, value, ops.COPIES)) for value in (one, other))
    if one == other:
        return True
    made, again = flow.maker.get(one), flow.maker.get(other)
    if made is None or again is None or depth > _DEEP or made.outputs.index(one) != again.outputs.index(other):
        return False
    alike = short_name(made.name) == short_name(again.name) and made.number == again.number
    return (
        alike
        and len(made.inputs) == len(again.inputs) > 0
        and all(_is_the_same(flow, *pair, depth + 1) for pair in zip(made.inputs, again.inputs, strict=True))
    )


_DEEP = 6  # operations in a row that a line writes twice


def _origins(flow: StepFlow, value: int, kinds: frozenset[str] = ops.COPIES | ops.BOUNDS | ops.CASTS) -> set[int]:
    """A value, and what it is a copy of, without history or bounded away from 0."""
    found = {value}
    while (operation := flow.maker.get(value)) is not None and ops.is_a(operation, kinds):
        if len(operation.inputs) != 1:
            break
        (value,) = operation.inputs
        found.add(value)
    return found
