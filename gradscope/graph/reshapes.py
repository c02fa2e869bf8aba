"""Views that take one axis for another: they cut the memory anew where an axis had to be moved."""

from __future__ import annotations

from itertools import accumulate, pairwise, permutations
from math import prod
from operator import mul
from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.axes import Shape, groups, shape_of
from gradscope.graph.facts import Operation
from gradscope.graph.flow import StepFlow, flows


class Mixed(NamedTuple):
    """A view of `before` as `after` that mixes axes. `order` moves whole axes to the same shape, where that is all."""

    flow: StepFlow
    operation: Operation
    before: Shape
    after: Shape
    order: tuple[int, ...] | None


def mixing_reshapes(ask: Ask) -> list[Mixed]:
    """Views in which an axis comes back at another place, and which nobody takes back."""
    found = []
    for flow in ask(flows):
        for operation in flow.operations:
            if not ops.is_a(operation, ops.RECUTS) or not operation.inputs or not operation.outputs:
                continue
            before, after = shape_of(flow, operation.inputs[0]), shape_of(flow, operation.outputs[0])
            if before is None or after is None or before == after or prod(before) != prod(after):
                continue
            parts = [part for part in groups(before, after) if len(part[0]) > 1 and len(part[1]) > 1]
            if not any(_mixes(flow, operation, before, after, *part) for part in parts):
                continue
            if flow.behind_roots.isdisjoint(operation.outputs) or _is_skewed(flow, operation):
                continue
            if not _is_taken_back(flow, operation, before) and not _takes_back(flow, operation, after):
                found.append(Mixed(flow, operation, before, after, _order(before, after)))
    return found


def _mixes(
    flow: StepFlow, operation: Operation, before: Shape, after: Shape, mine: tuple[int, ...], theirs: tuple[int, ...]
) -> bool:
    """Whether an axis of a group comes back at another place of it: else it would be a group of its own."""
    one, other = [before[axis] for axis in mine], [after[axis] for axis in theirs]
    if not set(one) & set(other) or len(one) > 5:
        return False
    if sorted(one) == sorted(other):
        # Data may be cut into windows of other lengths, which only happen to be as long.
        return len(one) > 2 or flow.history[operation.inputs[0]]
    if not flow.history[operation.inputs[0]] and len(one) < 3:
        return False
    split_around = len(one) == 2 and len(other) == 3 and other[1] == one[0] and other[0] * other[2] == one[1]
    if not split_around and not _is_moved_and_merged(one, other):
        return False
    return not (_is_cut_anew(one, other) and _is_summarised(flow, operation))


def _is_moved_and_merged(one: list[int], other: list[int]) -> bool:
    """Whether axes of one shape, moved, give the other by merging and splitting alone, with one of them by itself."""
    for moved in permutations(one):
        if list(moved) == one:
            continue
        parts = list(groups(moved, tuple(other)))
        whole = sum(len(a) for a, _ in parts) == len(one) and sum(len(b) for _, b in parts) == len(other)
        if whole and all(len(a) == 1 or len(b) == 1 for a, b in parts) and any(len(a) == len(b) == 1 for a, b in parts):
            return True
    return False


def _is_cut_anew(one: list[int], other: list[int]) -> bool:
    """Whether splitting and merging neighbours gives the other shape as well, as groups of channels do."""
    ends = sorted({*accumulate(one, mul), *accumulate(other, mul)})
    return all(later % earlier == 0 for earlier, later in pairwise(ends))


def _followed(flow: StepFlow, operation: Operation) -> list[tuple[Operation, int]]:
    """What uses a view, or what was computed from it element by element or row by row, and the value that it takes."""
    found = []
    same = set(operation.outputs)
    rows = (shape_of(flow, operation.outputs[0]) or ())[:-1]
    for later in flow.operations:
        if later.id <= operation.id:
            continue
        taken = next((value for value in later.inputs if value in same), None)
        if taken is None:
            continue
        found.append((later, taken))
        if ops.is_a(later, ops.ELEMENTWISE, ops.KEEPS_ELEMENTS, ops.ROW_BY_ROW):
            same.update(value for value in later.outputs if (shape_of(flow, value) or ())[:-1] == rows)
    return found


def _is_summarised(flow: StepFlow, operation: Operation) -> bool:
    """Whether statistics are taken of what a view gives, as of groups."""
    return any(ops.is_a(later, ops.SUMMARIES) for later, _ in _followed(flow, operation))


def _is_taken_back(flow: StepFlow, operation: Operation, before: Shape) -> bool:
    """Whether a later view restores the first shape, with operations on elements or rows between."""
    for later, taken in _followed(flow, operation):
        if ops.is_a(later, ops.VIEWS) and shape_of(flow, taken) is not None:
            given = shape_of(flow, later.outputs[0]) if later.outputs else None
            if given == before or (given is not None and given[:-1] == before[:-1] and len(before) > 2):
                return True
    return False


def _takes_back(flow: StepFlow, operation: Operation, after: Shape) -> bool:
    """Whether a view restores what another one cut before, with operations on elements or rows between."""
    waiting, seen = [operation.inputs[0]], set[int]()
    while waiting:
        value = waiting.pop()
        maker = flow.maker.get(value)
        if maker is None or value in seen:
            continue
        seen.add(value)
        if ops.is_a(maker, ops.VIEWS) and maker.inputs and shape_of(flow, maker.inputs[0]) == after:
            return True
        if ops.is_a(maker, ops.ELEMENTWISE, ops.KEEPS_ELEMENTS, ops.ROW_BY_ROW):
            shape = shape_of(flow, value)
            waiting += [source for source in maker.inputs if shape_of(flow, source) == shape]
    return False


def _is_skewed(flow: StepFlow, operation: Operation) -> bool:
    """Whether rows are shifted, as for relative positions: padded by one, cut anew, and one dropped."""
    maker = flow.maker.get(operation.inputs[0])
    if maker is None or not ops.is_a(maker, ops.PADS):
        return False
    return any(
        ops.is_a(later, ops.TAKES_A_PLACE) and later.inputs[:1] == operation.outputs[:1] for later in flow.operations
    )


def _order(before: Shape, after: Shape) -> tuple[int, ...] | None:
    """The one order of its axes that gives a shape the other."""
    if len(before) != len(after) or sorted(before) != sorted(after):
        return None
    found = [order for order in permutations(range(len(before))) if tuple(before[axis] for axis in order) == after]
    # Of equal axes those that stay in their order are meant.
    return min(found, key=lambda order: sum(a > b for a, b in pairwise(order))) if found else None
