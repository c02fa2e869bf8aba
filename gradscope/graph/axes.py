"""Axes: what becomes of one axis of a value in the operations that follow, told by their shapes."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from itertools import combinations

from gradscope.graph import ops
from gradscope.graph.facts import UNKNOWN, Operation
from gradscope.graph.flow import StepFlow
from gradscope.graph.naming import expression, short_name

Shape = tuple[int, ...]


def shape_of(flow: StepFlow, value: int) -> Shape | None:
    """The shape of a value where all its sizes are numbers."""
    tensor = flow.tensor(value)
    return tensor.shape if tensor is not None and UNKNOWN not in tensor.shape else None


def groups(before: Shape, after: Shape) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut two shapes of as many elements where their cumulative products meet: the axes of each that go together.

    Axes of size 1 belong to no group.
    """
    mine, theirs = [[i for i, size in enumerate(shape) if size != 1] for shape in (before, after)]
    a, b = 0, 0
    while a < len(mine) and b < len(theirs):
        start_a, start_b = a, b
        one, other = before[mine[a]], after[theirs[b]]
        a, b = a + 1, b + 1
        while one != other:
            if one < other and a < len(mine):
                one *= before[mine[a]]
                a += 1
            elif other < one and b < len(theirs):
                other *= after[theirs[b]]
                b += 1
            else:
                return
        yield tuple(mine[start_a:a]), tuple(theirs[start_b:b])


def reduced(before: Shape, after: Shape) -> set[tuple[int, ...]]:
    """The sets of axes of which a reduction may have left nothing, or a single place."""
    found: set[tuple[int, ...]] = set()
    axes = range(len(before))
    for count in range(1, min(len(before), 4) + 1):
        for gone in combinations(axes, count):
            kept = tuple(1 if axis in gone else before[axis] for axis in axes)
            if after in (kept, tuple(before[axis] for axis in axes if axis not in gone)):
                found.add(gone)
    return found


def moved(flow: StepFlow, operation: Operation, dims: int) -> tuple[int, ...] | None:
    """For each axis of what a transposition gives, the axis of what it takes; None where that is not known."""
    before, after = (shape_of(flow, values[0]) for values in (operation.inputs, operation.outputs))
    name = short_name(operation.name)
    if before is None or after is None or len(before) != len(after):
        return None
    if name in ("t", "T", "mT") and dims >= 2:
        return (*range(dims - 2), dims - 1, dims - 2)
    written = _written(flow, operation)
    if name == "permute" and written is not None and len(written) == dims:
        return tuple(axis % dims for axis in written)
    if name in ("transpose", "swapaxes", "swapdims") and written is not None and len(written) == 2:
        order = list(range(dims))
        one, other = (axis % dims for axis in written)
        order[one], order[other] = order[other], order[one]
        return tuple(order)
    if len(set(before)) == len(before):
        return tuple(before.index(size) for size in after)
    return None


def _written(flow: StepFlow, operation: Operation) -> list[int] | None:
    """The whole numbers that a call is written with."""
    node = expression(operation.span, flow.run.sources) if operation.span is not None else None
    if not isinstance(node, ast.Call) or node.keywords:
        return None
    if not isinstance(node.func, ast.Attribute) or node.func.attr != short_name(operation.name):
        return None
    arguments: Sequence[ast.expr] = node.args
    if len(arguments) == 1 and isinstance(arguments[0], (ast.Tuple, ast.List)):
        arguments = arguments[0].elts
    numbers: list[int] = []
    for argument in arguments:
        try:
            number = ast.literal_eval(argument)
        except ValueError:
            if numbers:
                return None
            continue  # the tensor itself: `torch.transpose(x, 0, 1)`
        if not isinstance(number, int):
            return None
        numbers.append(number)
    return numbers


def carried(flow: StepFlow, operation: Operation, taken: int, axis: int) -> dict[int, int]:
    """Where an axis of a value is in what an operation gives, for each result in which it is still an axis of its own.

    Of a view that merges it with others, it is the axis that it has become a part of.
    """
    before = shape_of(flow, taken)
    found: dict[int, int] = {}
    for value in operation.outputs:
        after = shape_of(flow, value)
        if before is None or after is None or value == taken:
            continue
        place: int | None = None
        if ops.is_a(operation, ops.TRANSPOSES):
            order = moved(flow, operation, len(before))
            place = order.index(axis) if order is not None and axis in order else None
        elif ops.is_a(operation, ops.VIEWS):
            ends = [theirs for mine, theirs in groups(before, after) if axis in mine and len(theirs) == 1]
            place = ends[0][0] if ends else None
        elif before == after:
            place = axis
        elif ops.is_a(operation, ops.MULTIPLIES, ops.SUMS) and len(after) >= len(before):
            aligned = axis + len(after) - len(before)
            place = aligned if after[aligned] == before[axis] else None
        if place is not None:
            found[value] = place
    return found
