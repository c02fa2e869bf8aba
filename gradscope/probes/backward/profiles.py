"""The course of the gradient through one pass: how large it is at each node of the graph, and on each edge.

A gradient that is exactly zero, very small next to its siblings, or very large, is so again in the next pass. So the
norms that are known of every step decide which pass to look at, and one such pass is looked at in full, with a hook on
each node. Nothing is hooked in all other passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from gradscope.graph import limits
from gradscope.probes.backward.nonfinite import graph_behind
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.tensors.shards import has_values, local
from gradscope.probes.training.courses import Meter

if TYPE_CHECKING:
    from gradscope.probes.records import OperationRecord, OptimizerMark, Subject
    from gradscope.probes.tape import Tape

# Nodes of a graph that is looked at. Those that Python has seen die by recursion: 30,000 may be too many for a stack.
LARGEST = 16_000
MOST = 3  # profiles of one run,
_OF_THE_DEAD = 2  # and those of gradients that have become zero for good midway
_PATIENCE = 16  # passes that may go by before one reaches a suspect


@dataclass(slots=True)
class Profile:
    """One pass. Columns, one entry a node: its name, number, edges (place of the target), leaf; norms come later."""

    step: int
    names: list[str]
    sequences: list[int]
    targets: list[list[int | None]]
    leaves: dict[int, Subject]
    operations: list[OperationRecord]
    arrived: list[float | None]
    sent: list[list[float | None]]
    halves: set[int] = field(default_factory=set)  # nodes that sent a gradient in float16


@dataclass(slots=True)
class Profiling:
    """A pass under way: the hooks, and the norms as they come, for node `place` (edge None for what arrives)."""

    profile: Profile
    hooks: list[Any] = field(default_factory=list)
    norms: list[tuple[int, int | None, torch.Tensor]] = field(default_factory=list)
    meter: Meter = field(default_factory=lambda: Meter(torch.float64))

    def remove(self) -> None:
        """Take the hooks out again."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def finish(self, tape: Tape) -> None:
        """The pass is over: read the norms, all at once."""
        self.remove()
        profile = self.profile
        if not self.norms:
            return
        for (place, edge, _), norm in zip(
            self.norms, torch.stack([norm for _, _, norm in self.norms]).tolist(), strict=True
        ):
            if edge is None:
                profile.arrived[place] = max(norm, profile.arrived[place] or 0.0)
            else:
                profile.sent[place][edge] = norm
        tape.profiles.append(profile)


def suspect(tape: Tape, mark: OptimizerMark) -> None:
    """An optimizer has stepped: look now and then whether a pass of it is worth a profile."""
    steps = mark.steps
    if steps < 2 or len(tape.profiles) >= MOST or (steps > 4 and steps & (steps - 1)):
        return
    held = [
        (subject, subject.course.norms.points[-1] / math.sqrt(math.prod(subject.shape) or 1), subject.course)
        for subject in mark.subjects.values()
        if subject.course is not None and subject.course.norms.points
    ]
    largest = max((size for _, size, _ in held if math.isfinite(size)), default=0.0)
    for subject, size, course in held:
        zero = course.zero == course.steps
        small = 0 < size < limits.VANISHED * largest
        large = max(course.norms.points[-4:]) > limits.EXPLODED
        if (zero or small or large) and tape.suspected.get(subject.serial, 0) < 2:
            tape.suspects.add(subject.serial)
            tape.patience = _PATIENCE


def suspect_dead(tape: Tape, serials: Iterable[int]) -> None:
    """Gradients of these have become exactly zero, and stay so: see in the next pass where they do."""
    if tape.dead < _OF_THE_DEAD:
        tape.dead += 1
        tape.suspects.update(serials)
        tape.patience = _PATIENCE


def profile_pass(tape: Tape, roots: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Profiling | None:
    """Hook every node of a pass that reaches a suspect."""
    if not tape.suspects or len(tape.profiles) >= MOST + tape.dead:
        return None
    tape.patience -= 1
    if tape.patience < 0:
        tape.suspects.clear()
        return None
    nodes = graph_behind(roots, LARGEST)
    if len(nodes) >= LARGEST:
        tape.suspects.clear()
        return None
    leaves = {place: tape.subject(node.variable) for place, node in enumerate(nodes) if hasattr(node, "variable")}
    aims = [tape.subject(tensor) for tensor in inputs if isinstance(tensor, torch.Tensor)] or leaves.values()
    reached = tape.suspects.intersection(subject.serial for subject in aims)
    if not reached:
        return None
    for serial in reached:
        tape.suspected[serial] = tape.suspected.get(serial, 0) + 1
    tape.suspects.difference_update(reached)
    places = {node: place for place, node in enumerate(nodes)}
    targets = [
        [places.get(target) if target is not None else None for target, _ in node.next_functions] for node in nodes
    ]
    profiling = Profiling(
        Profile(
            tape.step.index,
            [str(node.name()).rpartition("::")[2] for node in nodes],
            [node._sequence_nr() for node in nodes],
            targets,
            leaves,
            list(tape.written()),
            [None] * len(nodes),
            [[None] * len(row) for row in targets],
        )
    )
    for place, node in enumerate(nodes):
        profiling.hooks.append(node.register_hook(_measurer(profiling, place)))
    return profiling


def _measurer(profiling: Profiling, place: int) -> Callable[..., None]:
    def measure(sent: Any, arrived: Any) -> None:
        try:
            with unobserved():
                profiling.norms += [(place, None, norm) for _, norm in _norms(profiling.meter, arrived)]
                profiling.norms += [(place, edge, norm) for edge, norm in _norms(profiling.meter, sent)]
                if any(isinstance(gradient, torch.Tensor) and gradient.dtype is torch.float16 for gradient in sent):
                    profiling.profile.halves.add(place)
        except Exception:
            profiling.remove()

    return measure


def _norms(meter: Meter, gradients: Iterable[Any]) -> Iterable[tuple[int, torch.Tensor]]:
    """2-norms in float64 on the CPU's terms, so that tiny gradients do not vanish in their squares."""
    for place, gradient in enumerate(gradients):
        if not isinstance(gradient, torch.Tensor) or gradient.layout is not torch.strided or not gradient.numel():
            continue
        gradient = local(gradient)
        if has_values(gradient):
            norm = torch.linalg.vector_norm(gradient) if gradient.is_complex() else meter.norm(gradient)
            yield place, norm.to(torch.float64)
