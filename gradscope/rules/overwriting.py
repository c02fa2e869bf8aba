"""Updates that do not last: what steps have changed is written over before the next ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Ledger, Optimizer
from gradscope.graph.naming import named
from gradscope.rules.claim import Claim, Need, Story, Trouble, names_of, rule
from gradscope.rules.words import listed, who

_NONE = Ledger()


@rule("warning", [Trouble.UNMOVED], needs=[Need.VALUES])
def overwritten_update(ask: Ask) -> Iterator[Claim[_Overwritten]]:
    """What a step changed is written over before the next one, again and again.

    An optimizer moves the values on from where it finds them. Where the program puts others there after each epoch or
    every few steps (the averaged weights, for an evaluation, and never the own ones again; those of the
    initialisation; an old `state_dict`), what was learned in between is lost each time.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        average = [p.detach().clone() for p in net.parameters()]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(5):
            for _ in range(4):
                loss = (net(torch.rand(8, 4)) - 1).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for mean, p in zip(average, net.parameters()):
                        mean.lerp_(p, 0.01)
            with torch.no_grad():
                for mean, p in zip(average, net.parameters()):
                    p.copy_(mean)
                print(net(torch.ones(1, 4)).item())

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        average = [p.detach().clone() for p in net.parameters()]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(5):
            for _ in range(4):
                loss = (net(torch.rand(8, 4)) - 1).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for mean, p in zip(average, net.parameters()):
                        mean.lerp_(p, 0.01)
            with torch.no_grad():
                own = [p.clone() for p in net.parameters()]
                for mean, p in zip(average, net.parameters()):
                    p.copy_(mean)
                print(net(torch.ones(1, 4)).item())
                for kept, p in zip(own, net.parameters()):
                    p.copy_(kept)
    """
    for optimizer in ask.run.optimizers:
        held = [tensor for tensor in named(ask.run.tensors) if tensor.optimizer == optimizer.id]
        trained = [tensor for tensor in held if tensor.received is not None and tensor.received.steps]
        lost = [tensor for tensor in trained if _is_lost(tensor.ledger or _NONE)]
        # What is tied to others by hand, or filled by its own rule, are single tensors of a model that learns.
        if len(lost) * 2 > len(trained):
            for tensor in lost:
                yield Claim(optimizer.id, _Overwritten(optimizer, tensor.ledger or _NONE), tensor)


def _is_lost(ledger: Ledger) -> bool:
    """Whether nearly each write undid what steps had done, and writes come at a steady pace.

    Who takes back the steps that have not served, writes when it happens. Where each single step is followed by a
    write, that may be a projection on what is allowed.
    """
    if ledger.overwritten < limits.LOST or ledger.overwritten_after is None:
        return False
    least, most = ledger.overwritten_after
    return ledger.overwritten * 4 >= ledger.overwrites * 3 and least > 1 and most <= 2 * least


@dataclass(frozen=True, slots=True)
class _Overwritten:
    """What steps of an optimizer changed is written over."""

    optimizer: Optimizer
    ledger: Ledger


@overwritten_update.words
def _(told: Sequence[Claim[_Overwritten]], ask: Ask) -> Story:
    names, first = names_of(told), told[0].evidence
    those, ledger, optimizer = who(names, ask.run), first.ledger, first.optimizer
    least, most = ledger.overwritten_after or (0, 0)
    pace = f"{least}" if least == most else f"{least} to {most}"
    labels = (Label(optimizer.stepped, "what these steps change is lost"),) if optimizer.stepped is not None else ()
    return Story(
        f"{those.subject} {'loses' if those.one else 'lose'} what {optimizer.name} has done: every {pace} steps "
        f"{'its values are' if those.one else 'their values are'} written over",
        ledger.overwritten_at or optimizer.stepped,
        "writes other values over those that were learned",
        names,
        labels,
        (
            f"written over: {listed(names)}",
            f"next to nothing was left of the progress {ledger.overwritten} of {ledger.overwrites} times",
        ),
        (Help("write into a copy of the model, or keep the values before and put them back before the next step"),),
    )
