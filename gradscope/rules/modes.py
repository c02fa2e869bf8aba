"""Modes: modules that are trained while they run as for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.evaluations import Unmoded, is_part, unmoded
from gradscope.graph.facts import Help, Label, Modes, Run, Tensor
from gradscope.graph.naming import short_name, spelled_callee
from gradscope.rules.claim import Claim, Story, rule
from gradscope.rules.mends.modes import evaluated, trained_again
from gradscope.rules.words import steps_text


@rule("warning")
def eval_mode(ask: Ask) -> Iterator[Claim[Modes]]:
    """A module is trained while its dropout or batch norm is in evaluation mode.

    `eval()` stays in force until `train()` is called. Called for a validation or for sampling and never taken back, the
    training goes on without dropout, and with the statistics of batch norm as they are.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(3):
            for _ in range(3):
                loss = net(torch.rand(8, 4)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                print(net(torch.rand(8, 4)).mean())

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(3):
            net.train()
            for _ in range(3):
                loss = net(torch.rand(8, 4)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                print(net(torch.rand(8, 4)).mean())
    """
    for modes in ask.run.modes:
        if modes.switched is not None and modes.evaluation >= limits.EVALUATION_STEPS and _is_training(ask.run, modes):
            yield Claim(modes.switched, modes)


@eval_mode.words
def _(told: Sequence[Claim[Modes]], ask: Ask) -> Story:
    run, group = ask.run, [claim.evidence for claim in told]
    worst = max(group, key=lambda modes: modes.evaluation)
    names = tuple(dict.fromkeys(modes.module for modes in group))
    kinds = sorted({short_name(modes.operation).replace("_", " ") for modes in group})
    optimizer = next(optimizer for optimizer in run.optimizers if optimizer.id == worst.optimizer)
    steps = worst.evaluation + worst.training
    mend = trained_again(ask, optimizer, worst.by, worst.switched)
    return Story(
        f"`{worst.by}` was in evaluation mode in {worst.evaluation:,} of {steps_text(run, steps)} that train it",
        worst.switched,
        "this puts it into evaluation mode, and no `train()` follows",
        tuple(dict.fromkeys((worst.by or "", *names, *_spelled(group, ask)))),
        facts=(
            f"in evaluation mode: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}",
            f"note: {optimizer.name} trains it; {' and '.join(kinds)} worked as in evaluation all the while",
        ),
        help=(Help(f"call `{(worst.by or 'model').partition('#')[0]}.train()` before the training goes on", mend),),
    )


def _spelled(group: Sequence[Modes], ask: Ask) -> Iterator[str]:
    """What is in evaluation mode, as the lines call it that put it there and that run it."""
    sources = ask.run.sources
    ran = {(modes.module, modes.operation) for modes in group}
    spans = [modes.switched for modes in group]
    spans += [
        operation.span
        for step in ask.run.steps
        for operation in step.operations
        if (operation.module, short_name(operation.name)) in ran
    ]
    yield from (name for span in dict.fromkeys(spans) if (name := spelled_callee(span, sources)) not in (None, "self"))


def _is_training(run: Run, modes: Modes) -> bool:
    """Whether the module that was put into evaluation mode is one that the optimizer trains for the most part.

    A frozen backbone is kept in evaluation mode on purpose, and so is a layer that was put there by itself.
    """
    by = modes.by or ""
    # Whoever trained it may have frozen it since, or given it to another.
    held = {number for optimizer in run.optimizers if optimizer.id == modes.optimizer for number in optimizer.tensors}
    inside = [
        tensor
        for tensor in run.tensors
        if tensor.registered == "parameter"
        and tensor.module is not None
        and f"{_full_name(tensor)}.".startswith(f"{by}.")
    ]
    trained = [tensor for tensor in inside if tensor.id in held and tensor.received and tensor.received.steps]
    alone = by == modes.module and modes.operation == "batch_norm"
    return len(trained) * 2 > len(inside) and not alone


def _full_name(tensor: Tensor) -> str:
    name, label = tensor.name or "", tensor.module or ""
    return name if name.startswith(f"{label}.") else f"{label}.{name}"


@rule("warning")
def train_mode(ask: Ask) -> Iterator[Claim[Unmoded]]:
    """A module is evaluated, or gives the targets of another, while its dropout or batch norm is in training mode.

    `no_grad` keeps no history; it turns neither dropout off nor makes batch norm use its statistics. What is measured
    then depends on chance and on the other samples of the batch, and batch norm learns from data that it should not
    see. Only `eval()` does that.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(3):
            x = torch.rand(8, 4)
            loss = nn.functional.mse_loss(net(x), x.sum(dim=1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                x = torch.rand(8, 4)
                print(nn.functional.mse_loss(net(x), x.sum(dim=1, keepdim=True)).item())

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(3):
            net.train()
            x = torch.rand(8, 4)
            loss = nn.functional.mse_loss(net(x), x.sum(dim=1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            net.eval()
            with torch.no_grad():
                x = torch.rand(8, 4)
                print(nn.functional.mse_loss(net(x), x.sum(dim=1, keepdim=True)).item())
    """
    for found in ask(unmoded):
        yield Claim((found.kind, found.path), found)


@train_mode.words
def _(told: Sequence[Claim[Unmoded]], ask: Ask) -> Story:
    group = [claim.evidence for claim in told]
    first = group[0]
    modules = tuple(dict.fromkeys(found.module for found in group))
    normed = {found.module for found in group if "batch_norm" in found.operation.name}
    statistics = [
        tensor.name
        for tensor in ask.run.tensors
        if tensor.registered == "buffer"
        and tensor.dtype.startswith("float")
        and any(is_part(tensor, module) for module in normed)
    ]
    kinds = " and ".join(sorted({short_name(found.operation.name).replace("_", " ") for found in group}))
    doing = "is evaluated" if first.kind == "evaluation" else "gives targets"
    labels: tuple[Label, ...] = ()
    if first.call is not None and first.operation.span is not None and first.call != first.operation.span:
        labels = (Label(first.operation.span, f"{short_name(first.operation.name)} works as in training"),)
    mend = evaluated(ask, first.call or first.operation.span, teacher=first.kind == "teacher")
    harm = "its statistics follow what it is given" if normed else "what it gives is drawn by chance"
    return Story(
        f"`{first.path}` {doing} in training mode: {kinds} at work",
        first.call or first.operation.span,
        "no gradient is kept here, yet nothing has put it into evaluation mode",
        (first.path, *(name for name in modules if name != first.path), *dict.fromkeys(filter(None, statistics))),
        labels,
        (f"note: {harm}; `no_grad` and `requires_grad` do not change that",),
        (Help(f"call `{first.path.partition('#')[0]}.eval()` before", mend),),
    )
