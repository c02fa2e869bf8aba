"""Frozen: a parameter does not require grad where somebody relies on its gradient."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Optimizer, Run, Span, Tensor
from gradscope.graph.naming import expression
from gradscope.graph.reliance import frozen_out
from gradscope.graph.replicas import lies_in
from gradscope.rules.claim import Claim, Story, Trouble, names_of, rule, subjects
from gradscope.rules.mends.leaves import asked_by_method, unfrozen_before, unfrozen_for, unfrozen_when_made
from gradscope.rules.words import listed, owner, raised_at, who


@rule("warning", [Trouble.NEVER_LEARNS])
def frozen_parameter(ask: Ask) -> Iterator[Claim[_Frozen]]:
    """A parameter does not require grad where somebody relies on its gradient.

    Either a backward is refused since all that it was to train is frozen, or `requires_grad` was set on a module, which
    is a plain attribute there: `module.requires_grad_(True)` is the method that reaches the parameters.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        for p in net.parameters():
            p.requires_grad = False
        net[2].requires_grad = True
        optimizer = torch.optim.SGD([*net.parameters(), scale := torch.ones(1, requires_grad=True)], lr=0.1)
        for _ in range(3):
            loss = (net(torch.rand(8, 4)) * scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        for p in net.parameters():
            p.requires_grad = False
        net[2].requires_grad_(True)
        optimizer = torch.optim.SGD([*net.parameters(), scale := torch.ones(1, requires_grad=True)], lr=0.1)
        for _ in range(3):
            loss = (net(torch.rand(8, 4)) * scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    refused = {tensor.id: tensor for tensor, _ in ask(frozen_out)}
    for tensor in refused.values():
        yield Claim("all", _All(), tensor, severity="error")
    for frozen, optimizer, when in (*_given_later(run), *_chosen(run)):
        for tensor in frozen:
            yield Claim((optimizer.id, when), _Given(optimizer, when), tensor)
    for tensor, optimizer in _by_default(run):
        yield Claim(tensor.made, _Default(optimizer), tensor)
    for path, frozen in _switched_on_in_vain(run).items():
        if not set(refused).issuperset(tensor.id for tensor in frozen):
            for tensor in frozen:
                yield Claim(path, _Attribute(path), tensor)


@dataclass(frozen=True, slots=True)
class _All:
    """Everything that a backward was to train."""


@dataclass(frozen=True, slots=True)
class _Given:
    """Frozen tensors that this optimizer was given, and when."""

    optimizer: Optimizer
    when: str


@dataclass(frozen=True, slots=True)
class _Attribute:
    """A module whose attribute `requires_grad` was set, as if that unfroze anything."""

    path: str


@dataclass(frozen=True, slots=True)
class _Default:
    """Frozen by a constructor whose default it is, and given to this optimizer."""

    optimizer: Optimizer


_Frozen: TypeAlias = _All | _Given | _Attribute | _Default


@frozen_parameter.words
def _(told: Sequence[Claim[_Frozen]], ask: Ask) -> Story:
    frozen, names = subjects(told), names_of(told)
    match told[0].evidence:
        case _All():
            return _everything(frozen, names, ask)
        case _Given(optimizer, when):
            return _given(frozen, names, optimizer, when, ask)
        case _Default(optimizer):
            return _frozen_by_default(frozen[0], names, optimizer, ask)
        case _Attribute(path):
            return Story(
                f"`{path}` stays frozen: `requires_grad = True` {_PLAIN}",
                _who_froze(ask.run, frozen) or frozen[0].made,
                "its parameters were frozen here",
                names,
                facts=(f"frozen: {listed(names)}",),
                help=(Help(f"call `{path}.requires_grad_(True)`", asked_by_method(ask)),),
            )


_PLAIN = "on a module is a plain attribute"


def _everything(frozen: list[Tensor], names: tuple[str, ...], ask: Ask) -> Story:
    those, froze = who(names, ask.run), _who_froze(ask.run, frozen)
    switched = _switched_on_in_vain(ask.run)
    crash = ask.run.crash
    edits = unfrozen_for(ask, owner(names), crash.span) if crash is not None else ()
    return Story(
        f"{those.subject} cannot learn: everything that this loss was to train is frozen",
        froze or frozen[0].made,
        "frozen here" if froze else "made here, and frozen",
        names,
        raised_at(ask, None),
        (f"frozen: {listed(names)}", *(f"note: `{path}.requires_grad = True` {_PLAIN}" for path in switched)),
        tuple(Help(f"call `{path}.requires_grad_(True)`", asked_by_method(ask)) for path in switched)
        or (Help("set `requires_grad_(True)` again before this backward", edits),),
        raised=ask.run.crash is not None,
    )


def _given(frozen: list[Tensor], names: tuple[str, ...], optimizer: Optimizer, when: str, ask: Ask) -> Story:
    run = ask.run
    those = who(names, run)
    edits = unfrozen_before(ask, optimizer) if when == _LATER else ()
    given = "this optimizer was given a group more later" if when == _ADDED else "given to an optimizer here"
    return Story(
        f"{those.subject} {those.learns}: {those.counted if those.counted != 'they' else 'these'} "
        f"{'is' if those.counted == 'it' else 'are'} frozen, though {optimizer.name} was given {those.them}{when}",
        _who_froze(run, frozen),
        "frozen here, and never unfrozen",
        names,
        (Label(optimizer.made, given),) if optimizer.made is not None else (),
        (f"frozen: {listed(names)}",),
        (Help("set `requires_grad_(True)` before this optimizer steps", edits),),
    )


def _frozen_by_default(tensor: Tensor, names: tuple[str, ...], optimizer: Optimizer, ask: Ask) -> Story:
    those = who(names, ask.run)
    return Story(
        f"{those.subject} {those.learns}: `from_pretrained` freezes by default, though {optimizer.name} was given "
        f"{those.them}",
        tensor.made,
        "made here with `freeze=True`, which nobody wrote",
        names,
        (Label(optimizer.made, "given to an optimizer here"),) if optimizer.made is not None else (),
        (f"frozen: {listed(names)}",),
        (
            Help(
                "to train it, pass `freeze=False`; to keep it, write `freeze=True`",
                unfrozen_when_made(ask, tensor.made),
            ),
        ),
    )


_SAY_SO = "to train it, pass `freeze=False`; to keep it, write `freeze=True`"


def _by_default(run: Run) -> Iterator[tuple[Tensor, Optimizer]]:
    """Tables that `Embedding.from_pretrained` froze since nobody said otherwise, and an optimizer was given to train.

    Whoever means to keep one writes so, or gives the optimizer what requires grad.
    """
    stepped = {optimizer.id: optimizer for optimizer in run.optimizers if optimizer.fed}
    for tensor in run.tensors:
        held = tensor.nn_parameter and tensor.optimizer in stepped and tensor.name is not None
        if not held or tensor.requires_grad or not tensor.used or tensor.made is None or tensor.ledger is None:
            continue
        by_the_constructor = _who_froze(run, [tensor]) in (None, tensor.made)
        if by_the_constructor and tensor.ledger.frozen is None and _leaves_frozen(tensor.made, run):
            yield tensor, stepped[tensor.optimizer or 0]


def _leaves_frozen(span: Span, run: Run) -> bool:
    """Whether a line makes an embedding of given vectors, and does not say whether it is frozen."""
    node = expression(span, run.sources)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    said = len(node.args) > 1 or any(keyword.arg in ("freeze", None) for keyword in node.keywords)
    owner = ast.unparse(node.func.value).rpartition(".")[2]
    return node.func.attr == "from_pretrained" and owner in ("Embedding", "EmbeddingBag") and not said


def _switched_on_in_vain(run: Run) -> dict[str, list[Tensor]]:
    """Modules that somebody gave an attribute `requires_grad = True`, with their parameters that are frozen."""
    found = {}
    for module in run.modules:
        if not module.requires_grad_attribute:
            continue
        frozen = [
            tensor
            for tensor in run.tensors
            if tensor.registered == "parameter" and not tensor.requires_grad and lies_in(tensor, module.path)
        ]
        if frozen:
            found[module.path] = frozen
    return found


_LATER, _ADDED = " after a phase without", " in a group that was added later"


def _given_later(run: Run) -> Iterator[tuple[list[Tensor], Optimizer, str]]:
    """Tensors that the program froze and trained others without, then gave to a later optimizer, frozen as they were.

    That an optimizer holds frozen tensors is no slip by itself. But who builds an optimizer of a part of a model,
    trains it, and then builds one of more of it, means to train the rest from then on, and so does who adds a group.
    """
    tensors = run.tensor_by_id
    for place, optimizer in enumerate(run.optimizers):
        earlier = [other for other in run.optimizers[:place] if other.steps]
        mine = set(optimizer.tensors)
        if optimizer.steps and any(set(other.tensors) < mine for other in earlier):
            before, when = {tensor for other in earlier for tensor in other.tensors}, _LATER
        else:
            before, when = {number for number in mine if not _was_added(tensors[number], optimizer)}, _ADDED
        frozen = [
            tensor
            for number in optimizer.tensors
            if number not in before and not (tensor := tensors[number]).requires_grad and tensor.name is not None
        ]
        if frozen and _who_froze(run, frozen) is not None:
            yield frozen, optimizer, when


def _was_added(tensor: Tensor, optimizer: Optimizer) -> bool:
    """Whether an optimizer was given a tensor after its first steps, and has made some more since without it."""
    received = tensor.received
    return received is not None and not received.steps and limits.STEPS_BEFORE_A_GROUP <= received.of < optimizer.steps


def _chosen(run: Run) -> Iterator[tuple[list[Tensor], Optimizer, str]]:
    """Frozen tensors that an optimizer was given one by one, while others of the same module were left out.

    An optimizer of a whole module holds what is frozen in it as well, and means nothing by that.
    """
    for optimizer in run.optimizers:
        held = set(optimizer.tensors)
        if not optimizer.steps or not optimizer.fed:
            continue
        left_out = [
            tensor.name
            for tensor in run.tensors
            if tensor.registered == "parameter" and tensor.id not in held and not tensor.requires_grad and tensor.name
        ]
        frozen = [
            tensor
            for tensor in run.tensors
            if tensor.id in held
            and tensor.registered == "parameter"
            and not tensor.requires_grad
            and tensor.used
            and tensor.name is not None
            and (tensor.received is None or not tensor.received.steps)
            and (module := tensor.name.rpartition(".")[0])
            and any(other.startswith(f"{module}.") for other in left_out)
        ]
        if frozen and _who_froze(run, frozen) is not None:
            yield frozen, optimizer, ""


def _who_froze(run: Run, tensors: list[Tensor]) -> Span | None:
    """The line that set `requires_grad` of one of these to False and was never undone: later ones change nothing."""
    wanted = {tensor.id for tensor in tensors}
    froze: dict[int, Span | None] = {}
    for operation in (operation for step in run.steps for operation in step.operations):
        if operation.name in ("Tensor.requires_grad_", "Tensor.requires_grad ="):
            for value in operation.outputs:
                number = run.holder[value]
                if number in wanted and run.history[value]:
                    froze.pop(number, None)
                elif number in wanted:
                    froze.setdefault(number, operation.span)
    return next(iter(froze.values()), None)
