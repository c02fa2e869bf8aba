"""Plain numbers that come back: which operation takes what has left torch before, told by the numbers themselves."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gradscope.graph import limits, ops
from gradscope.graph.facts import Operation, Span
from gradscope.graph.flow import StepFlow


class Returned(NamedTuple):
    """A number that an operation takes, and the exits of one line that gave it."""

    flow: StepFlow
    taker: Operation
    exits: tuple[Operation, ...]


def taker_of(flow: StepFlow, exit_: Operation) -> Operation | None:
    """The operation on the way to a loss that takes the very number which left torch here."""
    number = exit_.number
    if number is None or not _is_particular(number):
        return None
    return next(
        (
            operation
            for operation in flow.operations
            if operation.id > exit_.id
            and operation.number == number
            and not flow.behind_roots.isdisjoint(operation.outputs)
        ),
        None,
    )


def returned(takers: Iterable[tuple[StepFlow, Operation]]) -> Iterator[Returned]:
    """Of operations that take a number, those whose number is what left torch before, or a fixed multiple of it.

    Two steps prove a multiple: the number has changed as what left has. In one step only the number itself counts.
    """
    steps: dict[tuple[Span, int], list[tuple[StepFlow, Operation]]] = defaultdict(list)
    turns: Counter[tuple[int, Span]] = Counter()
    left: dict[int, list[Operation]] = {}
    for flow, taker in takers:
        if taker.span is not None and taker.number:
            steps[taker.span, turns[id(flow), taker.span]].append((flow, taker))
            turns[id(flow), taker.span] += 1
            if id(flow) not in left:
                left[id(flow)] = [operation for operation in flow.operations if _is_exit(operation)]
    for found in steps.values():
        given = [_by_line(exit_ for exit_ in left[id(flow)] if exit_.id < taker.id) for flow, taker in found]
        for line in given[0]:
            if all(line in exits for exits in given):
                for gather in (_all, _last):
                    groups = [gather(exits[line]) for exits in given]
                    totals = [sum(exit_.number or 0.0 for exit_ in group) for group in groups]
                    if _is_multiple([taker.number or 0.0 for _, taker in found], totals):
                        yield Returned(*found[0], groups[0])
                        break


def _is_exit(operation: Operation) -> bool:
    return operation.number is not None and not operation.outputs and ops.is_a(operation, ops.EXITS)


def _by_line(exits: Iterable[Operation]) -> dict[Span, list[Operation]]:
    lines: dict[Span, list[Operation]] = defaultdict(list)
    for exit_ in exits:
        if exit_.span is not None:
            lines[exit_.span].append(exit_)
    return lines


def _all(exits: Sequence[Operation]) -> tuple[Operation, ...]:
    return tuple(exits)


def _last(exits: Sequence[Operation]) -> tuple[Operation, ...]:
    return tuple(exits[-1:])


def _is_multiple(numbers: Sequence[float], totals: Sequence[float]) -> bool:
    if not all(math.isfinite(value) and value for value in (*numbers, *totals)):
        return False
    if all(math.isclose(total, totals[0], rel_tol=limits.OTHER) for total in totals):
        pairs = zip(numbers, totals, strict=True)
        return all(
            _is_particular(number) and math.isclose(number, total, rel_tol=limits.EXACT) for number, total in pairs
        )
    factors = [number / total for number, total in zip(numbers, totals, strict=True)]
    return all(math.isclose(factor, factors[0], rel_tol=limits.EXACT) for factor in factors)


def _is_particular(number: float) -> bool:
    """Whether a number is none that programs write down, such as 0.5: two that are equal are then the same."""
    return math.isfinite(number) and round(number, 3) != number
