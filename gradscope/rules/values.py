"""Gradients that vanish or explode, on their way back or from step to step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Operation, Optimizer, Run, Tensor
from gradscope.graph.naming import line_of
from gradscope.graph.profiles import ProfileFlow, Stage, repeated
from gradscope.graph.sizes import chain, course_text, late_norm, profile_fact, profile_flows, trained, typical_size
from gradscope.rules.claim import Claim, Need, Story, Trouble, names_of, rule, subjects
from gradscope.rules.words import owner


@rule("warning", needs=[Need.OPERATIONS, Need.VALUES])
def vanishing_gradient(ask: Ask) -> Iterator[Claim[_Vanished]]:
    """The gradient becomes smaller by many orders of magnitude on its way back.

    A chain of layers or of time steps multiplies the gradient by their derivatives, one after the other. Where each is
    below 1, what comes to the far end is too small to learn from.

    Bad:

        import torch
        from torch import nn

        layers = [module for _ in range(12) for module in (nn.Linear(8, 8), nn.Sigmoid())]
        net = nn.Sequential(*layers, nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            x = torch.rand(16, 8)
            loss = (net(x) - x.sum(dim=1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        layers = [module for _ in range(12) for module in (nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8))]
        net = nn.Sequential(*layers, nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            x = torch.rand(16, 8)
            loss = (net(x) - x.sum(dim=1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for flow in ask(profile_flows):
        found = [(tensor, vanished) for tensor in trained(ask.run) if (vanished := _vanished(ask.run, flow, tensor))]
        for tensor, vanished in found:
            yield Claim(line_of(vanished.operation.span), vanished, tensor)
        if found:
            return


@dataclass(frozen=True, slots=True)
class _Vanished:
    """Where most of a gradient is lost on its way, how large it is at the end, and how large the largest on the way."""

    flow: ProfileFlow
    operation: Operation
    way: list[Stage]
    size: float
    largest: float


def _vanished(run: Run, flow: ProfileFlow, tensor: Tensor) -> _Vanished | None:
    sizes = {other.id: size for other in trained(run) if other.id in flow.leaves and (size := typical_size(other))}
    size = sizes.get(tensor.id, 0.0)
    if not 0 < size < limits.VANISHED * max(sizes.values()):
        return None
    way = flow.way(tensor.id)
    largest = _largest_on(run, way, sizes)
    opening = [stage for stage in way if _opens(run, stage, tensor)]
    if not size / 10 ** sum(stage.growth for stage in opening) < limits.VANISHED * largest:
        return None
    way = [stage for stage in way if stage not in opening]
    if not way or any(stage.adds and stage.growth < limits.SHRUNK for stage in way):
        return None  # what is left where a sum cancels is rounding noise
    worst = min(way, key=lambda stage: stage.growth)
    once = worst.growth < limits.AT_ONCE * sum(min(0.0, stage.growth) for stage in way)
    if once and worst.name in ops.PRODUCT_NODES | {"Div", "WeightNormInterface"}:
        return None  # scaled down once, on purpose, or multiplied by what is small; or of a single element
    lines = [(operation, _shrinking(stages)) for operation, _, stages in repeated(way)]
    operation, growth = min(lines, key=lambda line: line[1], default=(None, 0.0))
    if operation is None or operation.span is None or growth >= limits.SHRUNK:
        return None
    return _Vanished(flow, operation, way, size, largest)


@vanishing_gradient.groups
def _(claims: Sequence[Claim[_Vanished]], ask: Ask) -> Iterator[Sequence[Claim[_Vanished]]]:
    """Those of one line, and with them those of one module: a model that is called on two lines is one story."""
    lines: dict[object, list[Claim[_Vanished]]] = {}
    for claim in claims:
        lines.setdefault(claim.cause, []).append(claim)
    found: list[list[Claim[_Vanished]]] = []
    for group in lines.values():
        for other in found:
            if owner([tensor.name or "" for tensor in subjects([*other, *group])]) is not None:
                other += group
                break
        else:
            found.append([*group])
    return iter(found)


@vanishing_gradient.words
def _(told: Sequence[Claim[_Vanished]], ask: Ask) -> Story:
    worst = min(told, key=lambda claim: claim.evidence.size)
    vanished, (tensor,) = worst.evidence, subjects([worst])
    span = vanished.operation.span
    further = dict.fromkeys(claim.evidence.operation.span for claim in told if claim.evidence.operation.span != span)
    times = sum(stage.operation is not None and stage.operation.span == span for stage in vanished.way)
    return Story(
        f"the gradient vanishes on its way to `{tensor.name}`: it is "
        f"{vanished.largest / vanished.size:.0e} times smaller than others on this way",
        span,
        f"it becomes smaller here, {times} times in a row" if times > 1 else "it becomes smaller here",
        labels=tuple(Label(place, "and here") for place in further if place is not None),
        facts=(*profile_fact(ask.run, vanished.flow), f"note: on the way: {course_text(vanished.way)}"),
        help=(Help(_VANISHING_HELP),),
    )


def _largest_on(run: Run, way: list[Stage], sizes: Mapping[int, float]) -> float:
    """The largest gradient of the layers that the way to a tensor leads through.

    Others on other ways have other units: the noise of a Gaussian process, and the points that it is computed at. A
    single number collects a gradient from all that it takes part in.
    """
    on_the_way = {leaf for stage in way for leaf in (*stage.factors, *stage.addends)}
    return max(
        (sizes.get(leaf, 0.0) for leaf in on_the_way if math.prod(run.tensor_by_id[leaf].shape) > 1), default=0.0
    )


def _opens(run: Run, stage: Stage, tensor: Tensor) -> bool:
    """Whether a stage multiplies by what started at 0 and has grown only little since: a branch that is to open.

    It starts at 0 itself (the weights of a last layer, gamma, B of LoRA), or is computed, as a gate is: then the
    gradient behind it was exactly 0 at first.
    """
    if stage.growth > limits.OPENING or stage.name not in ops.PRODUCT_NODES | ops.NORM_NODES:
        return False
    started = any(run.tensor_by_id[leaf].start == 0 for leaf in stage.factors)
    return started or (tensor.gradient_norms[0] == 0 and stage.name == "Mul")


_VANISHING_HELP = (
    "shorten the way: residual connections, a gated or leaky state, normalisation, or activations such as ReLU whose "
    "derivative is 1"
)


@rule("warning", needs=[Need.OPERATIONS, Need.VALUES])
def exploding_gradient(ask: Ask) -> Iterator[Claim[_Exploded]]:
    """The gradient becomes larger by many orders of magnitude, on its way back or from step to step.

    A chain of layers or of time steps whose derivatives are above 1 multiplies the gradient at each. A learning rate
    that is too large does so from step to step.

    Bad:

        import torch
        from torch import nn

        torch.manual_seed(0)
        w = nn.Parameter(3 * torch.randn(8, 8))
        optimizer = torch.optim.Adam([w], lr=1e-3)
        for _ in range(5):
            h = torch.rand(16, 8)
            for _ in range(20):
                h = h @ w
            loss = h.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(8, 8))
        optimizer = torch.optim.Adam([w], lr=1e-3)
        for _ in range(5):
            h = torch.rand(16, 8)
            for _ in range(20):
                h = nn.functional.layer_norm(h @ w, (8,))
            loss = h.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    large = [tensor for tensor in trained(ask.run) if late_norm(tensor) > limits.EXPLODED]
    explains = ((Trouble.NOT_FINITE, None), (Trouble.OUT_OF_RANGE, None))
    for flow in ask(profile_flows) if large else ():
        found = [(tensor, grown) for tensor in large if (grown := _grown(flow, tensor)) is not None]
        for tensor, grown in found:
            yield Claim("way", grown, tensor, explains=(), besides=explains)
        if found:
            return
    for optimizer in ask.run.optimizers:
        for tensor in large:
            if tensor.optimizer == optimizer.id and _growth(tensor) > limits.DIVERGED and optimizer.made is not None:
                yield Claim(optimizer.id, optimizer, tensor, explains=explains[1:], besides=explains)


@dataclass(frozen=True, slots=True)
class _Grown:
    """The operation at which a gradient grows most often on its way, and by how many powers of ten in all."""

    flow: ProfileFlow
    operation: Operation
    way: list[Stage]
    total: float


_Exploded: TypeAlias = _Grown | Optimizer  # on the way, or from step to step of an optimizer


def _grown(flow: ProfileFlow, tensor: Tensor) -> _Grown | None:
    way = flow.way(tensor.id)
    chains = [(operation, chain(stages)) for operation, _, stages in repeated(way)]
    lines = [(operation, links) for operation, links in chains if _multiplying(links)]
    total = sum(stage.growth for _, links in lines for stage in links)
    operation = max(lines, key=lambda line: _multiplying(line[1]), default=(None, []))[0]
    if operation is None or total < limits.EXPLODED_ON_THE_WAY:
        return None
    return _Grown(flow, operation, way, total)


@exploding_gradient.words
def _(told: Sequence[Claim[_Exploded]], ask: Ask) -> Story:
    evidence = told[0].evidence
    if isinstance(evidence, Optimizer):
        return _diverging(evidence, subjects(told))
    grown = [(claim.evidence, claim.tensor) for claim in told if isinstance(claim.evidence, _Grown)]
    worst, tensor = max(grown, key=lambda pair: pair[0].total)
    assert tensor is not None
    span = worst.operation.span
    times = sum(stage.operation is not None and stage.operation.span == span for stage in worst.way)
    return Story(
        f"the gradient explodes on its way to `{tensor.name}`: |grad| is {late_norm(tensor):.1e}",
        span,
        f"it becomes larger here, {times} times in a row",
        names_of(told),
        facts=(*profile_fact(ask.run, worst.flow), f"note: on the way: {course_text(worst.way)}"),
        help=(Help("keep the factor of each step at 1 or below: normalise it, or start with smaller weights"),),
    )


def _diverging(optimizer: Optimizer, grown: Sequence[Tensor]) -> Story:
    """The gradient grows from step to step: the updates lead away from where they should."""
    worst = max(grown, key=_growth)
    norms = [norm for norm in worst.gradient_norms if norm is not None]
    unclipped = not any(clips.in_time for tensor in grown if tensor.ledger for clips in tensor.ledger.clips)
    course = " -> ".join(f"{norms[len(norms) * part // 4]:.1e}" for part in range(4))
    return Story(
        f"the gradients explode from step to step: |grad| of `{worst.name}` grew {_growth(worst):.0e} times",
        optimizer.made,
        "each step of this optimizer makes the next gradient larger",
        facts=(f"|grad| of {worst.name} over the steps: {course} -> {norms[-1]:.1e}",),
        help=(Help("use a smaller learning rate" + (", or clip the gradients before the step" if unclipped else "")),),
    )


def _growth(tensor: Tensor) -> float:
    norms = [norm for norm in tensor.gradient_norms if norm]
    return late_norm(tensor) / statistics.median(norms[: max(1, len(norms) // 4)]) if norms else 0.0


def _shrinking(stages: list[Stage]) -> float:
    """How much smaller the chain on a line makes the gradient, or one stage of it by itself, in powers of ten.

    A line that runs a whole model has many stages of many kinds, each of which takes its share once: no chain.
    """
    return min(sum(stage.growth for stage in chain(stages)), min(stage.growth for stage in stages))


def _multiplying(stages: list[Stage]) -> int:
    return sum(not stage.adds for stage in stages)
