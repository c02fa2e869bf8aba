"""Semantics: what a program computes is not what its author will have meant."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Operation, Span, Tensor
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import expression, shape_text, short_name, spelled_operands
from gradscope.graph.sums import elementwise_after
from gradscope.rules.claim import Claim, Story, rule
from gradscope.rules.mends import losses


@rule("warning")
def double_softmax(ask: Ask) -> Iterator[Claim[_Twice]]:
    """A loss that takes logits or log-probabilities gets what are probabilities already.

    `cross_entropy` and `binary_cross_entropy_with_logits` take logits. Of probabilities, which lie between 0 and 1,
    they make a distribution that is almost flat: gradients become small, and the loss cannot come near 0. `nll_loss`,
    `ctc_loss` and `kl_div` take log-probabilities, as `log_softmax` gives them, and take no logarithm themselves.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.cross_entropy(net(torch.rand(8, 4)), torch.randint(0, 3, (8,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.cross_entropy(net(torch.rand(8, 4)), torch.randint(0, 3, (8,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    summed = {reading.value: reading.summed for reading in ask.run.probabilities}
    told: set[Span | None] = set()
    for flow in ask(flows):
        for operation in flow.operations:
            if operation.span in told:
                continue
            twice = _twice_squashed(flow, operation, summed) or _unlogged(flow, operation)
            if twice is not None:
                told.add(operation.span)
                yield Claim(operation.span if twice.unlogged else ("twice", twice.first.span), twice)


@dataclass(frozen=True, slots=True)
class _Twice:
    """An operation is given a value that `first` has made probabilities: logits, or their logarithm, are expected."""

    flow: StepFlow
    operation: Operation
    first: Operation
    value: int
    unlogged: bool

    @property
    def name(self) -> str | None:
        """What the value is called."""
        tensor = self.flow.tensor(self.value)
        return tensor.name if tensor is not None else None


def _twice_squashed(flow: StepFlow, operation: Operation, summed: Mapping[int, bool]) -> _Twice | None:
    value = next((value for value in operation.inputs if value in summed), None)
    if value is None or not ops.is_a(operation, ops.SQUASHING) or not flow.history[value]:
        return None
    first = _squashed_before(flow, value, summed[value])
    if first is None or not _is_loss(flow, operation):
        return None
    return _Twice(flow, operation, first, value, unlogged=False)


def _unlogged(flow: StepFlow, operation: Operation) -> _Twice | None:
    if not ops.is_a(operation, ops.LOSSES_OF_LOGARITHMS) or not operation.inputs:
        return None
    if not flow.history[operation.inputs[0]]:
        return None  # it is no prediction
    first = _squashed_before(flow, operation.inputs[0], summed=False)
    if first is None or flow.behind_roots.isdisjoint(operation.outputs):
        return None
    return _Twice(flow, operation, first, operation.inputs[0], unlogged=True)


@double_softmax.words
def _(told: Sequence[Claim[_Twice]], ask: Ask) -> Story:
    twice, *others = (claim.evidence for claim in told)
    operation, first = twice.operation, twice.first
    labels: tuple[Label, ...] = ()
    if first.span is not None and first.span != operation.span:
        labels = (Label(first.span, f"`{short_name(first.name)}` makes them probabilities here"),)
    if twice.unlogged:
        return _unlogged_story(twice, labels, ask)
    again = (other.operation.span for other in others[:3])
    labels += tuple(Label(span, "and here") for span in again if span is not None)
    return _twice_story(twice, labels, ask)


# Losses of log-probabilities, and what they make of probabilities.
_LOGARITHMS = {
    "nll_loss": "note: so the loss is a mean of probabilities times -1, whose gradient fades where they are wrong",
    "ctc_loss": "note: so no step of a path counts less than 1, which is certain, and the loss sinks below 0",
    "kl_div": "note: so the loss is least where all of the probability lies on one class, not at the target",
}


def _squashed_before(flow: StepFlow, value: int, summed: bool) -> Operation | None:
    """The softmax or sigmoid that made a value a probability.

    What sums to 1 comes from a softmax wherever it lies behind (a mixture, a vote, a product with a one-hot table);
    what only lies in [0, 1], from one whose results were kept as they were.
    """
    firsts = ops.SOFTMAXES if summed else ops.SOFTMAXES | {"sigmoid"}
    waiting, seen = [value], {value}
    while waiting:
        operation = flow.maker.get(waiting.pop(0))
        if operation is None:
            continue
        made = short_name(operation.name)
        if made in firsts and made != "log_softmax":
            return operation
        if not summed and made not in ops.KEEPS_ELEMENTS:
            continue
        fresh = [source for source in operation.inputs if flow.history[source] and source not in seen]
        seen.update(fresh)
        waiting += fresh
    return None


def _is_loss(flow: StepFlow, operation: Operation) -> bool:
    """Whether what an operation squashes is the prediction of a loss, rather than a gate or weights of attention."""
    name = short_name(operation.name)
    if name in ops.LOSSES_OF_LOGITS:
        return not flow.behind_roots.isdisjoint(operation.outputs)
    if name in ("log_softmax", "logsigmoid"):
        return not flow.behind_roots.isdisjoint(operation.outputs)
    values = set(operation.outputs)
    for later in flow.operations:
        if later.id > operation.id and not values.isdisjoint(later.inputs):
            if ops.is_a(later, ops.LIKELIHOODS):
                return not flow.behind_roots.isdisjoint(later.outputs)
            if ops.is_a(later, ops.KEEPS_ELEMENTS):
                values.update(later.outputs)
    return False


def _twice_story(twice: _Twice, labels: tuple[Label, ...], ask: Ask) -> Story:
    again, before = short_name(twice.operation.name), short_name(twice.first.name)
    squash, name = ops.SQUASHES[again], twice.name
    what = f"`{name}` are" if name else "these are"
    applies = f"`{again}` applies {squash} to" if again != squash else f"`{again}` is applied again to"
    instead = {
        "softmax": "give the loss logits: leave out the first softmax, or take `nll_loss` of the logarithm",
        "sigmoid": "give the loss logits: leave out the first sigmoid, or take `binary_cross_entropy`",
    }[squash]
    mixed = _squashed_before(twice.flow, twice.value, summed=False) is None
    mend = losses.taken_as_probabilities(ask, twice.operation) if mixed else losses.left_out(ask, twice.first)
    return Story(
        f"{applies} what `{before}` has made probabilities",
        twice.operation.span,
        f"{what} probabilities already, and logits are expected",
        (name,) if name else (),
        labels,
        ("note: of numbers between 0 and 1 it makes an almost flat distribution, with small gradients",),
        (Help(instead, mend),),
    )


def _unlogged_story(twice: _Twice, labels: tuple[Label, ...], ask: Ask) -> Story:
    loss, before = short_name(twice.operation.name), short_name(twice.first.name)
    name, instead = twice.name, "logsigmoid" if before == "sigmoid" else "log_softmax"
    return Story(
        f"`{loss}` takes log-probabilities, and gets the probabilities that `{before}` has made",
        twice.operation.span,
        f"{f'`{name}`' if name else 'these'} are probabilities, and their logarithm is expected",
        (name,) if name else (),
        labels,
        () if before == "sigmoid" else (_LOGARITHMS[loss],),
        (Help(f"take `{instead}` in place of `{before}`", losses.as_logarithms(ask, twice.first)),),
    )


@rule("warning")
def loss_broadcast(ask: Ask) -> Iterator[Claim[_Pair]]:
    """Prediction and target of different shapes are broadcast against each other in a loss.

    Of shapes (n, 1) and (n,) torch makes (n, n): every prediction is compared with every target. The loss still falls,
    to what predicting the mean of all targets gives.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4)
            target = x.sum(dim=1)
            loss = (net(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4)
            target = x.sum(dim=1, keepdim=True)
            loss = (net(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for flow in ask(flows):
        for operation in flow.operations:
            if not ops.is_a(operation, ops.DIFFERENCES, ops.PRODUCTS, ops.COMPARES):
                continue
            pair = _broadcast_pair(flow, operation)
            if pair is not None and _ends_in_loss(flow, operation):
                yield Claim(operation.span, _Pair(flow, operation, *pair))


def _broadcast_pair(flow: StepFlow, operation: Operation) -> tuple[Tensor, Tensor] | None:
    """The operands of an operation, of which one is predicted, if nobody will have meant to broadcast them."""
    if len(operation.inputs) < 2:
        return None
    values = operation.inputs[:2]
    a, b = (flow.tensor(value) for value in values)
    name = short_name(operation.name)
    if a is None or b is None or a.shape == b.shape or _size(a.shape) < 2 or _size(b.shape) < 2:
        return None
    if flow.history[values[0]] == flow.history[values[1]] or not (a.dtype.startswith("float") or name in ops.COMPARES):
        return None
    wide_a, wide_b = _is_widened(a.shape, b.shape), _is_widened(b.shape, a.shape)
    crossed = wide_a and wide_b and len(a.shape) != len(b.shape) and _size(a.shape) == _size(b.shape)
    # Of two ranks nobody compares each with each: torch warns of it in the losses that compare.
    if _is_reshaped_within(flow, operation) and not (crossed and name in ops.COMPARES):
        return None
    if crossed:
        return a, b
    if name in ops.PRODUCTS:
        return None
    widened = [value for value, wide in zip(values, (wide_a, wide_b), strict=True) if wide]
    on_purpose = [value for value in widened if _is_reshaped(flow, value)]
    if name in ops.COMPARES:
        made = next((flow.tensor(value) for value in operation.outputs), None)
        whole = made is not None and made.shape == ()
        return (a, b) if len(on_purpose) < len(widened) or (whole and len(widened) == 1) else None
    # One prediction for each sample against several targets: a target for each sample against several predictions,
    # as of quantiles or of a mixture, is meant.
    one_sided = len(a.shape) == len(b.shape) and len(widened) == 1 and flow.history[widened[0]] and not on_purpose
    leaf = one_sided and (tensor := flow.tensor(widened[0])) is not None and tensor.leaf
    return (a, b) if one_sided and not leaf and a.shape[0] == b.shape[0] > 1 else None


def _size(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _is_widened(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether broadcasting makes more elements of a tensor of this shape."""
    rank = max(len(shape), len(other))
    mine = (1,) * (rank - len(shape)) + shape
    theirs = (1,) * (rank - len(other)) + other
    return any(size == 1 < against for size, against in zip(mine, theirs, strict=True))


def _is_reshaped(flow: StepFlow, value: int) -> bool:
    """Whether the shape of a value was made on purpose just before, rather than by a layer or the data."""
    operation = flow.maker.get(value)
    while operation is not None and ops.is_a(operation, ops.CASTS) and operation.inputs:
        operation = flow.maker.get(operation.inputs[0])
    return operation is not None and ops.is_a(operation, ops.RESHAPES)


def _is_reshaped_within(flow: StepFlow, operation: Operation) -> bool:
    """Whether the very expression gives an operand new dimensions: `x[:, None] - y`, `a.unsqueeze(1) - b`."""
    node = expression(operation.span, flow.run.sources) if operation.span is not None else None
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Attribute) and part.attr in ("unsqueeze", "view", "reshape", "expand", "newaxis"):
            return True
        if isinstance(part, ast.Subscript) and any(
            isinstance(item, ast.Constant) and item.value is None for item in ast.walk(part.slice)
        ):
            return True
    return False


def _ends_in_loss(flow: StepFlow, operation: Operation) -> bool:
    """Whether nothing but arithmetic on elements and reductions lies between an operation and a loss."""
    return not elementwise_after(flow, operation).isdisjoint(flow.roots)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The tensors that an operation broadcasts against each other."""

    flow: StepFlow
    operation: Operation
    a: Tensor
    b: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """What the operands and the result are called, by gradscope and where they meet."""
        made = filter(None, map(self.flow.tensor, self.operation.outputs))
        known = [tensor.name for tensor in (self.a, self.b, *made) if tensor.name and not tensor.differentiated]
        return tuple(dict.fromkeys((*known, *spelled_operands(self.operation.span, self.flow.run.sources))))


@loss_broadcast.words
def _(told: Sequence[Claim[_Pair]], ask: Ask) -> Story:
    pair = told[0].evidence
    operation, a, b = pair.operation, pair.a, pair.b
    rank = max(len(a.shape), len(b.shape))
    whole = tuple(
        max(one, other)
        for one, other in zip(
            (1,) * (rank - len(a.shape)) + a.shape, (1,) * (rank - len(b.shape)) + b.shape, strict=True
        )
    )
    first, second = (f"`{tensor.name}` of shape {shape_text(tensor.shape)}" if tensor.name else f"a tensor of shape "
                     f"{shape_text(tensor.shape)}" for tensor in (a, b))  # fmt: skip
    labels = tuple(
        Label(tensor.made, f"made here with shape {shape_text(tensor.shape)}")
        for tensor in (a, b)
        if tensor.made is not None and tensor.made != operation.span and not tensor.leaf
    )
    return Story(
        f"the loss compares shapes {shape_text(a.shape)} and {shape_text(b.shape)}: they become {shape_text(whole)}",
        operation.span,
        f"{first} meets {second}",
        pair.names,
        labels,
        (f"note: {_size(whole):,} differences are made of {_size(a.shape):,} and {_size(b.shape):,} numbers",),
        (
            Help(
                "give both the same shape before: `squeeze(-1)` one, or `unsqueeze(-1)` the other",
                losses.squeezed(ask, operation.span, a.shape, b.shape),
            ),
        ),
    )
