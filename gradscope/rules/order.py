"""The order of a step: clear, forward, backward, step. What a gradient is worth that comes at the wrong time."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import (
    Backward,
    Crash,
    Discard,
    Help,
    Label,
    Ledger,
    Operation,
    Optimizer,
    Run,
    Span,
    Tensor,
)
from gradscope.graph.flow import StepFlow, rounds
from gradscope.graph.naming import expression, last_call, line_of, named
from gradscope.rules.claim import Claim, Story, Trouble, names_of, rule, subjects
from gradscope.rules.mends import steps
from gradscope.rules.words import listed, steps_text, times_text, who

_NONE = Ledger()


@rule("warning", [Trouble.PILED], needs=[])
def missing_zero_grad(ask: Ask) -> Iterator[Claim[_Piled | _LeftOver]]:
    """A step uses gradients of earlier steps again: nobody clears `.grad` between a step and the next backward.

    Backward adds to what `.grad` holds. Over several backwards before one step that is gradient accumulation; but what
    a step has used must be cleared before the next backward, or every step applies the sum of all gradients so far.
    A closure is called several times in one step, so it has to clear first. Where optimizers take turns, what the loss
    of one leaves in the tensors of the other must be cleared as well, before the backward that the other follows.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            loss.backward()
            optimizer.step()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for tensor in named(ask.run.tensors):
        ledger = tensor.ledger or _NONE
        if ledger.piled >= limits.SLIPS and ledger.piled * 2 >= ledger.applied:
            yield Claim(("piled", line_of(ledger.backward), tensor.optimizer), _Piled(ledger), tensor)
        if tensor.optimizer is not None and ledger.leftover >= limits.SLIPS and ledger.leftover * 2 >= ledger.applied:
            yield Claim(("left over", tensor.optimizer), _LeftOver(ledger), tensor, explains=())


@dataclass(frozen=True, slots=True)
class _Piled:
    """Uses that applied the gradients of earlier ones again."""

    ledger: Ledger


@dataclass(frozen=True, slots=True)
class _LeftOver:
    """Uses that applied gradients of another loss as well."""

    ledger: Ledger


@missing_zero_grad.words
def _(told: Sequence[Claim[_Piled | _LeftOver]], ask: Ask) -> Story:
    optimizer = next((held for held in ask.run.optimizers if held.id == subjects(told)[0].optimizer), None)
    piled = [claim.evidence.ledger for claim in told if isinstance(claim.evidence, _Piled)]
    if not piled and optimizer is not None:
        ledgers = [claim.evidence.ledger for claim in told]
        return _left_over(told, optimizer, max(ledgers, key=lambda ledger: ledger.leftover), ask)
    return _piled(told, optimizer, max(piled, key=lambda ledger: ledger.piled), ask)


def _piled(told: Sequence[Claim[Any]], optimizer: Optimizer | None, ledger: Ledger, ask: Ask) -> Story:
    run, names = ask.run, names_of(told)
    stepped = optimizer.stepped if optimizer is not None else None
    those = who(names, run)
    uses = "updates" if optimizer is None else "steps" if optimizer.uses == optimizer.steps else "closure calls"
    labels = (Label(stepped, "uses the sum of all gradients since the last clear"),) if stepped is not None else ()
    if optimizer is None:
        edits = steps.cleared_by_hand(ask, ledger.backward, names)
    else:
        edits = steps.cleared(ask, optimizer, ledger.backward)
    return Story(
        f"{those.subject} {'piles' if those.one else 'pile'} up gradients: {ledger.piled} of "
        f"{ledger.applied} {uses} used those of earlier ones again",
        ledger.backward,
        "adds to the gradients that were used already",
        names,
        labels,
        (f"never cleared between a step and the next backward: {listed(names)}",),
        (Help(_clear_by(optimizer, uses, run), edits),),
    )


def _left_over(told: Sequence[Claim[Any]], optimizer: Optimizer, ledger: Ledger, ask: Ask) -> Story:
    """A loss that one optimizer follows reaches tensors of another, whose next step takes those gradients along.

    In a GAN, the discriminator has gradients of the generator's loss, against which it is to learn.
    """
    run, names = ask.run, names_of(told)
    those = who(names, run)
    stepped = optimizer.stepped
    message = f"call `{_called(optimizer, run)}.zero_grad()` right before the backward that its step follows"
    return Story(
        f"{those.subject} {'takes' if those.one else 'take'} gradients of another loss along: {ledger.leftover} of "
        f"{ledger.applied} steps used what was left of it",
        ledger.leftover_at,
        f"adds to the gradients of {those.subject} as well, after {'its' if those.one else 'their'} step",
        names,
        (Label(stepped, "uses them together with those of its own loss"),) if stepped is not None else (),
        (f"not cleared between the two backwards: {listed(names)}",),
        (Help(message, steps.cleared_right_before(ask, optimizer)),),
    )


def _clear_by(optimizer: Optimizer | None, uses: str, run: Run) -> str:
    if optimizer is None:
        return "set `.grad = None` after each update, or before each backward"
    if uses == "closure calls":
        return f"call `{_called(optimizer, run)}.zero_grad()` first in the closure"
    return f"call `{_called(optimizer, run)}.zero_grad()` once in every step, before backward"


def _called(optimizer: Optimizer, run: Run) -> str:
    """What the program calls an optimizer where it steps: `opt_d` of `opt_d.step()`."""
    node = expression(optimizer.stepped, run.sources) if optimizer.stepped is not None else None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "step":
        return "optimizer"
    owner = node.func.value
    return ast.unparse(owner) if not node.args and isinstance(owner, ast.Name | ast.Attribute) else "optimizer"


@rule("error", needs=[])
def zero_grad_before_step(ask: Ask) -> Iterator[Claim[_Starved | Discard]]:
    """Gradients are cleared before the step that was to use them.

    `zero_grad()` between `backward()` and `step()` leaves the step without gradients. The same happens in part where
    micro-batches clear each other's gradients, or a loss is differentiated after the step and its gradients are
    cleared at the start of the next one.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            loss.backward()
            optimizer.zero_grad()
            optimizer.step()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    starved: set[int] = set()
    for optimizer in run.optimizers:
        for part, found in ((False, _cleared_first(run, optimizer)), (True, _robbed(run, optimizer))):
            for tensor in found:
                if tensor.id not in starved:
                    starved.add(tensor.id)
                    yield Claim(
                        (optimizer.id, part),
                        _Starved(optimizer, part, tensor.ledger or _NONE),
                        tensor,
                        explains=((Trouble.NEVER_LEARNS, tensor.id),),
                    )
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    for discard in run.discards:
        reached = [run.tensor_by_id[number] for number in discard.tensors]
        held = [tensor for tensor in named(reached) if tensor.optimizer in stepped]
        mostly = discard.vain >= limits.SLIPS and discard.vain * 2 >= discard.passes
        if mostly and starved.isdisjoint(discard.tensors):
            for tensor in held:
                yield Claim(discard, discard, tensor, explains=((Trouble.WASTED, discard.backward),))


@dataclass(frozen=True, slots=True)
class _Starved:
    """Gradients that were cleared before a step of this optimizer, all of them or a part."""

    optimizer: Optimizer
    part: bool
    ledger: Ledger


@zero_grad_before_step.words
def _(told: Sequence[Claim[_Starved | Discard]], ask: Ask) -> Story:
    evidence = told[0].evidence
    if isinstance(evidence, _Starved):
        ledgers = [claim.evidence.ledger for claim in told if isinstance(claim.evidence, _Starved)]
        worst = max(ledgers, key=lambda ledger: ledger.cleared_first)
        return _starved(ask, evidence.optimizer, subjects(told), worst, part=evidence.part)
    discard, names = evidence, names_of(told)
    optimizer = next(held for held in ask.run.optimizers if held.id == subjects(told)[0].optimizer)
    edits = steps.stepped_after(ask, optimizer.stepped, discard.backward)
    return Story(
        f"{discard.vain} of {discard.passes} backwards are in vain: their gradients are cleared before any step "
        "uses them",
        discard.cleared or discard.backward,
        "the gradients are thrown away here",
        names,
        (Label(discard.backward, "they arrive here"),) if discard.backward and discard.cleared else (),
        (f"thrown away: gradients of {listed(names)}",),
        (Help("clear once in every step, before its first backward, and step after its last", edits),),
    )


def _cleared_first(run: Run, optimizer: Optimizer) -> list[Tensor]:
    """What an optimizer holds whose gradients arrived and were cleared before most of its steps.

    Who clears a few tensors by hand and steps means to keep them as they are; who clears all of an optimizer or a
    module does not.
    """
    found = []
    starving = optimizer.fed * 2 <= optimizer.uses
    for tensor in run.tensors:
        ledger = tensor.ledger or _NONE
        if tensor.optimizer != optimizer.id or tensor.name is None or not (ledger.swept or starving):
            continue
        if ledger.cleared_first >= limits.SLIPS and ledger.cleared_first * 2 >= optimizer.uses:
            found.append(tensor)
    return found


def _robbed(run: Run, optimizer: Optimizer) -> list[Tensor]:
    """What an optimizer holds that lost the gradient of a backward which its steps used at other tensors."""
    held = set(optimizer.tensors)
    return [
        tensor
        for tensor in run.tensors
        if tensor.id in held
        and tensor.name is not None
        and tensor.ledger is not None
        and tensor.ledger.swept
        and tensor.ledger.robbed >= limits.SLIPS
        and tensor.ledger.robbed * 2 >= optimizer.uses
    ]


def _cleared_away(run: Run, found: list[Tensor], ledger: Ledger) -> Span | None:
    """The backward whose gradients were thrown away: the latest one to arrive is what the step still finds."""
    numbers = {tensor.id for tensor in found}
    for step in run.steps:
        spans = [backward.span for backward in step.backwards if not numbers.isdisjoint(backward.arrivals)]
        earlier = [span for span in spans if span is not None and span != ledger.backward]
        if earlier and spans[-1] == ledger.backward:
            return earlier[-1]
    return ledger.backward


def _starved(ask: Ask, optimizer: Optimizer, found: list[Tensor], ledger: Ledger, *, part: bool) -> Story:
    run = ask.run
    names = tuple(dict.fromkeys(tensor.name or "" for tensor in found))
    those = who(names, run)
    count = ledger.robbed if part else ledger.cleared_first
    theirs = "its" if those.one else "their"
    if part:
        learns = f"{'loses' if theirs == 'its' else 'lose'} part of {theirs} gradients"
        message = f"{those.subject} {learns}: cleared before {count} of {steps_text(run, optimizer.uses)}"
    else:
        message = (
            f"{those.subject} {those.learns}: {theirs} gradients are cleared before {count} of "
            f"{steps_text(run, optimizer.uses)}"
        )
    labels = []
    arrive = _cleared_away(run, found, ledger) if part else ledger.backward
    if arrive is not None:
        labels.append(Label(arrive, "they arrive here"))
    help_ = "clear everything before the first backward" if part else "clear before backward, or after the step"
    edits = steps.cleared_in_time(ask, ledger.cleared, arrive, optimizer.stepped)
    if optimizer.stepped is not None:
        labels.append(Label(optimizer.stepped, f"and this finds {'the rest' if part else 'none'}"))
    return Story(
        message,
        ledger.cleared or optimizer.stepped,
        "the gradients are thrown away here",
        names,
        tuple(labels),
        (f"cleared between backward and step: {listed(names)}",),
        (Help(help_, edits),),
    )


@rule("warning", [Trouble.NEVER_LEARNS])
def step_without_backward(ask: Ask) -> Iterator[Claim[_Idle]]:
    """An optimizer steps, and no backward has brought its tensors a gradient since its last step.

    A step only applies what is in `.grad`. Without a backward before it there is nothing to apply, or the gradient of
    an earlier step is applied once more.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            optimizer.step()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    yield from _refused_by_a_scaler(run)
    for optimizer, losses in ask(undifferentiated):
        held = [run.tensor_by_id[number] for number in optimizer.tensors]
        for tensor in named(held):
            if tensor.used:
                besides = tuple((Trouble.NEVER_LEARNS, other.id) for other in held)
                idle = _NoBackward(optimizer, tuple(losses))
                yield Claim(("no backward", optimizer.id), idle, tensor, besides=besides)
    for optimizer in run.optimizers:
        again = [
            tensor
            for tensor in (run.tensor_by_id[number] for number in optimizer.tensors)
            if (ledger := tensor.ledger) is not None
            and ledger.reapplied >= limits.SLIPS
            and ledger.reapplied * 2 >= optimizer.uses
        ]
        if optimizer.fed * 2 <= optimizer.uses:
            for tensor in named(again):
                yield Claim(("again", optimizer.id), _Again(optimizer, again[0].ledger or _NONE), tensor)


@dataclass(frozen=True, slots=True)
class _NoBackward:
    """Steps without any backward; `losses` are results that one could have started from."""

    optimizer: Optimizer
    losses: tuple[tuple[str, Span], ...]


@dataclass(frozen=True, slots=True)
class _Again:
    """Steps that applied the gradient of the step before."""

    optimizer: Optimizer
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class _Unscaled:
    """A GradScaler that found no gradient."""

    optimizer: Optimizer
    crash: Crash


_Idle: TypeAlias = _NoBackward | _Again | _Unscaled


@step_without_backward.words
def _(told: Sequence[Claim[_Idle]], ask: Ask) -> Story:
    names, run = names_of(told), ask.run
    match told[0].evidence:
        case _NoBackward(optimizer, losses):
            return _no_backward(names, optimizer, losses, ask)
        case _Again(optimizer, ledger):
            return _again(names, optimizer, ledger, run)
        case _Unscaled(optimizer, crash):
            return _unscaled(names, optimizer, crash, run)


def _no_backward(names: tuple[str, ...], optimizer: Optimizer, losses: Sequence[tuple[str, Span]], ask: Ask) -> Story:
    run = ask.run
    edits = steps.differentiated(ask, optimizer, *losses[0]) if losses else ()
    those = who(names, run)
    held = (run.tensor_by_id[number].ledger for number in optimizer.tensors)
    arrived = any(ledger is not None and ledger.passes for ledger in held)
    return Story(
        f"{those.subject} {those.learns}: {optimizer.name} stepped {times_text(optimizer.steps)}, and no backward "
        f"ever {'brought a gradient for it' if arrived else f'reached {those.them}'}",
        optimizer.stepped or optimizer.made,
        "steps with no gradient",
        names,
        tuple(Label(span, f"`{name}` is computed here, and no backward starts from it") for name, span in losses),
        (f"{'cleared before every step' if arrived else 'no gradient ever arrived'}: {listed(names)}",),
        (Help(f"call `{losses[0][0] if losses else 'loss'}.backward()` before the step", edits),),
    )


def _again(names: tuple[str, ...], optimizer: Optimizer, ledger: Ledger, run: Run) -> Story:
    return Story(
        f"{who(names, run).subject}: {ledger.reapplied} of {optimizer.uses} steps applied the gradient of the "
        "step before again",
        optimizer.stepped or optimizer.made,
        "no gradient has arrived since the last step",
        names,
        (Label(ledger.backward, "they came from here"),) if ledger.backward is not None else (),
        (f"applied again: gradients of {listed(names)}",),
        (Help("call backward before every step"),),
    )


def _refused_by_a_scaler(run: Run) -> Iterator[Claim[_Idle]]:
    """A GradScaler finds no gradient to look at: a step through it raises where one without it does nothing."""
    crash = run.crash
    if crash is None or crash.symptom != "no scaled gradient" or run.backward_count or len(run.optimizers) != 1:
        return
    (optimizer,) = run.optimizers
    for tensor in named(run.tensors):
        if tensor.optimizer == optimizer.id and tensor.used and tensor.requires_grad:
            yield Claim("refused by a scaler", _Unscaled(optimizer, crash), tensor, severity="error")


def _unscaled(names: tuple[str, ...], optimizer: Optimizer, crash: Crash, run: Run) -> Story:
    those = who(names, run)
    return Story(
        f"{those.subject} {those.learns}: no backward ran before this step",
        crash.span,
        f"{crash.type}: there is no gradient to apply",
        names,
        (Label(optimizer.made, f"this {optimizer.name} holds {those.them}"),) if optimizer.made is not None else (),
        (f"no gradient ever arrived: {listed(names)}",),
        (Help("call `backward()` on the scaled loss: `scaler.scale(loss).backward()`"),),
        raised=True,
    )


def undifferentiated(ask: Ask) -> list[tuple[Optimizer, list[tuple[str, Span]]]]:
    """Optimizers that step though no backward ever reached what they hold, with the losses that were left alone.

    Their tensors are computed with, to a result that requires grad.
    """
    run = ask.run
    found = []
    for optimizer in run.optimizers:
        held = [tensor for tensor in run.tensors if tensor.optimizer == optimizer.id]
        ledgers = [tensor.ledger or _NONE for tensor in held]
        reached = any(ledger.passes or ledger.applied for ledger in ledgers)
        if optimizer.uses < limits.SLIPS or optimizer.fed:
            continue
        # Gradients of a loss that trains others may arrive, and be cleared before they meet a step.
        if reached and any(ledger.starved < optimizer.uses or ledger.cleared_first for ledger in ledgers):
            continue
        losses = _left_alone(ask, optimizer, held, reached)
        if losses and any(tensor.name is not None and tensor.used for tensor in held):
            found.append((optimizer, losses))
    return found


def _left_alone(ask: Ask, optimizer: Optimizer, held: list[Tensor], reached: bool) -> list[tuple[str, Span]]:
    """The last results computed from these tensors that no backward started from.

    Where backwards of other losses have `reached` the tensors, only a scalar will do.
    """
    for flow in reversed(ask(rounds, optimizer.id)):
        starts = [value for tensor in held for value in flow.values_of.get(tensor.id, ())]
        reach = flow.reach(starts, frozenset())
        # A pass of `autograd.grad` with respect to inputs fills no `.grad`.
        roots = [root for backward in flow.step.backwards if backward.kind == "backward" for root in backward.roots]
        behind = flow.behind(roots)
        if not reached and not reach.touched.isdisjoint(behind):
            return []
        taken = {value for operation in flow.operations for value in operation.inputs if _computes(flow, operation)}
        ends = [
            operation
            for operation in flow.operations
            if any(value in reach.alive - set(starts) and value not in taken for value in operation.outputs)
            and not (reached and (behind.intersection(operation.outputs) or not flow.is_scalar(operation.outputs[0])))
        ]
        if ends:
            return [_told(flow, ends[-1], ask.run)]
    return []


def _computes(flow: StepFlow, operation: Operation) -> bool:
    return any(flow.history[value] for value in operation.outputs)


def _told(flow: StepFlow, operation: Operation, run: Run) -> tuple[str, Span]:
    tensor = flow.tensor(operation.outputs[0])
    name = tensor.name if tensor is not None and tensor.name is not None else "loss"
    assert operation.span is not None
    return name, last_call(operation.span, run.sources)


@rule("warning", needs=[])
def never_stepped(ask: Ask) -> Iterator[Claim[Optimizer]]:
    """Gradients arrive at what an optimizer holds, and the optimizer never steps.

    Backward fills `.grad`; only `optimizer.step()` changes values. `scheduler.step()` changes the learning rate and
    nothing else, and a step under a condition that never holds is no step.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    if run.ended in ("exception", "interrupt"):
        return
    for optimizer in run.optimizers:
        if optimizer.steps or optimizer.withheld or optimizer.refused:
            continue
        held = [tensor for tensor in named(run.tensors) if tensor.optimizer == optimizer.id]
        if any((tensor.ledger or _NONE).by_hand or tensor.change for tensor in held):
            continue
        for tensor in held:
            passes = (tensor.ledger or _NONE).passes
            if passes >= limits.BACKWARDS_WITHOUT_STEP and not tensor.change and _is_applicable(tensor):
                yield Claim(optimizer.id, optimizer, tensor)


@never_stepped.words
def _(told: Sequence[Claim[Optimizer]], ask: Ask) -> Story:
    run, optimizer, waiting = ask.run, told[0].evidence, subjects(told)
    names = names_of(told)
    ledger = max((tensor.ledger or _NONE for tensor in waiting), key=lambda ledger: ledger.passes)
    those = who(names, run)
    backward = _latest_to(run, waiting)
    edits = steps.stepped(ask, optimizer, backward.span if backward is not None else ledger.backward)
    return Story(
        f"{those.subject} {those.learns}: gradients arrived in {ledger.passes} backwards, and {optimizer.name} "
        "never stepped",
        backward.span if backward is not None else ledger.backward,
        "gradients arrive here, and nothing applies them",
        names,
        (Label(optimizer.made, f"this {optimizer.name} holds {those.them}"),) if optimizer.made else (),
        (f"never moved: {listed(names)}",),
        (Help("call `optimizer.step()` after backward", edits),),
    )


def _is_applicable(tensor: Tensor) -> bool:
    """Whether a gradient was finite, as far as they were measured: of others a scaler keeps the step back."""
    return not tensor.gradient_norms or any(norm is not None for norm in tensor.gradient_norms)


def _latest_to(run: Run, tensors: list[Tensor]) -> Backward | None:
    """The latest backward to these that reaches little else: a loss of others may lead through them as well."""
    wanted = {tensor.id for tensor in tensors}
    reaching = (b for step in run.steps for b in step.backwards if wanted.intersection(b.arrivals))
    return max(
        reversed(list(reaching)),
        key=lambda found: len(wanted.intersection(found.arrivals)) / len(set(found.arrivals)),
        default=None,
    )
