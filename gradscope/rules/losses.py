"""Losses that are given the wrong things: swapped arguments, weights for samples that are no longer apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Help, Operation, Span, Tensor
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import shape_text, short_name, spelled_operands
from gradscope.graph.sums import elementwise_after, is_uniform, reduction_of
from gradscope.graph.swaps import swapped_arguments
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.mends.losses import unreduced


@rule("warning")
def target_gradient(ask: Ask) -> Iterator[Claim[_Swapped]]:
    """A loss gets the prediction in the place of the target, and the target in the place of the prediction.

    `kl_div`, `cross_entropy` and `binary_cross_entropy` take the prediction first and are not symmetric: the other way
    round they compute something else, which has its least value elsewhere. It shows in the gradient: the target has
    one, and what stands in the place of the prediction has none.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            target = torch.rand(8, 3).softmax(dim=1)
            loss = nn.functional.kl_div(target, net(torch.rand(8, 4)).log_softmax(dim=1), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            target = torch.rand(8, 3).softmax(dim=1)
            loss = nn.functional.kl_div(net(torch.rand(8, 4)).log_softmax(dim=1), target, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for flow in ask(flows):
        losses = [operation for operation in flow.operations if ops.is_a(operation, ops.DIRECTED_LOSSES)]
        for operation in losses:
            if len(operation.inputs) < 2 or flow.behind_roots.isdisjoint(operation.outputs):
                continue
            first, second = operation.inputs[:2]
            if flow.history[first] or not flow.history[second] or is_uniform(flow, first):
                continue
            given, target = flow.tensor(first), flow.tensor(second)
            same = given is not None and target is not None and given.shape == target.shape
            # Both ways round together they are symmetric; and what a cut has made a constant is a prediction.
            if same and not _is_both_ways(flow, losses, second) and not _is_predicted(flow, first):
                spoilt = ask.run.nonfinite is not None and ask.run.nonfinite.operation == operation
                yield Claim(
                    operation.span,
                    _Swapped(flow, operation),
                    # Logarithms of what is no probability are NaN.
                    besides=((Trouble.NOT_FINITE, None),) if spoilt else (),
                    severity="error" if spoilt else None,
                )


@dataclass(frozen=True, slots=True)
class _Swapped:
    """A loss whose target has a history, and whose prediction has none."""

    flow: StepFlow
    operation: Operation


def _is_both_ways(flow: StepFlow, losses: Sequence[Operation], target: int) -> bool:
    """Whether what is a target here is the prediction, or what that was made of, in another loss of the kind."""
    whole = flow.behind([target])
    own = {value for value in whole if flow.history[value] and (tensor := flow.tensor(value)) and not tensor.leaf}
    predictions = [other.inputs[0] for other in losses if other.inputs and flow.history[other.inputs[0]]]
    return any(not own.isdisjoint(_near(flow, prediction)) for prediction in predictions)


def _near(flow: StepFlow, value: int, steps: int = 4) -> set[int]:
    """A value and what a few operations have made it of."""
    found, latest = {value}, {value}
    for _ in range(steps):
        latest = {source for one in latest if (maker := flow.maker.get(one)) for source in maker.inputs}
        latest = {source for source in latest if (tensor := flow.tensor(source)) and not tensor.leaf}
        found |= latest
    return found


def _is_predicted(flow: StepFlow, value: int) -> bool:
    """Whether a value without history was computed from what is in training."""
    return any(
        tensor is not None and tensor.leaf and tensor.requires_grad and tensor.optimizer is not None
        for tensor in map(flow.tensor, flow.behind([value]))
    )


@target_gradient.words
def _(told: Sequence[Claim[_Swapped]], ask: Ask) -> Story:
    swapped = told[0].evidence
    operation, name = swapped.operation, short_name(swapped.operation.name)
    tensors = [swapped.flow.tensor(value) for value in operation.inputs[:2]]
    names = [tensor.name for tensor in tensors if tensor is not None and tensor.name]
    names += spelled_operands(operation.span, ask.run.sources)[:2]
    edit = swapped_arguments(operation.span, ask.run.sources)
    return Story(
        f"`{name}` gets a constant as its prediction, and what is trained as its target",
        operation.span,
        "the first argument has no history, and the second has one",
        tuple(dict.fromkeys(names)),
        facts=(f"note: `{name}` takes the prediction first and then the target, and is not symmetric",),
        help=(Help("swap the two", (Edit(*edit),) if edit is not None else ()),),
    )


@rule("warning")
def weights_after_reduction(ask: Ask) -> Iterator[Claim[_Weighted]]:
    """Weights of single samples meet a loss that is one number already.

    A loss reduces to the mean of the batch unless it is told `reduction="none"`. The product with the weights of the
    samples is then the same mean times each of them: their mean scales the loss, and all samples count the same.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x, weights = torch.rand(8, 4), torch.rand(8, 1)
            loss = (weights * nn.functional.mse_loss(net(x), x.sum(dim=1, keepdim=True))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x, weights = torch.rand(8, 4), torch.rand(8, 1)
            loss = (weights * nn.functional.mse_loss(net(x), x.sum(dim=1, keepdim=True), reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for flow in ask(flows):
        for operation in flow.operations:
            if ops.is_a(operation, ops.PRODUCTS) and len(operation.inputs) == 2:
                weighted = _weighted(flow, operation)
                if weighted is not None and not elementwise_after(flow, operation).isdisjoint(flow.roots):
                    yield Claim(operation.span, weighted)


@dataclass(frozen=True, slots=True)
class _Weighted:
    """Weights that meet what `reduction` has made of as many samples as there are weights."""

    flow: StepFlow
    operation: Operation
    reduction: Operation
    weights: Tensor


def _weighted(flow: StepFlow, operation: Operation) -> _Weighted | None:
    for loss, value in (operation.inputs, operation.inputs[::-1]):
        weights, whole = flow.tensor(value), flow.tensor(loss)
        if weights is None or whole is None or not flow.history[loss] or whole.shape:
            continue
        samples = max(weights.shape, default=1)
        # What is trained itself weighs tasks, or channels; per sample there is one number in one axis.
        if samples < 2 or sum(size > 1 for size in weights.shape) != 1 or (weights.requires_grad and weights.leaf):
            continue
        reduction = reduction_of(flow, loss)
        if reduction is None or not reduction.inputs:
            continue
        reduced = flow.tensor(reduction.inputs[0])
        # What a number is divided by is a scale, and what comes from the same parameters is no weight of theirs.
        scales = ops.is_a(operation, ops.DIVIDES) and loss == operation.inputs[1]
        apart = not any(flow.history[shared] for shared in flow.behind([loss]) & flow.behind([value]))
        if reduced is not None and reduced.shape[:1] == (samples,) and apart and not scales:
            return _Weighted(flow, operation, reduction, weights)
    return None


@weights_after_reduction.words
def _(told: Sequence[Claim[_Weighted]], ask: Ask) -> Story:
    weighted = told[0].evidence
    operation, weights = weighted.operation, weighted.weights
    before = short_name(weighted.reduction.name)
    called = f"`{weights.name}`" if weights.name else "the weights"
    here: Span | None = operation.span
    reduced = weighted.flow.tensor(weighted.reduction.inputs[0])
    shape = reduced.shape if reduced is not None else ()
    inside = before in ops.COMPARES | ops.DIRECTED_LOSSES | ops.LOSSES_OF_LOGITS | ops.LOSSES_OF_LOGARITHMS
    return Story(
        f"{max(weights.shape)} weights multiply a loss that is one number: no sample is weighted",
        here,
        f"{called} of shape {shape_text(weights.shape)} meets what `{before}` has reduced to a scalar",
        tuple(dict.fromkeys(filter(None, (weights.name, *_spelled(weighted, ask))))),
        facts=("note: the product is the unweighted loss times each weight, and only the mean of the weights counts",),
        help=(
            Help(
                'give the loss `reduction="none"`, and reduce the product' if inside else f"multiply before `{before}`",
                unreduced(ask, weighted.reduction, shape, weights.shape),
            ),
        ),
    )


def _spelled(weighted: _Weighted, ask: Ask) -> Iterator[str]:
    """How the weights are written where they meet the loss."""
    made = weighted.flow.tensor(weighted.reduction.outputs[0])
    for name in spelled_operands(weighted.operation.span, ask.run.sources):
        if made is None or name != made.name:
            yield name
