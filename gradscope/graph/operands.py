"""Where the operands of a call come from: their makers over all steps, and the shapes on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Module, Operation, Span, Tensor
from gradscope.graph.flow import data_of
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.refusals import Refusal

_WAY = 8  # operations of a way that a reader can follow


class Stage(NamedTuple):
    """An operation on the way to a value: what it took, and what it gave."""

    operation: Operation
    taken: int
    given: int


def makers(ask: Ask) -> Mapping[int, Operation]:
    """The operation that made each value, in whatever step."""
    return {
        value: operation
        for step in ask.run.steps
        for operation in step.operations
        for value in operation.outputs
        if value not in operation.inputs
    }


def module_at(ask: Ask, path: str | None) -> Module | None:
    """The module of a path."""
    return ask(_modules).get(path) if path is not None else None


def _modules(ask: Ask) -> Mapping[str, Module]:
    return {module.path: module for module in ask.run.modules}


def tensor_of(ask: Ask, value: int) -> Tensor | None:
    """The tensor that held a value."""
    return ask.run.tensor_by_id.get(ask.run.holder.get(value, -1))


def is_held(tensor: Tensor | None) -> bool:
    """Whether a module holds a tensor as its own, or an optimizer trains it."""
    return tensor is not None and (tensor.nn_parameter or tensor.registered is not None or tensor.optimizer is not None)


def way(ask: Ask, value: int) -> Iterator[Stage]:
    """The operations that a value comes from, the latest first: from each on to what it computes with.

    That is the first operand that no module holds.
    """
    seen: set[int] = set()
    while value not in seen:
        seen.add(value)
        operation = ask(makers).get(value)
        if operation is None:
            return
        taken = [source for source in data_of(operation) if not is_held(tensor_of(ask, source))]
        if not taken:
            return
        yield Stage(operation, taken[0], value)
        value = taken[0]


def shapes_told(ask: Ask, refused: Refusal, value: int) -> str | None:
    """The shapes on the way to what was refused: `x 4x1x28x28 -> conv2d 4x8x26x26 -/- linear`."""
    stages = []
    for stage in way(ask, value):
        stages.append(stage)
        if len(stages) == _WAY:
            break
    first = tensor_of(ask, stages[-1].taken if stages else value)
    if first is None:
        return None
    parts = [f"{first.name or '...'} {shape_text(first.shape)}"]
    for stage in reversed(stages):
        given = tensor_of(ask, stage.given)
        if given is not None:
            parts += ["->", f"{short_name(stage.operation.name)} {shape_text(given.shape)}"]
    return " ".join([*parts, "-/-", short_name(refused.operation.name)])


def layer_behind(ask: Ask, value: int, size: int) -> tuple[Operation, Tensor] | None:
    """The layer that gave a value its last size, through operations that leave each row what it is; and its weight."""
    for operation in ask(_through_rows, value):
        weight = weight_of(ask, operation)
        if weight is not None and ops.is_a(operation, ops.LINEAR):
            return (operation, weight) if weight.shape and weight.shape[0] == size else None
    return None


def _through_rows(ask: Ask, value: int) -> list[Operation]:
    found = []
    for stage in way(ask, value):
        found.append(stage.operation)
        rows = ops.is_a(stage.operation, ops.ELEMENTWISE, ops.KEEPS_ELEMENTS, ops.SOFTMAXES)
        if ops.is_a(stage.operation, ops.LINEAR) or not rows:
            break
    return found


def weight_of(ask: Ask, operation: Operation) -> Tensor | None:
    """The weight that a layer computes with: the first of its operands that a module holds."""
    held = (tensor_of(ask, value) for value in operation.inputs)
    return next((tensor for tensor in held if tensor is not None and is_held(tensor)), None)


class Origin(NamedTuple):
    """Where a tensor, or what it was computed from, came to be what it is; `operation` where one made it so."""

    span: Span | None
    tensor: Tensor
    operation: Operation | None


def origin_of_type(ask: Ask, value: int) -> Origin | None:
    """Where a value got its type: the operation that made it of another type, or the line that made the first."""
    return _origin(ask, value, lambda tensor: tensor.dtype)


def origin_of_device(ask: Ask, value: int) -> Origin | None:
    """Where a value came to its device."""
    return _origin(ask, value, lambda tensor: tensor.device)


def _origin(ask: Ask, value: int, of: Callable[[Tensor], str]) -> Origin | None:
    tensor = tensor_of(ask, value)
    if tensor is None:
        return None
    for stage in way(ask, value):
        taken = tensor_of(ask, stage.taken)
        if taken is None:
            break
        if of(taken) != of(tensor):
            return Origin(stage.operation.span, tensor_of(ask, stage.given) or tensor, stage.operation)
        tensor, value = taken, stage.taken
    maker = ask(makers).get(value)
    return Origin(maker.span if maker is not None and maker.span else tensor.made, tensor, maker)
