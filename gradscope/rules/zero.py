"""Gradients that arrive in every step and are exactly zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Operation, Received, Run, Tensor
from gradscope.graph.naming import line_of, short_name
from gradscope.graph.profiles import Cancelled, ProfileFlow, Stage
from gradscope.graph.sizes import profile_flows, trained
from gradscope.rules.claim import Claim, Need, Story, Trouble, names_of, rule, subjects
from gradscope.rules.mends import numbers
from gradscope.rules.words import listed, steps_text, who


@rule("warning", needs=[Need.OPERATIONS, Need.VALUES])
def zero_gradient(ask: Ask) -> Iterator[Claim[_Cause]]:
    """A gradient arrives in every step, and is exactly zero, from the first step on or from a later one to the end.

    Something on the way has a derivative of zero: `round`, `sign`, a `clamp` whose limit is passed, a ReLU that is
    never active, a saturated `tanh`, a factor of 0. Or two ways to it cancel, as where a sample with history is scored
    by the distribution that it was drawn from. The tensor gets its gradient and never learns.

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
    held = trained(ask.run)
    found = [(tensor, cause) for tensor in held if _is_all_zero(tensor) and (cause := _cause(ask, tensor))]
    if not found:  # what dies later, dies of what was zero before
        found = [(tensor, cause) for tensor in held if _has_died(ask, tensor) and (cause := _death(ask, tensor))]
    flat = [cause for _, cause in found if isinstance(cause, _Zeroed) and cause.stage.name not in ops.PRODUCT_NODES]
    for tensor, cause in found:
        if isinstance(cause, Cancelled):
            yield Claim(line_of(cause.meeting.span), cause, tensor, explains=_EXPLAINS)
            continue
        if flat and cause not in flat:  # a factor is 0 where something before it has made it so
            made_so = next((other for other in flat if _comes_before(other, cause)), None)
            if made_so is None:
                continue
            cause = made_so
        yield Claim(line_of(cause.operation.span), cause, tensor, explains=_EXPLAINS)


_EXPLAINS = ((Trouble.ZERO_GRADIENT, None),)


@dataclass(frozen=True, slots=True)
class _Zeroed:
    """The operation that sends back zeros only, and how it does in one flow."""

    flow: ProfileFlow
    stage: Stage
    operation: Operation


_Cause: TypeAlias = _Zeroed | Cancelled


def _is_all_zero(tensor: Tensor) -> bool:
    """Whether a tensor got nothing but zeros."""
    received = tensor.received
    return received is not None and received.steps >= limits.STEPS_OF_ZEROS and received.zero == received.steps


def _has_died(ask: Ask, tensor: Tensor) -> bool:
    """Whether from some step on, to the end, a tensor got nothing but zeros, of a loss that is not 0 itself."""
    received = tensor.received
    if received is None or not limits.ZEROS_FOR_GOOD <= received.zeros < received.steps:
        return False
    return not any(loss.last == 0 for loss in ask.run.losses)


def _cause(ask: Ask, tensor: Tensor) -> _Cause | None:
    """Where the gradient of a tensor became zero, or is cancelled, if that is known."""
    for flow in ask(profile_flows):
        for stage in flow.zeroed(tensor.id):
            if stage.name in ops.SOFTMAX_NODES and ask.run.twins:
                continue  # it has nothing to choose between: all that it weighs is the same
            if stage.operation is not None and stage.operation.span is not None:
                return _Zeroed(flow, stage, stage.operation)
        cancelled = flow.cancelled(tensor.id)
        if cancelled is not None and cancelled.meeting.span is not None:
            return cancelled
    return None


def _death(ask: Ask, tensor: Tensor) -> _Zeroed | None:
    """What has died: an activation at its limit, or what multiplies by nothing but what it gives."""
    cause = _cause(ask, tensor)
    if not isinstance(cause, _Zeroed) or cause.stage.rounded:
        return None
    if cause.stage.name in ops.FLAT_NODES:
        return cause if not cause.flow.is_a_term(cause.stage.place) else None
    return cause if cause.stage.name in ops.PRODUCT_NODES else None


def _comes_before(flat: _Zeroed, product: _Zeroed) -> bool:
    return flat.flow is product.flow and flat.flow.lies_behind(flat.stage.place, product.stage.place)


@zero_gradient.words
def _(told: Sequence[Claim[_Cause]], ask: Ask) -> Story:
    cause = told[0].evidence
    if isinstance(cause, Cancelled):
        return _cancelled(told, cause, ask)
    causes = [claim.evidence for claim in told if isinstance(claim.evidence, _Zeroed)]
    places = [zeroed.operation.span for zeroed in causes]
    return _zeroed(told, max(causes, key=lambda zeroed: places.count(zeroed.operation.span)), ask)


def _zeroed(told: Sequence[Claim[_Cause]], zeroed: _Zeroed, ask: Ask) -> Story:
    run, operation, node = ask.run, zeroed.operation, zeroed.stage.name
    names = names_of(told)
    name = short_name(operation.name)
    place, caret = operation.span, f"`{name}` takes a gradient here and sends back 0"
    why = _ZERO_WHY.get(node, f"why: the derivative of `{name}` is 0 for all that came in")
    help_ = _ZERO_HELP.get(node)
    labels: tuple[Label, ...] = ()
    last = _last_step_taken(run, operation, names)
    if zeroed.stage.rounded:
        caret = f"what `{name}` sends back is rounded to 0: it is below the smallest number of float16"
        why = f"why: a gradient of {zeroed.stage.arrived:.0e} comes in, and float16 holds nothing below 6e-8"
        help_ = _scaling(run)
    elif node == "LogSoftmax" and _is_of_one_class(run, operation):
        caret = f"a softmax over one class is 1, whatever the logit: `{name}` sends back 0"
        why = "why: with a single output there is nothing to choose between"
        help_ = "use `binary_cross_entropy_with_logits` on the one output, or give the last layer two outputs"
    elif last is not None and last.span is not None:
        labels = (Label(place, f"`{name}` is computed here"),) if place is not None else ()
        place, caret = last.span, "the reverse direction has read only the last input here: it ends at the first"
        why = f"why: at the last place the reverse direction of `{name}` is at its first step, with a state of 0"
        help_ = "take the last state of both directions: `torch.cat([h_n[-2], h_n[-1]], dim=1)`"
    if any(tensor.received and tensor.received.zero < tensor.received.steps for tensor in subjects(told)):
        help_ = "take smaller steps, or an activation whose derivative is nowhere 0" if node in ops.FLAT_NODES else None
        made = next((o.made for o in run.optimizers if o.id == subjects(told)[0].optimizer and o.made), None)
        labels = (*labels, Label(made, "the steps of this optimizer have led there")) if made is not None else labels
    flat = node in ("Round", "Floor", "Ceil", "Sign") and not zeroed.stage.rounded
    edits = numbers.straight_through(ask, operation.span) if flat else ()
    return Story(
        _message(told, ask),
        place,
        caret,
        names,
        labels,
        (f"all 0: {listed(names)}", why),
        (Help(help_, edits),) if help_ else (),
    )


def _message(told: Sequence[Claim[_Cause]], ask: Ask) -> str:
    """Who never learns, or since when."""
    run, names = ask.run, names_of(told)
    received = max((t.received for t in subjects(told) if t.received), key=lambda r: r.zeros, default=Received(0, 0))
    those = who(names, run)
    if received.zero < received.steps:
        since = received.steps - received.zeros + 1
        stops = "stops learning" if those.one or len(names) == 1 else "stop learning"
        return (
            f"{those.subject} {stops} in step {since:,}: from there on every gradient is exactly 0, in "
            f"{steps_text(run, received.zeros)}"
        )
    return f"{those.subject} {those.learns}: every gradient is exactly 0, in {steps_text(run, received.steps)}"


def _scaling(run: Run) -> str:
    scaled = any(ops.is_a(operation, ops.UNSCALES) for step in run.steps for operation in step.operations)
    if scaled:
        return "start the GradScaler with a larger `init_scale`, or compute in bfloat16, whose range is that of float32"
    return "scale the loss with `torch.amp.GradScaler`, or compute in bfloat16, whose range is that of float32"


def _cancelled(told: Sequence[Claim[_Cause]], cause: Cancelled, ask: Ask) -> Story:
    names, meeting = names_of(told), cause.meeting
    name = short_name(meeting.name)
    made = f"`{value}`" if (value := _value_name(ask.run, cause.made)) else "the same value"
    places = dict.fromkeys(branch.span for branch in cause.branches if line_of(branch.span) != line_of(meeting.span))
    labels = [Label(place, f"{made} goes into this as well") for place in places if place is not None]
    if cause.straight:
        help_ = "detach the one that the other is compared with: of `x / x` and of `x - x` only the first has to learn"
    elif ops.is_a(meeting, ops.DIFFERENCES) and labels:
        help_ = "detach what is computed from it before the two are compared, as a sample before its `log_prob`"
    else:
        help_ = "keep one of the ways only: a straight-through estimator is `x + (y - x).detach()`"
    return Story(
        _message(told, ask),
        meeting.span,
        f"two ways from {made} meet in this `{name}`, and their gradients cancel exactly",
        names,
        tuple(labels),
        (f"all 0: {listed(names)}", f"why: the result is the same, whatever {made} is"),
        (Help(help_, numbers.drawn_without_history(ask, [branch.span for branch in cause.branches])),),
    )


def _value_name(run: Run, made: Operation | None) -> str | None:
    """What the program calls that which an operation has made."""
    values = made.outputs if made is not None else ()
    tensors = [run.tensor_by_id.get(run.holder.get(value, -1)) for value in values]
    return next((tensor.name for tensor in tensors if tensor is not None and tensor.name is not None), None)


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
    "Normal": "why: what is drawn has no derivative with respect to its mean and deviation",
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
    **dict.fromkeys(("Clamp", "ClampMin", "ClampMax"), "start within the limits"),
    "Normal": "draw it as `mean + std * torch.randn_like(std)`, which has a derivative",
    "Bernoulli": f"relax what is drawn (`RelaxedBernoulli`), or: {_STRAIGHT}",
    **dict.fromkeys(("GridSampler2D", "GridSampler3D"), 'sample with `mode="bilinear"`: `nearest` is flat in the grid'),
    **dict.fromkeys(("Tanh", "Sigmoid"), "scale what comes in: standardise the data, or start with smaller weights"),
    "Softmax": "take the softmax over a dimension of more than one element, or scale down what comes in",
    **dict.fromkeys(ops.PRODUCT_NODES, "do not start both factors of a product at 0"),
}
