"""Dead ends: what is computed from a tensor, with history, and then goes into nothing that is differentiated."""

from __future__ import annotations

from gradscope.graph.facts import Operation, Tensor
from gradscope.graph.flow import StepFlow, data_of


def dead_end(flow: StepFlow, tensor: Tensor) -> Operation | None:
    """The last result in a step that a gradient could come back from, and which nothing differentiable takes.

    Single numbers go first: they are losses. What is computed from parameters alone, such as a norm for a log, tells
    nothing of where the way of the data ends.
    """
    starts = flow.values_of.get(tensor.id, ())
    reach = flow.reach(starts, frozenset())
    alive = reach.alive.difference(starts)
    if not alive:
        return None
    taken = {value for operation in flow.operations if _carries(flow, operation) for value in data_of(operation)}
    ends = [
        operation
        for operation in flow.operations
        if operation.span is not None
        and operation.within is None
        and not alive.isdisjoint(operation.outputs)
        and taken.isdisjoint(value for value in operation.outputs if flow.history[value])
        and _takes_data(flow, operation)
    ]
    numbers = [end for end in ends if all(map(flow.is_scalar, end.outputs))]
    return next(reversed(numbers or ends), None)


def _carries(flow: StepFlow, operation: Operation) -> bool:
    return any(flow.history[value] for value in operation.outputs)


def _takes_data(flow: StepFlow, operation: Operation) -> bool:
    """Whether more than parameters, and single numbers, goes into what an operation gives."""
    constants = (flow.tensor(value) for value in flow.behind(operation.inputs) if not flow.history[value])
    return any(held is not None and not held.nn_parameter and not held.is_scalar for held in constants)
