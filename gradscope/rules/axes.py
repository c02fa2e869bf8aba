"""Axes: what works along another axis than was meant, or takes one axis for another."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Help, Label
from gradscope.graph.naming import expression, is_library, shape_text, short_name, source_of, spelled_first
from gradscope.graph.reshapes import Mixed, mixing_reshapes
from gradscope.graph.softmaxes import Crossed, crossed_softmaxes
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.mends.losses import along


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
        yield Claim(crossed.softmax.span, crossed, explains=((Trouble.MIXES, crossed.softmax.span),))


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
    dim = crossed.right - len(shape) if crossed.right == len(shape) - 1 else crossed.right
    return Story(
        f"`{name}` works along axis {crossed.axis} of {shape_text(shape)}, and `{later}` along axis {crossed.right}",
        softmax.span,
        f"what sums to 1 here are the {shape[crossed.axis]} places of axis {crossed.axis}",
        tuple(dict.fromkeys((*((made.name,) if made is not None and made.name else ()), *scores))),
        labels,
        ("note: each of them depends on all others along that axis, as one sample on the other samples of a batch",),
        (Help(f"take `dim={dim}`", along(ask, softmax, crossed.axis, dim)),),
    )


@rule("warning")
def reshape_mixes_axes(ask: Ask) -> Iterator[Claim[Mixed]]:
    """A `view` or `reshape` stands where axes had to be moved.

    `view` cuts the same row of numbers anew and moves nothing. Where samples, time steps or channels were to change
    places, each of the new ones is a mixture of all the old ones; only the shape is as it was meant. `transpose` and
    `permute` move axes.

    Bad:

        import torch
        from torch import nn

        rnn, embed = nn.GRU(4, 5), nn.Linear(4, 4)
        optimizer = torch.optim.SGD([*rnn.parameters(), *embed.parameters()], lr=0.1)
        for _ in range(3):
            x = embed(torch.rand(8, 6, 4))
            outputs, _ = rnn(x.view(6, 8, 4))
            loss = outputs[-1].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        rnn, embed = nn.GRU(4, 5), nn.Linear(4, 4)
        optimizer = torch.optim.SGD([*rnn.parameters(), *embed.parameters()], lr=0.1)
        for _ in range(3):
            x = embed(torch.rand(8, 6, 4))
            outputs, _ = rnn(x.transpose(0, 1))
            loss = outputs[-1].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for mixed in ask(mixing_reshapes):
        yield Claim(mixed.operation.span, mixed, explains=((Trouble.MIXES, mixed.operation.span),))


@reshape_mixes_axes.words
def _(told: Sequence[Claim[Mixed]], ask: Ask) -> Story:
    mixed = told[0].evidence
    operation, name = mixed.operation, short_name(mixed.operation.name)
    before, after = shape_text(mixed.before), shape_text(mixed.after)
    tensors = [mixed.flow.tensor(value) for value in (*operation.inputs[:1], *operation.outputs[:1])]
    names = [tensor.name for tensor in tensors if tensor is not None and tensor.name]
    names += spelled_first(operation.span, ask.run.sources)
    return Story(
        f"`{name}` of {before} as {after} moves no axis: it mixes what belongs to different places",
        operation.span,
        f"{before} is cut anew into {after}",
        tuple(dict.fromkeys(names)),
        facts=("note: the numbers stay in their order in memory, and each new place gets some of several old ones",),
        help=(_moved(mixed, ask),),
    )


def _moved(mixed: Mixed, ask: Ask) -> Help:
    """The transposition that was meant, where moving whole axes gives the shape."""
    if mixed.order is None:
        return Help("move the axes first, with `transpose` or `permute`, and merge or split them then")
    others = [place for place, axis in enumerate(mixed.order) if place != axis]
    swap = len(others) == 2
    call = f".transpose({others[0]}, {others[1]})" if swap else f".permute({', '.join(map(str, mixed.order))})"
    message = f"move the axes: `{call}`"
    span = mixed.operation.span
    node = expression(span, ask.run.sources) if span is not None else None
    text = source_of(span, ask.run.sources) if span is not None else None
    if span is None or text is None or "\n" in text or not text.isascii() or not isinstance(node, ast.Call):
        return Help(message)
    if (
        not isinstance(node.func, ast.Attribute)
        or is_library(node.func.value)
        or node.func.value.end_col_offset is None
    ):
        return Help(message)
    # A view of a tensor whose axes were moved needs it in one piece.
    return Help(message, (Edit(span, text[: node.func.value.end_col_offset - 1] + call + ".contiguous()"),))
