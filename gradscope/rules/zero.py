"""Gradients that arrive in every step and are exactly zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Operation, Run, Tensor
from gradscope.graph.naming import line_of, short_name
from gradscope.graph.sizes import profile_flows, trained
from gradscope.rules.claim import Claim, Story, Trouble, names_of, rule, subjects
from gradscope.rules.words import listed, steps_text, who


@rule("warning")
def zero_gradient(ask: Ask) -> Iterator[Claim[_Zeroed]]:
    """A gradient arrives in every step, and is exactly zero.

    Something on the way has a derivative of zero: `round`, `sign`, a `clamp` whose limit is passed, a ReLU that is
    never active, a saturated `tanh`, a factor of 0. The tensor gets its gradient and never learns.

    Bad:

        import torch
        from torch import nn

        encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        for _ in range(5):
            x = torch.rand(8, 4)
            code = torch.round(encoder(x))
            loss = (decoder(code) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        for _ in range(5):
            x = torch.rand(8, 4)
            code = encoder(x)
            code = code + (torch.round(code) - code).detach()
            loss = (decoder(code) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    found = [(tensor, zeroed) for tensor in trained(ask.run) if (zeroed := _zeroed(ask, tensor)) is not None]
    flat = {line_of(zeroed.operation.span) for _, zeroed in found if zeroed.node not in ops.PRODUCT_NODES}
    for tensor, zeroed in found:
        line = line_of(zeroed.operation.span)
        if not flat or line in flat:  # else a factor is 0 where something before it has made it so
            yield Claim(line, zeroed, tensor, explains=((Trouble.ZERO_GRADIENT, None),))


class _Zeroed(NamedTuple):
    """The operation that sends back zeros only, and its kind of node."""

    operation: Operation
    node: str


def _zeroed(ask: Ask, tensor: Tensor) -> _Zeroed | None:
    """Where the gradient of a tensor that got nothing but zeros became zero, if that is known."""
    received = tensor.received
    if received is None or received.steps < limits.STEPS_OF_ZEROS or received.zero < received.steps:
        return None
    causes = next((causes for flow in ask(profile_flows) if (causes := flow.zeroed(tensor.id))), [])
    for stage in causes:
        if stage.operation is not None and stage.operation.span is not None:
            return _Zeroed(stage.operation, stage.name)
    return None


@zero_gradient.words
def _(told: Sequence[Claim[_Zeroed]], ask: Ask) -> Story:
    run, places = ask.run, [claim.evidence.operation.span for claim in told]
    operation, node = max(told, key=lambda claim: places.count(claim.evidence.operation.span)).evidence
    names, received = names_of(told), subjects(told)[0].received
    steps = steps_text(run, received.steps if received is not None else None)
    name = short_name(operation.name)
    place, caret = operation.span, f"`{name}` takes a gradient here and sends back 0"
    why = _ZERO_WHY.get(node, f"why: the derivative of `{name}` is 0 for all that came in")
    help_ = _ZERO_HELP.get(node, "start where this has a derivative that is not 0, or leave it out")
    labels: tuple[Label, ...] = ()
    last = _last_step_taken(run, operation, names)
    if node == "LogSoftmax" and _is_of_one_class(run, operation):
        caret = f"a softmax over one class is 1, whatever the logit: `{name}` sends back 0"
        why = "why: with a single output there is nothing to choose between"
        help_ = "use `binary_cross_entropy_with_logits` on the one output, or give the last layer two outputs"
    elif last is not None and last.span is not None:
        labels = (Label(place, f"`{name}` is computed here"),) if place is not None else ()
        place, caret = last.span, "the reverse direction has read only the last input here: it ends at the first"
        why = f"why: at the last place the reverse direction of `{name}` is at its first step, with a state of 0"
        help_ = "take the last state of both directions: `torch.cat([h_n[-2], h_n[-1]], dim=1)`"
    return Story(
        f"{who(names, run).subject} {who(names, run).learns}: every gradient is exactly 0, in {steps}",
        place,
        caret,
        names,
        labels,
        (f"all 0: {listed(names)}", why),
        (Help(help_),),
    )


def _is_of_one_class(run: Run, operation: Operation) -> bool:
    """Whether scores come in whose last axis, or the axis of classes, has a single place."""
    taken = [run.tensor_by_id[run.holder[value]] for value in operation.inputs[:1] if value in run.holder]
    return any(
        tensor.shape and 1 in (tensor.shape[-1], tensor.shape[min(1, len(tensor.shape) - 1)]) for tensor in taken
    )


_REVERSE = "_reverse"


def _last_step_taken(run: Run, operation: Operation, names: Iterable[str]) -> Operation | None:
    """Where only the last place is taken of what both directions of a recurrent layer gave.

    There, the weights of the reverse direction that take its state have had no state yet.
    """
    if not ops.is_a(operation, ops.RECURRENT) or not all(name.endswith(_REVERSE) for name in names):
        return None
    for step in run.steps:
        for made in step.operations:
            if (made.name, made.span) == (operation.name, operation.span) and made.outputs:
                users = [other for other in step.operations if made.outputs[0] in other.inputs]
                if len(users) == 1 and ops.is_a(users[0], ops.TAKES_A_PLACE):
                    return users[0]
    return None


_FACTOR = "why: what it is multiplied by is 0 throughout"
_ZERO_WHY = {
    "Relu": "why: nothing that comes in is above 0, so the ReLU is dead",
    "Round": "why: `round` is flat: its derivative is 0 everywhere",
    "Floor": "why: `floor` is flat: its derivative is 0 everywhere",
    "Ceil": "why: `ceil` is flat: its derivative is 0 everywhere",
    "Sign": "why: `sign` is flat: its derivative is 0 everywhere",
    "Clamp": "why: all that comes in lies beyond the limits, where `clamp` is flat",
    "Tanh": "why: `tanh` is saturated: it gives exactly 1 or -1, where its derivative rounds to 0",
    "Sigmoid": "why: `sigmoid` is saturated: it gives exactly 1 or 0, where its derivative rounds to 0",
    "Softmax": "why: `softmax` gives the same whatever comes in: over one element, or saturated",
    **dict.fromkeys(ops.PRODUCT_NODES, _FACTOR),
}
_STRAIGHT = "to learn through it, keep its derivative at 1: `x + (y - x).detach()` where y is the result"
_ZERO_HELP = {
    "Relu": "use `leaky_relu`, a smaller learning rate, or another start",
    **dict.fromkeys(("Round", "Floor", "Ceil", "Sign"), _STRAIGHT),
    "Clamp": "start within the limits",
    **dict.fromkeys(("Tanh", "Sigmoid"), "scale what comes in: standardise the data, or start with smaller weights"),
    "Softmax": "take the softmax over a dimension of more than one element, or scale down what comes in",
    **dict.fromkeys(ops.PRODUCT_NODES, "do not start both factors of a product at 0"),
}
