"""Axes: what works along another axis than was meant, or takes one axis for another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.softmaxes import Crossed, crossed_softmaxes
from gradscope.rules.claim import Claim, Story, rule


@rule("warning")
def softmax_dim(ask: Ask) -> Iterator[Claim[Crossed]]:
    """A softmax works along another axis than what follows it: along that of the samples, for the most part.

    Each class then gets its probabilities shared out among the samples of the batch, and what a sample gets depends on
    the others. Without `dim`, a softmax of one or three axes works along the first.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=0))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.nll_loss(net(torch.rand(8, 4)), torch.randint(0, 3, (8,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.nll_loss(net(torch.rand(8, 4)), torch.randint(0, 3, (8,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for crossed in ask(crossed_softmaxes):
        yield Claim(crossed.softmax.span, crossed)


@softmax_dim.words
def _(told: Sequence[Claim[Crossed]], ask: Ask) -> Story:
    crossed = told[0].evidence
    flow, softmax, user = crossed.flow, crossed.softmax, crossed.user
    name, later = short_name(softmax.name), short_name(user.name)
    made = flow.tensor(softmax.outputs[0])
    shape = made.shape if made is not None else ()
    behind = flow.behind(softmax.inputs)
    scores = [
        tensor.name
        for number in flow.values_of
        if (tensor := flow.tensors[number]).name and tensor.registered == "parameter" and tensor.requires_grad
        if not behind.isdisjoint(flow.values_of[number])
    ]
    labels: tuple[Label, ...] = ()
    if user.span is not None and user.span != softmax.span:
        labels = (Label(user.span, f"`{later}` works along axis {crossed.right} of {shape_text(shape)}"),)
    return Story(
        f"`{name}` works along axis {crossed.axis} of {shape_text(shape)}, and `{later}` along axis {crossed.right}",
        softmax.span,
        f"what sums to 1 here are the {shape[crossed.axis]} places of axis {crossed.axis}",
        tuple(dict.fromkeys((*((made.name,) if made is not None and made.name else ()), *scores))),
        labels,
        ("note: each of them depends on all others along that axis, as one sample on the other samples of a batch",),
        (Help(f"take `dim={crossed.right - len(shape) if crossed.right == len(shape) - 1 else crossed.right}`"),),
    )
