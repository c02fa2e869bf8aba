"""Inputs: a gradient is asked for with respect to what the result was not computed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Span
from gradscope.graph.naming import short_name
from gradscope.graph.partings import Parting, partings
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.words import raised_at


@rule("error", [Trouble.NEVER_LEARNS])
def unused_input(ask: Ask) -> Iterator[Claim[Parting]]:
    """`torch.autograd.grad` is asked for the gradient of a result with respect to what it was not computed from.

    torch differentiates with respect to the very tensor object that the result was computed from. A slice of it, a
    copy, or a result that was computed from it is another tensor, with its own place in the graph: so is a
    perturbation that is added to something which nobody uses.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(3):
            points = torch.rand(16, 2, requires_grad=True)
            x = points[:, :1]
            u = net(points)
            slope, = torch.autograd.grad(u.sum(), x, create_graph=True)
            loss = (slope - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(3):
            points = torch.rand(16, 2, requires_grad=True)
            u = net(points)
            gradient, = torch.autograd.grad(u.sum(), points, create_graph=True)
            loss = (gradient[:, :1] - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for parting in ask(partings):
        learns = (Trouble.NEVER_LEARNS, parting.tensor.id)
        yield Claim(parting.call.id, parting, parting.tensor, explains=(learns,))


@unused_input.words
def _(told: Sequence[Claim[Parting]], ask: Ask) -> Story:
    found = [claim.evidence for claim in told]
    names = tuple(dict.fromkeys(parting.name for parting in found if parting.name is not None))
    first = found[0]
    said = " and ".join(f"`{name}`" for name in names) or "the input"
    root = next((tensor for value in first.flow.roots if (tensor := first.flow.tensor(value)) is not None), None)
    result = f"`{root.name}`" if root is not None and root.name else "the result"
    span, caret, labels = _places(first, said)
    verb = "was" if len(names) < 2 else "were"
    labels += raised_at(ask, span)
    return Story(
        f"{result} was not computed from {said}, with respect to which it is to be differentiated",
        span,
        caret,
        names,
        tuple(_one_a_line(span, labels)),
        (),
        (Help(_mend(first, said, verb)),),
        (),
        raised=True,
    )


def _places(parting: Parting, said: str) -> tuple[Span | None, str, tuple[Label, ...]]:
    """The place at which the input and what was used instead of it part, and what lies around it."""
    maker, dead_end, rival = parting.maker, parting.dead_end, parting.rival
    made = (maker.span if maker is not None else None) or parting.tensor.made
    if dead_end is not None and rival is not None:
        labels = (Label(dead_end.span, f"what is computed from {said} here is never used"),) if dead_end.span else ()
        return rival.span, f"`{short_name(rival.name)}` does not take what was computed from {said}", labels
    if dead_end is not None:
        labels = (Label(made, f"{said} is made here"),) if made is not None else ()
        return dead_end.span, f"what is computed from {said} here is never used", labels
    if rival is not None:
        labels = (Label(rival.span, f"the result is computed from what {said} was made of"),) if rival.span else ()
        return made, "a tensor of its own is made here, and never used", labels
    return made or parting.call.span, f"nothing is computed from {said}", ()


def _one_a_line(span: Span | None, labels: tuple[Label, ...]) -> Iterator[Label]:
    seen = {(span.file, span.line)} if span is not None else set()
    for label in labels:
        line = label.span.file, label.span.line
        if line not in seen:
            seen.add(line)
            yield label


def _mend(parting: Parting, said: str, verb: str) -> str:
    if parting.dead_end is not None:
        return f"compute the result from what {said} {verb} put into"
    if parting.rival is not None:
        return f"compute the result from {said} itself, or differentiate with respect to what it is computed from"
    return f"compute the result from {said}, or leave {said} out of the inputs"
