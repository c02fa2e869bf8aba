"""The sum that a loss is: its terms, and what scales them."""

from __future__ import annotations

from gradscope.graph import ops
from gradscope.graph.facts import Operation
from gradscope.graph.flow import StepFlow


def summing(flow: StepFlow, root: int) -> list[Operation]:
    """The chain of sums and scalings by constants that a scalar root ends with."""
    chain, waiting, seen = [], [root], {root}
    while waiting:
        operation = flow.maker.get(waiting.pop())
        if operation is None or not ops.is_a(operation, ops.SUMS, ops.SCALES):
            continue
        chain.append(operation)
        fresh = [i for i in operation.inputs if i not in seen and flow.history[i] and flow.is_scalar(i)]
        seen.update(fresh)
        waiting += fresh
    return chain


def dead_terms(flow: StepFlow, root: int) -> list[tuple[int, Operation]]:
    """The summands of a scalar root without history and who adds them; through sums, and scalings by constants."""
    if not flow.history[root]:
        return []
    dead: list[tuple[int, Operation]] = []
    waiting, seen = [root], {root}
    while waiting:
        value = waiting.pop()
        operation = flow.maker.get(value)
        if operation is None or not ops.is_a(operation, ops.SUMS, ops.SCALES):
            continue
        inputs = [i for i in operation.inputs if i != value]
        if ops.is_a(operation, ops.SCALES) and sum(flow.history[i] for i in inputs) != 1:
            continue
        for source in inputs:
            tensor = flow.tensor(source)
            if (
                source in seen
                or tensor is None
                or (any(size != 1 for size in tensor.shape) and not ops.is_a(operation, ops.REDUCES))
            ):
                continue
            seen.add(source)
            if flow.history[source]:
                waiting.append(source)
            elif ops.is_a(operation, ops.SUMS) and source in flow.maker:
                dead.append((source, operation))
    return dead
