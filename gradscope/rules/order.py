"""The order of a step: clear, forward, backward, step. What a gradient is worth that comes at the wrong time."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from gradscope.graph.facts import Backward, Finding, Help, Label, Ledger, Operation, Optimizer, Run, Span, Tensor
from gradscope.graph.naming import expression, last_call
from gradscope.graph.once import once
from gradscope.graph.paths import StepFlow, rounds
from gradscope.rules.lost import frozen_out, lost
from gradscope.rules.successors import replaced
from gradscope.rules.wording import listed, steps_text, times_text, who

_NONE = Ledger()


def missing_zero_grad(run: Run) -> Iterator[Finding]:
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
    optimizers = {optimizer.id: optimizer for optimizer in run.optimizers}
    groups: dict[tuple[object, int | None], list[tuple[Tensor, Ledger]]] = defaultdict(list)
    for tensor in run.tensors:
        ledger = tensor.ledger or _NONE
        if tensor.name is not None and ledger.piled >= 2 and ledger.piled * 2 >= ledger.applied:
            groups[_line(ledger.backward), tensor.optimizer].append((tensor, ledger))
    for (_, number), found in groups.items():
        names = tuple(dict.fromkeys(tensor.name or "" for tensor, _ in found))
        ledger = max((ledger for _, ledger in found), key=lambda ledger: ledger.piled)
        optimizer = optimizers.get(number or 0)
        stepped = optimizer.stepped if optimizer is not None else None
        those = who(names, run)
        uses = "updates" if optimizer is None else "steps" if optimizer.uses == optimizer.steps else "closure calls"
        labels = []
        if stepped is not None:
            labels.append(Label(stepped, "uses the sum of all gradients since the last clear"))
        yield Finding(
            "missing-zero-grad",
            "warning",
            f"{those.subject} {'piles' if those.one else 'pile'} up gradients: {ledger.piled} of "
            f"{ledger.applied} {uses} used those of earlier ones again",
            ledger.backward,
            "adds to the gradients that were used already",
            names,
            tuple(labels),
            (f"never cleared between a step and the next backward: {listed(names)}",),
            (Help(_clear_by(optimizer, uses, run)),),
        )
    yield from _left_over(run)


def _left_over(run: Run) -> Iterator[Finding]:
    """A loss that one optimizer follows reaches tensors of another, whose next step takes those gradients along.

    In a GAN, the discriminator has gradients of the generator's loss, against which it is to learn.
    """
    for optimizer in run.optimizers:
        found = [
            (tensor, ledger)
            for tensor in run.tensors
            if tensor.optimizer == optimizer.id and tensor.name is not None and (ledger := tensor.ledger) is not None
            if ledger.leftover >= 2 and ledger.leftover * 2 >= ledger.applied
        ]
        if not found:
            continue
        names = tuple(dict.fromkeys(tensor.name or "" for tensor, _ in found))
        ledger = max((ledger for _, ledger in found), key=lambda ledger: ledger.leftover)
        those = who(names, run)
        stepped = optimizer.stepped
        labels = (Label(stepped, "uses them together with those of its own loss"),) if stepped is not None else ()
        yield Finding(
            "missing-zero-grad",
            "warning",
            f"{those.subject} {'takes' if those.one else 'take'} gradients of another loss along: {ledger.leftover} of "
            f"{ledger.applied} steps used what was left of it",
            ledger.leftover_at,
            f"adds to the gradients of {those.subject} as well, after {'its' if those.one else 'their'} step",
            names,
            labels,
            (f"not cleared between the two backwards: {listed(names)}",),
            (Help(f"call `{_called(optimizer, run)}.zero_grad()` right before the backward that its step follows"),),
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


def zero_grad_before_step(run: Run) -> Iterator[Finding]:
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
    told: set[int] = set()
    for optimizer in run.optimizers:
        for part, found in (("", _cleared_first(run, optimizer)), ("part of ", _robbed(run, optimizer))):
            found = [tensor for tensor in found if tensor.id not in told]
            if found:
                told.update(tensor.id for tensor in found)
                yield _starved(run, optimizer, found, part)
    tensors = run.tensor_by_id
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    # A backward whose way to what it was to train is cut is in vain for that reason.
    cut = {backward.span for loss in lost(run) for backward in loss.flow.step.backwards}
    for discard in run.discards:
        reached = [tensors[number] for number in discard.tensors]
        held = [tensor for tensor in reached if tensor.optimizer in stepped and tensor.name is not None]
        if discard.vain < 2 or discard.vain * 2 < discard.passes or not held or discard.backward in cut:
            continue
        if told.intersection(discard.tensors):
            continue
        names = tuple(dict.fromkeys(tensor.name or "" for tensor in held))
        yield Finding(
            "zero-grad-before-step",
            "error",
            f"{discard.vain} of {discard.passes} backwards are in vain: their gradients are cleared before any step "
            "uses them",
            discard.cleared or discard.backward,
            "the gradients are thrown away here",
            names,
            (Label(discard.backward, "they arrive here"),) if discard.backward and discard.cleared else (),
            (f"thrown away: gradients of {listed(names)}",),
            (Help("clear once in every step, before its first backward, and step after its last"),),
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
        if ledger.cleared_first >= 2 and ledger.cleared_first * 2 >= optimizer.uses:
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
        and tensor.ledger.robbed >= 2
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


def _starved(run: Run, optimizer: Optimizer, found: list[Tensor], part: str) -> Finding:
    names = tuple(dict.fromkeys(tensor.name or "" for tensor in found))
    ledger = max((tensor.ledger or _NONE for tensor in found), key=lambda ledger: ledger.cleared_first)
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
    if optimizer.stepped is not None:
        labels.append(Label(optimizer.stepped, f"and this finds {'the rest' if part else 'none'}"))
    return Finding(
        "zero-grad-before-step",
        "error",
        message,
        ledger.cleared or optimizer.stepped,
        "the gradients are thrown away here",
        names,
        tuple(labels),
        (f"cleared between backward and step: {listed(names)}",),
        (Help("clear everything before the first backward" if part else "clear before backward, or after the step"),),
    )


def step_without_backward(run: Run) -> Iterator[Finding]:
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
    tensors = run.tensor_by_id
    yield from _refused_by_a_scaler(run)
    for optimizer, losses in undifferentiated(run):
        held = [tensors[number] for number in optimizer.tensors]
        names = tuple(tensor.name for tensor in held if tensor.name is not None and tensor.used)
        those = who(names, run)
        arrived = any(tensor.ledger is not None and tensor.ledger.passes for tensor in held)
        yield Finding(
            "step-without-backward",
            "warning",
            f"{those.subject} {those.learns}: {optimizer.name} stepped {times_text(optimizer.steps)}, and no backward "
            f"ever {'brought a gradient for it' if arrived else f'reached {those.them}'}",
            optimizer.stepped or optimizer.made,
            "steps with no gradient",
            names,
            tuple(Label(span, f"`{name}` is computed here, and no backward starts from it") for name, span in losses),
            (f"{'cleared before every step' if arrived else 'no gradient ever arrived'}: {listed(names)}",),
            (Help(f"call `{losses[0][0] if losses else 'loss'}.backward()` before the step"),),
        )
    for optimizer in run.optimizers:
        again = [
            tensors[number]
            for number in optimizer.tensors
            if (ledger := tensors[number].ledger) is not None
            and ledger.reapplied >= 2
            and ledger.reapplied * 2 >= optimizer.uses
        ]
        names = tuple(tensor.name for tensor in again if tensor.name is not None)
        if not names or optimizer.fed * 2 > optimizer.uses:
            continue
        ledger = again[0].ledger or _NONE
        yield Finding(
            "step-without-backward",
            "warning",
            f"{who(names, run).subject}: {ledger.reapplied} of {optimizer.uses} steps applied the gradient of the "
            "step before again",
            optimizer.stepped or optimizer.made,
            "no gradient has arrived since the last step",
            names,
            (Label(ledger.backward, "they came from here"),) if ledger.backward is not None else (),
            (f"applied again: gradients of {listed(names)}",),
            (Help("call backward before every step"),),
        )


def _refused_by_a_scaler(run: Run) -> Iterator[Finding]:
    """A GradScaler finds no gradient to look at: a step through it raises where one without it does nothing."""
    crash = run.crash
    if crash is None or crash.symptom != "no scaled gradient" or run.backward_count or len(run.optimizers) != 1:
        return
    (optimizer,) = run.optimizers
    held = [tensor for tensor in run.tensors if tensor.optimizer == optimizer.id and tensor.name is not None]
    names = tuple(tensor.name or "" for tensor in held if tensor.used and tensor.requires_grad)
    if not names:
        return
    those = who(names, run)
    yield Finding(
        "step-without-backward",
        "error",
        f"{those.subject} {those.learns}: no backward ran before this step",
        crash.span,
        f"{crash.type}: there is no gradient to apply",
        names,
        (Label(optimizer.made, f"this {optimizer.name} holds {those.them}"),) if optimizer.made is not None else (),
        (f"no gradient ever arrived: {listed(names)}",),
        (Help("call `backward()` on the scaled loss: `scaler.scale(loss).backward()`"),),
        raised=True,
    )


@once
def undifferentiated(run: Run) -> list[tuple[Optimizer, list[tuple[str, Span]]]]:
    """Optimizers that step though no backward ever reached what they hold, with the losses that were left alone.

    Their tensors are computed with, to a result that requires grad; where they are not used at all, or cut off on the
    way to a loss that was differentiated, other rules tell why.
    """
    told = {tensor.id for loss in lost(run) for tensor in loss.tensors}
    told |= {tensor.id for tensor, _ in frozen_out(run)}
    told |= {old.id for old, _ in replaced(run)}
    found = []
    for optimizer in run.optimizers:
        held = [tensor for tensor in run.tensors if tensor.optimizer == optimizer.id]
        ledgers = [tensor.ledger or _NONE for tensor in held]
        reached = any(ledger.passes or ledger.applied for ledger in ledgers)
        if optimizer.uses < 2 or optimizer.fed or told.intersection(tensor.id for tensor in held):
            continue
        # Gradients of a loss that trains others may arrive, and be cleared before they meet a step.
        if reached and any(ledger.starved < optimizer.uses or ledger.cleared_first for ledger in ledgers):
            continue
        losses = _left_alone(run, optimizer, held, reached)
        if losses and any(tensor.name is not None and tensor.used for tensor in held):
            found.append((optimizer, losses))
    return found


def _left_alone(run: Run, optimizer: Optimizer, held: list[Tensor], reached: bool) -> list[tuple[str, Span]]:
    """The last results computed from these tensors that no backward started from.

    Where backwards of other losses have `reached` the tensors, only a scalar will do.
    """
    for flow in reversed(rounds(run, optimizer.id)):
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
            return [_told(flow, ends[-1], run)]
    return []


def _computes(flow: StepFlow, operation: Operation) -> bool:
    return any(flow.history[value] for value in operation.outputs)


def _told(flow: StepFlow, operation: Operation, run: Run) -> tuple[str, Span]:
    tensor = flow.tensor(operation.outputs[0])
    name = tensor.name if tensor is not None and tensor.name is not None else "loss"
    assert operation.span is not None
    return name, last_call(operation.span, run.sources)


def never_stepped(run: Run) -> Iterator[Finding]:
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
    if run.ended in ("exception", "interrupt"):
        return
    for optimizer in run.optimizers:
        if optimizer.steps or optimizer.refused:
            continue
        held = [tensor for tensor in run.tensors if tensor.optimizer == optimizer.id and tensor.name is not None]
        waiting = [
            tensor
            for tensor in held
            if (tensor.ledger or _NONE).passes >= 3 and not tensor.change and _is_applicable(tensor)
        ]
        used = any((tensor.ledger or _NONE).by_hand or tensor.change for tensor in held)
        if not waiting or used:
            continue
        names = tuple(dict.fromkeys(tensor.name or "" for tensor in waiting))
        ledger = max((tensor.ledger or _NONE for tensor in waiting), key=lambda ledger: ledger.passes)
        those = who(names, run)
        backward = _latest_to(run, waiting)
        yield Finding(
            "never-stepped",
            "warning",
            f"{those.subject} {those.learns}: gradients arrived in {ledger.passes} backwards, and {optimizer.name} "
            "never stepped",
            backward.span if backward is not None else ledger.backward,
            "gradients arrive here, and nothing applies them",
            names,
            (Label(optimizer.made, f"this {optimizer.name} holds {those.them}"),) if optimizer.made else (),
            (f"never moved: {listed(names)}",),
            (Help("call `optimizer.step()` after backward"),),
        )


def _is_applicable(tensor: Tensor) -> bool:
    """Whether a gradient was finite, as far as they were measured: of others a scaler keeps the step back."""
    return not tensor.gradient_norms or any(norm is not None for norm in tensor.gradient_norms)


def _latest_to(run: Run, tensors: list[Tensor]) -> Backward | None:
    wanted = {tensor.id for tensor in tensors}
    backwards = [backward for step in run.steps for backward in step.backwards]
    return next((found for found in reversed(backwards) if wanted.intersection(found.arrivals)), None)


def _line(span: Span | None) -> tuple[str, int] | None:
    return (span.file, span.line) if span is not None else None
