"""Steps that a GradScaler withholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Optimizer
from gradscope.graph.naming import named
from gradscope.rules.claim import Claim, Need, Story, Trouble, names_of, rule
from gradscope.rules.words import listed, times_text, who


@rule("warning", needs=[Need.VALUES])
def scaler_skips(ask: Ask) -> Iterator[Claim[Optimizer]]:
    """A GradScaler withholds the steps of an optimizer, all of them or from some step on.

    A scaler leaves a step out where a gradient is infinite or NaN, and makes the scale smaller. That is meant for the
    first few steps, until the scale fits. A gradient that is NaN whatever the scale makes it leave out all of them:
    nothing is trained, and nothing is raised.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(12):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            net.weight.grad[0, 0] += float("inf")
            scaler.step(optimizer)
            scaler.update()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(12):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """
    for optimizer in ask.run.optimizers:
        to_the_end = optimizer.in_a_row >= limits.WITHHELD_IN_A_ROW
        tried = optimizer.steps + optimizer.withheld
        mostly = optimizer.withheld * 2 >= tried >= limits.STEPS_TO_SETTLE
        if not (to_the_end or mostly):
            continue
        for tensor in named(ask.run.tensors):
            if tensor.optimizer == optimizer.id and tensor.requires_grad:
                yield Claim(
                    optimizer.id,
                    optimizer,
                    tensor,
                    ((Trouble.NOT_FINITE, None),),
                    ((Trouble.NEVER_LEARNS, tensor.id),),
                    "error" if to_the_end else None,
                )


@scaler_skips.words
def _(told: Sequence[Claim[Optimizer]], ask: Ask) -> Story:
    optimizer, names = told[0].evidence, names_of(told)
    those = who(names, ask.run)
    tried = optimizer.steps + optimizer.withheld
    if not optimizer.steps:
        withheld = f"all {tried:,} steps"
    elif optimizer.in_a_row >= limits.WITHHELD_IN_A_ROW:
        withheld = f"the last {optimizer.in_a_row:,} of {tried:,} steps"
    else:
        withheld = f"{optimizer.withheld:,} of {tried:,} steps"
    spoilt = tuple(
        claim.tensor.name or ""
        for claim in told
        if claim.tensor is not None and claim.tensor.received is not None and claim.tensor.received.nonfinite
    )
    labels = (Label(optimizer.made, f"this {optimizer.name}"),) if optimizer.made is not None else ()
    return Story(
        f"{those.subject} {'does' if those.one else 'do'} not move: the GradScaler withheld {withheld} of "
        f"{optimizer.name}, as gradients were not finite",
        optimizer.withheld_at or optimizer.made,
        f"no step is taken here, {times_text(optimizer.withheld)}",
        names,
        labels,
        (
            *((f"not finite: gradients of {listed(spoilt)}",) if spoilt else ()),
            *((f"note: the scale was {optimizer.scale:.3g} at last",) if optimizer.scale is not None else ()),
        ),
        (Help("look for what makes the gradients NaN or infinite: run a step without the scaler, in float32"),),
    )
