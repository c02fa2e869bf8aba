"""What is one where several were meant, and new where one was meant: shared modules, optimizers made again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Module, Optimizer, Run, Span, Tensor
from gradscope.graph.naming import named
from gradscope.graph.replicas import lies_in
from gradscope.rules.claim import Claim, Story, names_of, rule, subjects
from gradscope.rules.mends import holders
from gradscope.rules.words import listed, who


@rule("warning", needs=[])
def shared_module(ask: Ask) -> Iterator[Claim[Module]]:
    """A container was to hold several modules, and holds one and the same several times.

    `[layer] * n` makes a list with n references to one object. All entries then have the same weights, whose gradient
    is the sum over all places, and the model has n times fewer parameters than it seems to have.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(*[nn.Linear(4, 4)] * 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = (net(torch.rand(8, 4)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = (net(torch.rand(8, 4)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for module in ask.run.modules:
        if module.repeats < 2:
            continue
        held = [tensor for tensor in named(ask.run.tensors) if lies_in(tensor, module.path)]
        if any(_multiplied(ask.run, tensor, module) is not None for tensor in held):
            for tensor in held:
                if tensor.registered == "parameter" and tensor.requires_grad:
                    yield Claim(module.path, module, tensor)


@shared_module.words
def _(told: Sequence[Claim[Module]], ask: Ask) -> Story:
    module, tensors, names = told[0].evidence, subjects(told), names_of(told)
    places = (_multiplied(ask.run, tensor, module) for tensor in tensors)
    span = next(filter(None, places), tensors[0].made)
    return Story(
        f"the {module.repeats} entries of `{module.path}` are one module: they share "
        f"{'one parameter' if len(names) == 1 else f'{len(names)} parameters'}",
        span,
        f"a list that is multiplied holds the same object {module.repeats} times",
        names,
        facts=(f"shared by all of them: {listed(names)}",),
        help=(
            Help(
                f"make {module.repeats} modules: `[... for _ in range({module.repeats})]`",
                holders.multiplied(ask, span),
            ),
        ),
    )


def _multiplied(run: Run, tensor: Tensor, module: Module) -> Span | None:
    """The line that multiplies the list: the one that makes the layer, or one soon after it."""
    made = tensor.made
    if made is None:
        return None
    lines = run.sources.get(made.file, {})
    last = max(lines, default=0)
    for number in range(made.line, last + 1):
        if _MULTIPLIED.search(lines.get(number, "")):
            return made if number == made.line else Span(made.file, number, function=made.function)
    return None


_MULTIPLIED = re.compile(r"\]\s*\*\s*[\w(]|[\w)]\s*\*\s*\[")


@rule("warning", needs=[])
def rebuilt_optimizer(ask: Ask) -> Iterator[Claim[_Rebuilt]]:
    """A new optimizer is made for the same tensors every step or two, so that its state never lives.

    Adam and momentum work by averages over many steps. One that is made anew forgets them: each first step of Adam
    goes by the learning rate in the direction of the sign of the gradient, whatever its size.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1)
        for _ in range(8):
            optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(8):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    alike: dict[object, list[Optimizer]] = defaultdict(list)
    for optimizer in ask.run.optimizers:
        if optimizer.made is not None and optimizer.steps:
            alike[optimizer.made, optimizer.name, frozenset(optimizer.tensors)].append(optimizer)
    for made in alike.values():
        short = [optimizer for optimizer in made if optimizer.steps <= limits.REBUILT_STEPS and optimizer.stateful]
        # One step of L-BFGS is many of others.
        if len(short) < limits.REBUILT or len(short) * 2 < len(made) or made[0].name == "LBFGS":
            continue
        for tensor in named(ask.run.tensors):
            if tensor.id in made[0].tensors and tensor.requires_grad:
                yield Claim(made[0].id, _Rebuilt(made[-1], len(made), sum(each.steps for each in made)), tensor)


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """The latest of several optimizers that one line made, and how many steps they made in all."""

    latest: Optimizer
    count: int
    steps: int


@rebuilt_optimizer.words
def _(told: Sequence[Claim[_Rebuilt]], ask: Ask) -> Story:
    rebuilt, names = told[0].evidence, names_of(told)
    latest = rebuilt.latest
    those = who(names, ask.run)
    return Story(
        f"{those.subject} {'is' if those.one else 'are'} moved by {rebuilt.count} optimizers in turn: {latest.name} is "
        f"made anew for {rebuilt.steps} steps",
        latest.made,
        "made again and again, with averages that begin at 0",
        names,
        (Label(latest.stepped, "steps once or twice, and is gone"),) if latest.stepped is not None else (),
        (f"held by each of them: {listed(names)}",),
        (Help("make it once, before the loop", holders.made_once(ask, latest)),),
    )
