"""What leads to a loss straight: the comparison with a target, and the layer that gives the prediction."""

from __future__ import annotations

from gradscope.graph import ops
from gradscope.graph.facts import Operation, Tensor
from gradscope.graph.flow import StepFlow


def is_a_loss(flow: StepFlow, operation: Operation) -> bool:
    """Whether what a comparison gives is reduced to a loss: no layer, and no other comparison, lies between.

    A difference is one only if something makes it count the same in both directions; logarithms of a softmax only if
    they go into a likelihood.
    """
    if ops.is_a(operation, ops.LOG_SOFTMAXES):
        return any(
            ops.is_a(user, ops.LOSSES_OF_LOGARITHMS) and user.inputs[:1] == operation.outputs[:1]
            for user in flow.operations
        )
    even = not ops.is_a(operation, ops.DIFFERENCES)
    values = set(operation.outputs)
    later = [other for other in flow.operations if other.id > operation.id]
    for user in later:
        if values.isdisjoint(user.inputs) or not user.outputs:
            continue
        both = ops.is_a(user, ops.SUMS) and not ops.is_a(user, ops.REDUCES)
        if both and not all(flow.is_scalar(value) for value in user.inputs):
            continue
        even = even or ops.is_a(user, ops.EVEN)
        if ops.is_a(user, ops.ELEMENTWISE, ops.EVEN):
            values.update(user.outputs)
    return even and not values.isdisjoint(flow.roots)


def layer_before(flow: StepFlow, operation: Operation) -> list[Tensor]:
    """The parameters of the operation that gave what an activation took."""
    value = operation.inputs[0] if operation.inputs else None
    seen: set[int] = set()
    while value is not None and value not in seen and (maker := flow.maker.get(value)) is not None:
        seen.add(value)
        tensors = [tensor for source in maker.inputs if (tensor := flow.tensor(source)) is not None]
        found = [tensor for tensor in tensors if tensor.leaf and tensor.requires_grad and tensor.name is not None]
        if found:
            return found
        if not ops.is_a(maker, ops.PICKS, ops.DROPOUTS, ops.CASTS, frozenset(ops.RANGES)):
            return []
        value = maker.inputs[0] if maker.inputs else None
    return []
