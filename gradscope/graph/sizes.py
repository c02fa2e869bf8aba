"""How large gradients are: of the tensors that somebody relies on, and along the way of a profile."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Run, Tensor
from gradscope.graph.profiles import ProfileFlow, Stage


def profile_flows(ask: Ask) -> tuple[ProfileFlow, ...]:
    """The ways of the gradient through the passes that were profiled."""
    return tuple(map(ProfileFlow, ask.run.profiles))


def trained(run: Run) -> list[Tensor]:
    """The tensors that somebody relies on: an optimizer that steps holds them."""
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    return [
        tensor
        for tensor in run.tensors
        if tensor.optimizer in stepped and tensor.leaf and tensor.requires_grad and tensor.name is not None
    ]


def typical_size(tensor: Tensor) -> float:
    """The median over the steps of the root mean square of a gradient's elements."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    return statistics.median(norms) / math.sqrt(math.prod(tensor.shape) or 1) if norms else 0.0


def late_norm(tensor: Tensor) -> float:
    """The median over the later half of the steps."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    return statistics.median(norms[len(norms) // 2 :]) if norms else 0.0


def chain(stages: list[Stage]) -> list[Stage]:
    """The stages on a line that come again and again there: one large factor by itself is no chain."""
    counts = Counter(stage.name for stage in stages)
    return [stage for stage in stages if counts[stage.name] >= limits.LINKS]


def profile_fact(run: Run, flow: ProfileFlow) -> Iterator[str]:
    """|grad| of the tensors in the order in which the gradient comes to them."""
    rows = [(flow.leaves[tensor.id], tensor) for tensor in trained(run) if tensor.id in flow.leaves]
    shown = [f"{tensor.name} {late_norm(tensor):.1e}" for _, tensor in sorted(rows, key=lambda row: row[0])]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-4:]]
    yield f"|grad| from the loss on: {', '.join(shown)}"


def course_text(way: list[Stage]) -> str:
    """The size of the gradient at some places of its way."""
    picked = [way[len(way) * part // 6] for part in range(6)] if len(way) > 6 else way
    return " -> ".join([f"{stage.arrived:.0e}" for stage in picked] + [f"{way[-1].sent:.0e}"])
