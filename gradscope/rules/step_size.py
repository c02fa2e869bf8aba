"""Steps of an optimizer that are too large or too small for the values that they change."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Ledger, Loss, Optimizer, Run, Severity, Tensor
from gradscope.graph.rewriting import Edits
from gradscope.graph.sizes import trained
from gradscope.rules.claim import Claim, Need, Story, Trouble, names_of, rule
from gradscope.rules.mends.numbers import at_a_rate
from gradscope.rules.words import steps_text


@rule("warning", needs=[Need.VALUES])
def step_size(ask: Ask) -> Iterator[Claim[_Stepping]]:
    """The learning rate does not fit: steps are as large as the values themselves, or next to nothing.

    A layer starts with values of a certain size. A first step that is larger than they are throws away the
    initialisation, and the loss ends above its start. Steps of less than a millionth of the values change nothing in a
    run of any length: the loss stays where it was.

    Bad:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-8)
        x = torch.rand(32, 4)
        for _ in range(8):
            loss = (net(x).squeeze(1) - x.sum(dim=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        x = torch.rand(32, 4)
        for _ in range(8):
            loss = (net(x).squeeze(1) - x.sum(dim=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    if not run.losses:
        return
    for optimizer in run.optimizers:
        held = [tensor for tensor in trained(run) if tensor.optimizer == optimizer.id]
        started = [tensor for tensor in held if tensor.start and _looks(tensor)]
        largest = _largest_first(started)
        if largest > limits.OVERSTEP and all(map(_ends_above, run.losses)) and not _is_out_of_domain(run):
            spoilt = any(loss.last is None for loss in run.losses)
            severity: Severity = "error" if spoilt else "warning"
            troubles = (*((Trouble.NOT_FINITE, None) for _ in range(spoilt)), (Trouble.OUT_OF_RANGE, None))
            for tensor in held:
                stepping = _Stepping(optimizer, largest, large=True)
                yield Claim(optimizer.id, stepping, tensor, explains=(), besides=troubles, severity=severity)
        elif started and all(map(_stands_still, started)) and all(map(_is_flat, run.losses)):
            update = max(max(_looks(tensor)) for tensor in started)
            if not update:
                continue  # the type cannot hold the steps, however large they are
            for tensor in held:
                stepping = _Stepping(optimizer, update, large=False)
                yield Claim(optimizer.id, stepping, tensor, explains=((Trouble.UNMOVED, tensor.id),))


@dataclass(frozen=True, slots=True)
class _Stepping:
    """An optimizer, and its |update| / |value|: the median over its tensors; of small steps the largest."""

    optimizer: Optimizer
    update: float
    large: bool


def _looks(tensor: Tensor) -> list[float]:
    """|update| / |value| of the steps that were looked at."""
    return [update for update in (tensor.ledger or Ledger()).updates if update is not None]


def _largest_first(tensors: Sequence[Tensor]) -> float:
    """Of the first steps, the one with the largest median over the tensors."""
    rows = [_looks(tensor)[: limits.FIRST_LOOKS] for tensor in tensors]
    steps = [[row[place] for row in rows if place < len(row)] for place in range(limits.FIRST_LOOKS)]
    return max((statistics.median(step) for step in steps if step), default=0.0)


def _ends_above(loss: Loss) -> bool:
    """Whether a loss is larger than at its start after steps enough, or no number any more."""
    if loss.first is None or loss.last is None:
        return loss.first is not None
    return loss.steps >= limits.STEPS_OF_A_COURSE and _quarters(loss)[1] > loss.first


def _is_flat(loss: Loss) -> bool:
    """Whether a loss has changed by no more than batches differ."""
    if loss.first is None or loss.last is None:
        return False
    start, end = _quarters(loss)
    # Two standard errors of the difference of two quarters.
    noise = 2 * (loss.deviation or 0.0) * math.sqrt(8 / max(len(loss.series), 1))
    return abs(end - start) <= max(limits.FLAT * max(abs(start), abs(end)), noise)


def _quarters(loss: Loss) -> tuple[float, float]:
    """The mean of a loss over the first quarter of the steps, and over the last one."""
    values = [value for value in loss.series if value is not None]
    quarter = len(values) // 4
    if not quarter:
        return loss.first or 0.0, loss.last or 0.0
    return statistics.fmean(values[:quarter]), statistics.fmean(values[-quarter:])


def _stands_still(tensor: Tensor) -> bool:
    """Whether steps at a rate other than 0, with gradients other than 0, hardly move a tensor."""
    ledger, received = tensor.ledger or Ledger(), tensor.received
    looks = _looks(tensor)
    return (
        len(looks) >= limits.STILL_STEPS
        and max(looks) < limits.STANDSTILL
        and not ledger.rate_zero
        and (ledger.rate is None or ledger.rate > 0)
        and received is not None
        and received.zero + received.nonfinite < received.steps
    )


def _is_out_of_domain(run: Run) -> bool:
    """Whether an operation was given a number for which it is not defined: that says more than the steps do."""
    event = run.nonfinite
    return event is not None and event.node in ops.SINGULAR_NODES and event.low is not None and not event.given


@step_size.words
def _(told: Sequence[Claim[_Stepping]], ask: Ask) -> Story:
    run, stepping = ask.run, told[0].evidence
    optimizer, update = stepping.optimizer, stepping.update
    rate = next((t.ledger.rate for c in told if (t := c.tensor) is not None and t.ledger and t.ledger.rate), None)
    loss = run.losses[0]
    start, end = (f"{value:.3g}" if value is not None else "no number" for value in (loss.first, loss.last))
    if stepping.large:
        message = f"the steps of {optimizer.name} are too large: the first ones move values by {_share(update)} of them"
        caret = "its learning rate throws away what the layers start with"
    else:
        message = f"the steps of {optimizer.name} are too small: none moves a value by more than {_share(update)} of it"
        caret = "its learning rate leaves the values as they are"
    facts = [f"the {'median' if stepping.large else 'largest'} |update| / |value| is {update:.1e}"]
    facts.append(f"`{loss.name}` goes from {start} to {end} in {steps_text(run)}")
    help_ = "use a smaller learning rate" if stepping.large else "use a larger learning rate"
    edits: Edits = ()
    if rate:
        facts.append(f"note: the learning rate was {rate:.2g} at last")
        if 0 < update < math.inf:
            fitting = _rounded(rate * limits.FITTING_UPDATE / update)
            edits = at_a_rate(ask, optimizer, fitting)
            help_ += f": with about {fitting} a step moves a value by a thousandth"
    labels = (Label(optimizer.stepped, "each step"),) if optimizer.made and optimizer.stepped else ()
    return Story(
        message,
        optimizer.made or optimizer.stepped,
        caret,
        names_of(told),
        labels,
        tuple(facts),
        (Help(help_, edits),),
    )


def _share(update: float) -> str:
    """How much of a value an update is."""
    return f"{update:.1f} times the size" if update >= limits.OVERSTEP else f"{update:.0e}"


def _rounded(rate: float) -> str:
    """A power of ten: no more can be said of a rate."""
    return f"1e{round(math.log10(rate))}" if rate < 0.1 else f"{10.0 ** round(math.log10(rate)):g}"
