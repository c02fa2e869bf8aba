"""The sum that a loss is: its terms, and what scales them."""

from __future__ import annotations

import ast

from gradscope.graph import ops
from gradscope.graph.facts import Operation, Span
from gradscope.graph.flow import StepFlow
from gradscope.graph.naming import expression


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


def reduction_of(flow: StepFlow, value: int) -> Operation | None:
    """The operation that made one number of many, of which nothing but sums and scalings has made this one since."""
    waiting, seen = [value], {value}
    while waiting:
        operation = flow.maker.get(waiting.pop(0))
        if operation is None:
            continue
        if any(not flow.is_scalar(source) for source in operation.inputs[:1]):
            whole = ops.is_a(
                operation,
                ops.REDUCES,
                ops.COMPARES,
                ops.DIRECTED_LOSSES,
                ops.LOSSES_OF_LOGITS,
                ops.LOSSES_OF_LOGARITHMS,
            )
            return operation if whole else None
        if ops.is_a(operation, ops.SUMS, ops.SCALES):
            fresh = [source for source in operation.inputs if flow.history[source] and source not in seen]
            seen.update(fresh)
            waiting += fresh
    return None


def elementwise_after(flow: StepFlow, operation: Operation) -> set[int]:
    """What nothing but arithmetic on elements and reductions has made of the results of an operation."""
    reached = set(operation.outputs)
    for later in flow.operations:
        follows = later.id > operation.id and not reached.isdisjoint(later.inputs)
        if follows and ops.is_a(later, ops.ELEMENTWISE):
            reached.update(later.outputs)
    return reached


def is_uniform(flow: StepFlow, value: int) -> bool:
    """Whether a value is made of one number alone, as a uniform prior is: `torch.full`, `torch.ones`."""
    behind = flow.behind([value])
    makers = [operation for operation in flow.operations if not behind.isdisjoint(operation.outputs)]
    if not makers:
        tensor = flow.tensor(value)
        return tensor is not None and tensor.made is not None and _fills(flow, tensor.made)
    sources = [one for one in behind if one not in flow.maker]
    return all(
        ops.is_a(operation, ops.UNIFORM, ops.ELEMENTWISE, ops.KEEPS_ELEMENTS, ops.SOFTMAXES) for operation in makers
    ) and all(
        (tensor := flow.tensor(one)) is not None and tensor.made is not None and _fills(flow, tensor.made)
        for one in sources
    )


def _fills(flow: StepFlow, span: Span) -> bool:
    node = expression(span, flow.run.sources)
    return any(
        isinstance(part, ast.Attribute) and part.attr in ops.UNIFORM for part in (ast.walk(node) if node else ())
    )
