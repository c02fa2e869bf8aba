"""A loss that is the same number in every step, whatever the model does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Loss, Operation, Run
from gradscope.graph.flow import flows
from gradscope.graph.naming import line_of
from gradscope.graph.ratios import Ratios, ratios
from gradscope.rules.claim import Claim, Need, Story, Trouble, rule
from gradscope.rules.mends.losses import undivided
from gradscope.rules.words import steps_text


@rule("warning", needs=[Need.OPERATIONS, Need.VALUES])
def constant_loss(ask: Ask) -> Iterator[Claim[_Constant]]:
    """The loss is the same number in every step, since each of its terms is divided by its own value.

    What is divided by itself is 1. Where the divisor is detached, gradients arrive all the same, scaled; but the number
    tells nothing any more, and a scheduler, an early stop or a person that reads it sees no progress.

    Bad:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            x = torch.rand(16, 4)
            first, second = (net(x) - x[:, :2]).square().mean(dim=0)
            loss = first / first.detach() + second / second.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        start = None
        for _ in range(6):
            x = torch.rand(16, 4)
            first, second = (net(x) - x[:, :2]).square().mean(dim=0)
            start = start or (first.item(), second.item())
            loss = first / start[0] + second / start[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    moved = any(tensor.change for tensor in run.tensors if tensor.optimizer is not None)
    steady = [loss for loss in run.losses if _is_constant(loss, run)]
    for flow in ask(flows):
        for backward in flow.step.backwards:
            for loss in steady:
                if len(backward.roots) != 1 or loss.span not in (None, backward.span):
                    continue
                found = ratios(flow, backward.roots[0])
                division = next((part for part in (*found.own, *found.others) if part.span is not None), None)
                if division is None or not (moved or found.attached) or not _explains(found, loss):
                    continue
                troubles = ((Trouble.ZERO_GRADIENT, None),) if found.attached else ()
                yield Claim(line_of(division.span), _Constant(loss, found, division), explains=troubles)
                return


@dataclass(frozen=True, slots=True)
class _Constant:
    """A loss that never changes, the divisions in it, and the first of them that has a line."""

    loss: Loss
    ratios: Ratios
    division: Operation


def _is_constant(loss: Loss, run: Run) -> bool:
    """Whether a loss was one number in each of several steps, up to the rounding of a quotient."""
    steps = loss.steps or run.step_count
    if steps <= limits.SLIPS or not loss.first or loss.last is None:
        return False
    if loss.lowest is None or loss.highest is None:
        return loss.constant or (not loss.steps and loss.first == loss.last)
    return loss.highest - loss.lowest <= limits.ROUNDING * abs(loss.first)


def _explains(found: Ratios, loss: Loss) -> bool:
    """Whether the divisions make the loss what it is: by what they divide, or since it is how many there are."""
    parts = len(found.others)
    return bool(found.own) or abs((loss.last or 0.0) - parts) <= limits.ROUNDING * parts


@constant_loss.words
def _(told: Sequence[Claim[_Constant]], ask: Ask) -> Story:
    constant = told[0].evidence
    found, loss = constant.ratios, constant.loss
    name = f"`{loss.name}`" if loss.name != "loss" else "the loss"
    span = constant.division.span
    roots = {root for step in ask.run.steps for backward in step.backwards for root in backward.roots}
    readers = dict.fromkeys(
        operation.span
        for step in ask.run.steps  # what reads it after the step of the optimizer is in the next one
        for operation in step.operations
        if not operation.outputs
        and ops.is_a(operation, ops.EXITS)
        and not roots.isdisjoint(operation.inputs)
        and operation.span not in (None, span)
    )
    others = dict.fromkeys(part.span for part in (*found.own, *found.others) if line_of(part.span) != line_of(span))
    labels = [Label(place, "and so is this") for place in others if place is not None]
    labels += [
        Label(place, "whoever reads it here sees no progress") for place in list(readers)[:1] if place is not None
    ]
    if found.own:
        caret = "divided by its own value: this is 1, whatever it was"
        edits = tuple(edit for part in found.own for edit in undivided(ask, part))
        help_ = "divide by a reference that stays: each term's first value, or a mean over the steps before"
    else:
        caret = "divided by what is as large in every step"
        edits = ()
        help_ = "take the reference once, or as a mean over the steps before, rather than anew in each step"
    return Story(
        f"{name} is {loss.last:.4g} in every step, whatever the model does: {steps_text(ask.run)}",
        span,
        caret,
        labels=tuple(labels),
        facts=("why: what is divided by itself tells nothing of how large it was",) if found.own else (),
        help=(Help(help_, edits),),
    )
