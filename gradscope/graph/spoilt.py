"""What an operation that made NaN or infinity took: a count of nothing, a constant that float16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Nonfinite, Operation, Run, Tensor
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import callee, expression, operands_of, short_name
from gradscope.graph.sizes import trained

_WHOLE = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64"})
_LEAST_HALF = 2.0**-25  # what is smaller is 0 in float16


def suffering(run: Run, event: Nonfinite) -> list[Tensor]:
    """All that are trained and whose gradients, or values, were not finite; else those that got only zeros for it."""
    held = trained(run)
    spoilt = [
        tensor
        for tensor in held
        if tensor.id in event.tensors
        or (tensor.received is not None and tensor.received.nonfinite)
        or (tensor.start is not None and tensor.change is None)
    ]
    zeroed = [t for t in held if t.received is not None and t.received.steps and t.received.zero == t.received.steps]
    return spoilt or (zeroed if event.kind == "forward" else [])


def counts_nothing(ask: Ask, event: Nonfinite) -> bool:
    """Whether a divisor of 0 is a count, of labels or of selected places: it comes from whole numbers."""
    if event.node != "Div" or event.operand != "other" or event.low != 0 or event.high != 0:
        return False
    for flow, operation in again(ask, event.operation):
        for value in _chain(flow, operation.inputs[-1:]):
            tensor = flow.tensor(value)
            maker = flow.maker.get(value)
            given = [flow.tensor(source) for source in maker.inputs] if maker is not None else []
            if any(each is not None and each.dtype in _WHOLE for each in (tensor, *given)):
                return True
    return False


def _chain(flow: StepFlow, values: tuple[int, ...]) -> Iterator[int]:
    """A value and those that it was computed from, one after the other."""
    seen: set[int] = set()
    while values and values[0] not in seen:
        seen.add(values[0])
        yield values[0]
        maker = flow.maker.get(values[0])
        values = maker.inputs if maker is not None else ()


def vanished_constant(ask: Ask, event: Nonfinite) -> float | None:
    """The constant that was added to what an operation took, where float16 holds it as 0."""
    for flow, operation in again(ask, event.operation):
        for value in operation.inputs:
            maker, tensor = flow.maker.get(value), flow.tensor(value)
            number = maker.number if maker is not None and ops.is_a(maker, ops.SUMS, ops.BOUNDS) else None
            if number and 0 < number < _LEAST_HALF and tensor is not None and tensor.dtype == "float16":
                return number
    return None


def again(ask: Ask, operation: Operation | None) -> Iterator[tuple[StepFlow, Operation]]:
    """An operation in the steps that are kept: itself, else what the same line called there."""
    if operation is None:
        return
    steps = [(flow, other) for flow in ask(flows) for other in flow.step.operations]
    itself = [pair for pair in steps if pair[1].id == operation.id]
    alike = [pair for pair in steps if (pair[1].name, pair[1].span) == (operation.name, operation.span)]
    yield from (itself or alike)[:1]


def is_written_here(run: Run, operation: Operation) -> bool:
    """Whether the program's own line calls an operation: else a library does, and nobody is to change that."""
    span = operation.span
    node = expression(span, run.sources) if span is not None else None
    if node is None or span is None:
        return True  # nothing is known of it
    called = callee(span, run.sources)
    return called == short_name(operation.name) or (called is None and bool(operands_of(node)))
