"""Gradients that are clipped where there is nothing to clip, or not yet what the step will use."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.events import Unscaled
from gradscope.graph.facts import Clips, Help, Label, Ledger, Optimizer, Run, Span, Tensor
from gradscope.graph.naming import expression, line_of, named
from gradscope.rules.claim import Claim, Story, Trouble, names_of, rule, subjects
from gradscope.rules.mends import steps
from gradscope.rules.words import listed, who

_Timing: TypeAlias = Literal["early", "late", "scaled"]


@rule("warning", needs=[])
def misplaced_clip(ask: Ask) -> Iterator[Claim[_Misplaced]]:
    """Gradients are clipped before the backward that brings them, after the step, or while they are scaled.

    `clip_grad_norm_` and `clip_grad_value_` work on what `.grad` holds at that moment. Before `backward()` that is
    nothing, or what an earlier step has left; after `step()` it has been used already: the step then applies gradients
    that nobody has clipped. A GradScaler multiplies the loss, and with it the gradients, by a scale such as 65,536,
    and divides by it in `step`: clipped to 1 before, they are no larger than 0.000015 after. Call
    `scaler.unscale_(optimizer)` first.

    It makes no difference who calls it by which name: a helper, an alias, a trainer. With several optimizers, each
    step counts with the backward before it. Clipping after each of several backwards is fine, as with accumulation,
    and so is `max_norm=inf`, which reads the norm and changes nothing.

    Bad:

        import torch
        from torch.nn.utils import clip_grad_norm_ as clip

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            clip(net.parameters(), max_norm=1.0)
            loss = net(torch.rand(8, 4)).square().mean()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch.nn.utils import clip_grad_norm_ as clip

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = net(torch.rand(8, 4)).square().mean()
            loss.backward()
            clip(net.parameters(), max_norm=1.0)
            optimizer.step()
    """
    found = [
        (tensor, clips, timing)
        for tensor in named(ask.run.tensors)
        if tensor.ledger is not None
        for clips in tensor.ledger.clips
        if (timing := _mistimed(tensor.ledger, clips)) is not None
    ]
    # A line that clips what it should is no slip where it comes by tensors of another optimizer as well.
    in_time = Counter(
        clips.span for tensor in ask.run.tensors if tensor.ledger for clips in tensor.ledger.clips if clips.in_time
    )
    mistimed = Counter(clips.span for _, clips, _ in found)
    for tensor, clips, timing in found:
        if in_time[clips.span] < mistimed[clips.span]:
            besides = [(Trouble.UNMOVED, tensor.id)]
            if timing != "scaled":
                besides.append((Trouble.PILED, tensor.id))
            evidence = _Misplaced(clips, timing)
            yield Claim((line_of(clips.span), timing), evidence, tensor, besides=tuple(besides))


@dataclass(frozen=True, slots=True)
class _Misplaced:
    """One line's clips of a tensor's gradient, at the wrong time."""

    clips: Clips
    timing: _Timing

    @property
    def count(self) -> int:
        """How many uses were of a gradient that it clipped too early, too late or while scaled."""
        return _count(self.clips, self.timing)


def _count(clips: Clips, timing: _Timing) -> int:
    return {"early": clips.early, "late": clips.late, "scaled": clips.scaled}[timing]


def _mistimed(ledger: Ledger, clips: Clips) -> _Timing | None:
    """How most uses of a gradient were mistimed by a line's clips, if most were."""
    timings: tuple[_Timing, ...] = ("early", "late", "scaled")
    timing = max(timings, key=lambda timing: _count(clips, timing))
    count = _count(clips, timing)
    if count < limits.SLIPS or count * 2 < ledger.applied:
        return None
    if timing == "scaled" and (clips.scale is None or clips.limit >= limits.SCALED_LIMIT * clips.scale):
        return None  # the limit is scaled as well
    return timing


@misplaced_clip.words
def _(told: Sequence[Claim[_Misplaced]], ask: Ask) -> Story:
    run, names = ask.run, names_of(told)
    worst = max((claim.evidence for claim in told), key=lambda evidence: evidence.count)
    tensor = subjects(told)[0]
    ledger = tensor.ledger or Ledger()
    optimizer = next((held for held in run.optimizers if held.id == tensor.optimizer), None)
    those = who(names, run)
    share = f"in {worst.count} of {ledger.applied} {'steps' if optimizer is not None else 'updates'}"
    piled = any(_is_piled(tensor) for tensor in subjects(told))
    facts = [f"not clipped as they are used: gradients of {listed(names)}"]
    if worst.timing == "scaled":
        return _scaled(worst.clips, names, optimizer, f"the gradients of {those.subject}", share, ask)
    if piled:
        facts.append("note: nothing clears them between a step and the next backward either, so they pile up")
    labels = []
    if ledger.backward is not None:
        labels.append(Label(ledger.backward, "the gradients arrive here"))
    if optimizer is not None and optimizer.stepped is not None:
        labels.append(Label(optimizer.stepped, "and are used here, unclipped"))
    late = worst.timing == "late"
    edits = steps.clipped_in_time(ask, worst.clips.span, ledger.backward)
    when = "after the step that used them" if late else "before the backward that brings them"
    return Story(
        f"the gradients of {those.subject} are clipped {when}, {share}",
        worst.clips.span,
        "clips what has been used already" if late else "there is nothing yet to clip",
        names,
        tuple(labels),
        tuple(facts),
        (Help("clip between `backward()` and the step", edits),),
    )


def _is_piled(tensor: Tensor) -> bool:
    ledger = tensor.ledger or Ledger()
    return ledger.piled >= limits.SLIPS and ledger.piled * 2 >= ledger.applied


def _scaled(
    clips: Clips, names: tuple[str, ...], optimizer: Optimizer | None, whose: str, share: str, ask: Ask
) -> Story:
    """Gradients that were clipped while they were multiplied by the scale of a GradScaler."""
    scale = clips.scale or 1.0
    divided = _unscaled_at(ask.run, optimizer)
    labels = (Label(divided, "divided by the scale here, after it"),) if divided is not None else ()
    known = _unscaling(optimizer, ask.run)
    call = known or "scaler.unscale_(optimizer)"
    stepped = optimizer.stepped if optimizer is not None else None
    edits = steps.unscaled(ask, clips.span, stepped, divided, call) if known is not None else ()
    return Story(
        f"{whose} are clipped while they are multiplied by a GradScaler's scale, {share}",
        clips.span,
        f"they are {scale:,.0f} times too large here",
        names,
        labels,
        (f"why: a limit of {clips.limit:g} is {clips.limit / scale:.2g} once they are divided by the scale",),
        (Help(f"call `{call}` before it, after `backward()`", edits),),
    )


def _unscaled_at(run: Run, optimizer: Optimizer | None) -> Span | None:
    """The line that last divided the gradients of an optimizer by the scale."""
    if optimizer is None:
        return None
    events = (event for step in reversed(run.steps) for event in reversed(step.events))
    return next((e.place for e in events if isinstance(e, Unscaled) and e.optimizer == optimizer.id), None)


def _unscaling(optimizer: Optimizer | None, run: Run) -> str | None:
    """The call that is missing, in the words of the program's `scaler.step(optimizer)`."""
    node = expression(optimizer.stepped, run.sources) if optimizer is not None and optimizer.stepped else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step" and node.args:
        return f"{ast.unparse(node.func.value)}.unscale_({ast.unparse(node.args[0])})"
    return None
