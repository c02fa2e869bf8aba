"""What steps do to values: gradients that move nothing, and tensors that move though they are frozen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Ledger, Optimizer, Tensor
from gradscope.graph.naming import named
from gradscope.rules.claim import Claim, Explained, Need, Story, Trouble, names_of, rule, subjects
from gradscope.rules.mends import steps
from gradscope.rules.words import listed, who

_NONE = Ledger()


@rule("warning", needs=[Need.VALUES])
def frozen_but_updated(ask: Ask) -> Iterator[Claim[_Moving]]:
    """A tensor that was frozen goes on moving with every step.

    An optimizer moves whatever has a `.grad`. A tensor whose `requires_grad` was switched off but whose last gradient
    is still there, or whose gradient is masked or set to zero before the step, is moved by that gradient, by momentum,
    by Adam's averages or by weight decay.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(6):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            net[0].weight.grad *= 0
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        net[0].weight.requires_grad_(False)
        trained = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.01)
        for _ in range(6):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for optimizer in ask.run.optimizers:
        for tensor in named(ask.run.tensors):
            ledger = tensor.ledger or _NONE
            if tensor.optimizer != optimizer.id:
                continue
            if not tensor.requires_grad and ledger.moved_frozen >= limits.SLIPS:
                yield Claim((optimizer.id, "frozen"), _Moving(optimizer, ledger, masked=False), tensor)
            if _is_masked(tensor, optimizer):
                yield Claim((optimizer.id, "masked"), _Moving(optimizer, ledger, masked=True), tensor)


@dataclass(frozen=True, slots=True)
class _Moving:
    """A tensor moves though it is frozen, or though its gradient was set to zero."""

    optimizer: Optimizer
    ledger: Ledger
    masked: bool


@frozen_but_updated.words
def _(told: Sequence[Claim[_Moving]], ask: Ask) -> Story:
    names, moving = names_of(told), told[0].evidence
    optimizer, ledger = moving.optimizer, moving.ledger
    if moving.masked:
        span = ledger.masked_at or ledger.cleared
        caret = "the gradient is set to zero here"
        why = "weight decay, momentum or averages move elements whose gradient is zero"
        mend = "set `.grad = None` for what no step is to move, or freeze it, or put its values back after the step"
    else:
        span = ledger.frozen
        caret = "frozen here, with its last gradient left in `.grad`"
        why = "`requires_grad` is off, and `.grad` still holds a gradient"
        mend = "set `.grad = None` when you freeze it, or give it to no optimizer"
    those = who(names, ask.run)
    edits = steps.frozen_without_gradient(ask, span, masked=moving.masked)
    labels: tuple[Label, ...] = ()
    if optimizer.stepped is not None and span is not None and optimizer.stepped != span:
        labels = (Label(optimizer.stepped, "and this goes on moving it"),)
    return Story(
        f"{those.subject} {'is' if those.one else 'are'} frozen, yet {optimizer.name} goes on moving {those.them}",
        span or optimizer.stepped,
        caret if span is not None else "moves what is frozen",
        names,
        labels,
        (f"moved: {listed(names)}", f"why: {why}"),
        (Help(mend, edits),),
    )


def _is_masked(tensor: Tensor, optimizer: Optimizer) -> bool:
    """Whether elements with a gradient set to zero moved in most of the steps that were looked at.

    Or in some at the end, from where on nothing but zeros arrived.
    Where a whole optimizer or module is cleared before its step, nobody meant to freeze.
    """
    ledger = tensor.ledger or _NONE
    looks = max(len(ledger.updates), 1)
    latest = tensor.gradient_norms[-limits.ZEROS_FOR_GOOD :]
    for_good = len(latest) == limits.ZEROS_FOR_GOOD and all(norm == 0 for norm in latest)
    lost = ledger.cleared_first * 2 >= max(optimizer.uses, 1) and (ledger.swept or optimizer.fed * 2 <= optimizer.uses)
    mostly = ledger.masked * 2 >= min(looks, ledger.masks or looks)
    return ledger.masked >= limits.MASKED_STEPS and (mostly or for_good) and not lost


@rule("warning", needs=[Need.VALUES])
def no_update(ask: Ask) -> Iterator[Claim[_Unmoved]]:
    """Steps with a gradient other than zero leave the value as it is, to the last bit.

    Either the learning rate is 0, or the update is smaller than the distance to the next number that the tensor's
    type can hold: around 1.0 that is 0.0078 in bfloat16, 0.00098 in float16 and 0.00000012 in float32. Or the
    `step` of an optimizer makes new tensors, as `p = p - update` does, rather than change those that it holds.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1).to(torch.bfloat16)
        torch.nn.init.ones_(net.weight)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
        for _ in range(6):
            loss = net(torch.rand(8, 4, dtype=torch.bfloat16)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        torch.nn.init.ones_(net.weight)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
        for _ in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = net(torch.rand(8, 4))
            loss = out.float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for optimizer in ask.run.optimizers:
        held = [tensor for tensor in named(ask.run.tensors) if tensor.optimizer == optimizer.id]
        stuck = [tensor for tensor in held if _is_still(tensor.ledger or _NONE)]
        at_zero = [tensor for tensor in stuck if _rate_is_zero(tensor.ledger or _NONE)]
        learning = [tensor for tensor in held if (tensor.ledger or _NONE).stirred or tensor in stuck]
        if at_zero and len(at_zero) < len(learning):
            # A group at rate 0 beside others that move may be so on purpose for a while, and not for a whole run.
            at_zero = [tensor for tensor in at_zero if ask.run.ended == "end" and _is_zero_throughout(tensor)]
            stuck = [tensor for tensor in stuck if tensor in at_zero or not _rate_is_zero(tensor.ledger or _NONE)]
        loudest = max((_size(tensor) for tensor in held), default=0.0)
        for tensor in stuck:
            if _size(tensor) <= limits.NOISE * loudest or _has_arrived(tensor):
                continue
            why: _Why = "rate" if tensor in at_zero else "range" if _size(tensor) > limits.SQUARABLE else "precision"
            if why == "precision" and _is_far_above_precision(tensor):
                why = "unchanged"
            explains: tuple[Explained, ...] = ()
            if why == "range":
                explains = ((Trouble.OUT_OF_RANGE, None),)
            elif why != "rate":
                explains = ((Trouble.UNMOVED, tensor.id),)
            yield Claim((optimizer.id, why), _Unmoved(optimizer, why), tensor, explains=explains)


_Why: TypeAlias = Literal["rate", "range", "precision", "unchanged"]


@dataclass(frozen=True, slots=True)
class _Unmoved:
    """A tensor that steps of an optimizer leave as it is, and what keeps it there."""

    optimizer: Optimizer
    why: _Why


def _is_still(ledger: Ledger) -> bool:
    return ledger.still >= limits.STILL_STEPS and ledger.still >= ledger.stirred


def _has_arrived(tensor: Tensor) -> bool:
    """Whether it moved until its gradient was next to nothing: there is no way left to go."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    stirred = (tensor.ledger or _NONE).stirred > 0
    return stirred and bool(norms) and statistics.median(norms) <= limits.NOISE * max(norms)


def _rate_is_zero(ledger: Ledger) -> bool:
    return ledger.rate_zero * 2 >= ledger.still


def _is_zero_throughout(tensor: Tensor) -> bool:
    """Whether the learning rate was 0 at every look at a step, of which there were all that a warm-up may take."""
    ledger = tensor.ledger or _NONE
    return ledger.rate_zero >= limits.LOOKS_AT_NO_RATE and not ledger.stirred and ledger.rate_zero >= ledger.still


def _is_far_above_precision(tensor: Tensor) -> bool:
    """Whether its type would hold the sum of the value and an update, were that rate * gradient or rate alone."""
    rate, epsilon = (tensor.ledger or _NONE).rate, limits.EPSILON.get(tensor.dtype)
    if rate is None or rate < limits.NO_RATE or epsilon is None or tensor.start is None:
        return False
    value = tensor.start / math.sqrt(max(min(math.prod(tensor.shape), limits.SAMPLE), 1))
    return rate * min(_size(tensor), 1.0) > limits.MARGIN * epsilon * value


def _size(tensor: Tensor) -> float:
    """The root mean square of the elements of its gradients, the median over the steps."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    return statistics.median(norms) / math.sqrt(max(math.prod(tensor.shape), 1)) if norms else 0.0


@no_update.words
def _(told: Sequence[Claim[_Unmoved]], ask: Ask) -> Story:
    tensors, names = subjects(told), names_of(told)
    optimizer, why = told[0].evidence.optimizer, told[0].evidence.why
    those = who(names, ask.run)
    ledger = tensors[0].ledger or _NONE
    looks = ledger.still + ledger.stirred
    types = sorted({tensor.dtype for tensor in tensors})
    rate = ledger.rate if ledger.rate is not None else 1.0
    no_rate = why == "rate" or rate < limits.NO_RATE
    if no_rate:
        cause = f"the learning rate is {rate:.2g}"
        mend = (
            "look at what sets the learning rate: the optimizer, the scheduler, or a line that scales it in every step"
        )
    elif why == "range":
        cause = "the gradients are so large that their squares are infinite"
        mend = "make them smaller: normalise what the loss is computed from, or clip the gradients before the step"
    elif why == "unchanged":
        cause = f"a step of {optimizer.name} writes nothing into {those.them}"
        mend = (
            "change the tensors themselves in `step`, as `p.add_(update)` does: `p = p + update` makes another tensor "
            "and leaves the one that the model has"
        )
    else:
        cause = f"the updates are below the precision of {' and '.join(types)}"
        mend = "keep the parameters in float32 (autocast for speed), or take a larger learning rate"
    labels: tuple[Label, ...] = ()
    if optimizer.made is not None and optimizer.stepped is not None:
        labels = (Label(optimizer.made, f"this {optimizer.name}"),)
    return Story(
        f"{those.subject} {'does' if those.one else 'do'} not move: {cause}",
        optimizer.stepped or optimizer.made,
        "gradients are there, and the values stay as they are",
        names,
        labels,
        (
            f"unmoved in {ledger.still} of {looks} steps that were looked at: {listed(names)}",
            *((f"note: the learning rate was {rate:.2g} at last",) if ledger.rate is not None and not no_rate else ()),
        ),
        (Help(mend),),
    )
