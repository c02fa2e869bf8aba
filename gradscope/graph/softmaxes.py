"""Softmaxes whose axis is another one than what follows works along."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.axes import carried, reduced, shape_of
from gradscope.graph.facts import Operation
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import short_name


class Crossed(NamedTuple):
    """A softmax along one axis of its value, and an operation that picks or weighs along another one."""

    flow: StepFlow
    softmax: Operation
    axis: int
    right: int
    user: Operation


def crossed_softmaxes(ask: Ask) -> list[Crossed]:
    """Softmaxes along an axis that the loss does not index, and along which nothing is weighed or summed."""
    axes: dict[int, set[int]] = {}
    for reading in ask.run.softmaxes:
        axes.setdefault(reading.value, set()).add(reading.axis)
    found = []
    for flow in ask(flows):
        for softmax in flow.operations:
            if not ops.is_a(softmax, ops.SOFTMAXES) or not softmax.outputs or not softmax.inputs:
                continue
            along = axes.get(softmax.inputs[0], set())
            # Along both axes at once: dual softmax, contrastive losses.
            if len(along) == 1 and flow.history[softmax.outputs[0]]:
                crossed = _Way(flow, softmax, *along).crossed()
                if crossed is not None:
                    found.append(crossed)
    return found


class _Way:
    """What follows a softmax. `places` holds the place of its axis in each value that still has it."""

    def __init__(self, flow: StepFlow, softmax: Operation, axis: int) -> None:
        self.flow, self.softmax, self.axis = flow, softmax, axis
        self.shape = shape_of(flow, softmax.outputs[0]) or ()
        self.places = {softmax.outputs[0]: axis}
        # For each value, the axes of the softmax's own result, by their places: any other came by broadcasting.
        self.own = {softmax.outputs[0]: {place: place for place in range(len(self.shape))}}

    def crossed(self) -> Crossed | None:
        shape = self.shape
        if self.axis >= len(shape) or shape[self.axis] < 2 or sum(size > 1 for size in shape) < 2:
            return None
        first: tuple[Operation, int] | None = None
        for operation in self.flow.operations:
            if operation.id <= self.softmax.id or self.places.keys().isdisjoint(operation.inputs):
                continue
            taken = next(value for value in operation.inputs if value in self.places)
            if self.flow.behind_roots.isdisjoint(operation.outputs):
                continue
            used = self._used(operation, taken)
            if used is not None:
                if used == self.axis or used not in self.own[taken].values():
                    return None  # it is the axis that is meant, or none of the softmax's
                first = first or (operation, used)
                continue
            for value, place in carried(self.flow, operation, taken, self.places[taken]).items():
                own = {
                    axis: there
                    for mine, axis in self.own[taken].items()
                    if (there := carried(self.flow, operation, taken, mine).get(value)) is not None
                }
                self.places[value] = place
                self.own[value] = {there: axis for axis, there in own.items() if axis == self.axis or there != place}
        if first is None:
            return None
        operation, right = first
        return Crossed(self.flow, self.softmax, self.axis, right, operation)

    def _used(self, operation: Operation, taken: int) -> int | None:
        """The axis of the softmax's result that an operation picks from, or weighs and sums along; None of others.

        Where it is no axis that tells whether the softmax is wrong, it is that of the softmax itself.
        """
        shape, own = shape_of(self.flow, taken) or (), self.own[taken]
        name, place = short_name(operation.name), self.places[taken]
        if name in ops.PICKS_A_CLASS and operation.inputs[0] == taken and len(shape) > 1:
            square = len(shape) == 2 and shape[0] == shape[1]
            return self.axis if square and place == 0 else own.get(1, self.axis)
        if name == "gather" and operation.inputs[0] == taken and len(operation.inputs) > 1:
            index = shape_of(self.flow, operation.inputs[1])
            if index is not None and len(index) == len(shape):
                picked = [axis for axis, size in enumerate(index) if size == 1 < shape[axis]]
                return own.get(picked[0], self.axis) if len(picked) == 1 else self.axis
        if name in ops.MATRIX_PRODUCTS and len(operation.inputs) > 1:
            return self._contracted(operation, taken, shape, own, place)
        if name in ops.SUMS_AWAY:
            return self._summed(operation, taken, shape, own, place)
        return None

    def _contracted(
        self, operation: Operation, taken: int, shape: tuple[int, ...], own: dict[int, int], place: int
    ) -> int:
        first = operation.inputs[0] == taken
        contracted = len(shape) - 1 if first or len(shape) == 1 else len(shape) - 2
        if place < len(shape) - 2:
            return own.get(contracted, self.axis)  # a batch of products is normalised over the batch
        # Over the queries instead of the keys: where there are as many of each, they are no slots or clusters.
        self_attention = first and shape[-1] == shape[-2] and self._is_product(self.softmax.inputs[0])
        normalised = contracted != place and self_attention and len(shape) > 2
        return own.get(contracted, self.axis) if normalised else self.axis

    def _is_product(self, value: int) -> bool:
        """Whether scores are products of queries and keys, both computed by what is in training."""
        for _ in range(6):
            maker = self.flow.maker.get(value)
            if maker is None or not maker.inputs:
                return False
            if ops.is_a(maker, ops.PRODUCTS_OF_MATRICES):
                return all(self.flow.history[source] for source in maker.inputs[:2])
            if not ops.is_a(maker, ops.SCALES, ops.KEEPS_ELEMENTS, ops.SUMS):
                return False
            value = maker.inputs[0]
        return False

    def _summed(
        self, operation: Operation, taken: int, shape: tuple[int, ...], own: dict[int, int], place: int
    ) -> int | None:
        after = shape_of(self.flow, operation.outputs[0]) if operation.outputs else None
        if after is None:
            return self.axis
        ways = reduced(shape, after)
        if not ways or any(place in gone for gone in ways):
            return self.axis  # it is summed away
        weighed = {own[axis] for gone in ways for axis in gone if axis in own and self.shape[own[axis]] > 1}
        if len(ways) == 1 and len(weighed) == 1 and self._is_samples(place, shape):
            return weighed.pop()
        return self.axis

    def _is_samples(self, place: int, shape: tuple[int, ...]) -> bool:
        """Whether the axis is that of the samples: the data that the loss is computed from have as many.

        Capsules and slots are normalised along one axis and summed along another, neither of which is the batch.
        """
        size = shape[place]
        if place != 0 or self.axis != 0:
            return False
        behind = map(self.flow.tensor, self.flow.behind_roots)
        leaves = (tensor for tensor in behind if tensor is not None and tensor.leaf and not tensor.requires_grad)
        return any(tensor.shape[:1] == (size,) for tensor in leaves)
