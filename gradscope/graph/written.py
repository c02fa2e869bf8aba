"""What an operation writes into: a tensor, or what that is a view of."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.facts import Operation, Tensor
from gradscope.graph.flow import StepFlow


class Written(NamedTuple):
    """What an operation was to write into.

    `base` is the tensor itself, or the one that the target is a `view` of, `splitter` what gave the target as one of
    several views. `by_gradient` says that what is written was computed from a gradient of it.
    """

    base: Tensor | None
    view: bool
    splitter: Operation | None
    by_gradient: bool


def written(flow: StepFlow, operation: Operation) -> Written:
    """The target comes first among what an operation takes, or, for `out=`, last; a view leads back by its makers."""
    takers = (operation.inputs[:1], operation.inputs[-1:])
    ends = [_base(flow, value) for values in takers for value in values]
    leaves = [
        end for end in ends if (tensor := flow.tensor(end[0])) is not None and tensor.leaf and tensor.requires_grad
    ]
    if not ends:
        return Written(None, False, None, False)
    value, view, splitter = (leaves or ends)[0]
    behind = flow.behind(operation.inputs[1:])
    by_gradient = any(
        ops.is_a(other, ops.GRADIENTS) and not behind.isdisjoint(other.outputs) for other in flow.operations
    )
    return Written(flow.tensor(value), view, splitter, by_gradient)


def _base(flow: StepFlow, value: int) -> tuple[int, bool, Operation | None]:
    """The value that another is a view of, whether it is one, and the operation that gave it among several views."""
    view, splitter = False, None
    while True:
        maker = flow.maker.get(value)
        if maker is None or not maker.inputs or not ops.is_a(maker, ops.SINGLE_VIEWS, ops.SEVERAL_VIEWS):
            return value, view, splitter
        if ops.is_a(maker, ops.SEVERAL_VIEWS):
            splitter = splitter or maker
        value, view = maker.inputs[0], True
