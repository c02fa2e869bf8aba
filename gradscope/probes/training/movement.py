"""How far single steps of an optimizer move its tensors (`gradscope.folds.movement` says which are looked at)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gradscope.folds.movement import Move
from gradscope.probes.tensors.attributes import gradient_of
from gradscope.probes.tensors.quiet import item_of
from gradscope.probes.tensors.shards import has_values, local
from gradscope.probes.training.courses import Course, differences, measure_picked, norms, pick


@dataclass(slots=True)
class Held:
    """One tensor of an optimizer before a step; `fresh` tells whether a gradient has arrived since its last one."""

    course: Course
    tensor: torch.Tensor
    fresh: bool
    rate: float | None


@dataclass(slots=True)
class Moment:
    """What the tensors were before a step: values and gradients at the places that their courses look at."""

    held: list[Held]
    values: list[torch.Tensor]
    gradients: list[torch.Tensor | None]


def before_step(tensors: Iterable[Held]) -> Moment:
    """Look at tensors before a step."""
    moment = Moment([], [], [])
    for held in tensors:
        if held.course.sample is None:
            continue
        index, first = held.course.sample
        value = pick(held.tensor, index)
        if value.shape != first.shape:
            continue
        judge_masked(held.course, value)
        gradient = gradient_of(held.tensor)
        usable = gradient is not None and gradient.layout is torch.strided and gradient.shape == held.tensor.shape
        usable = usable and gradient is not None and has_values(local(gradient))
        moment.held.append(held)
        moment.values.append(value.clone())
        moment.gradients.append(pick(gradient, index) if usable and gradient is not None else None)
    return moment


def after_step(moment: Moment) -> None:
    """Note in each course whether the step moved its tensor, how far in all, and whether it should have."""
    picked = [pick(held.tensor, held.course.sample[0]) for held in moment.held if held.course.sample is not None]
    measure_picked(zip((held.course for held in moment.held), picked, strict=True))
    kept = [
        place
        for place, (now, before) in enumerate(zip(picked, moment.values, strict=True))
        if now.shape == before.shape and now.device == before.device
    ]
    updates = norms(differences([picked[place] for place in kept], [moment.values[place] for place in kept]))
    sizes = norms([moment.values[place] for place in kept])
    present = [place for place in kept if moment.gradients[place] is not None]
    gradients = dict(zip(present, norms([g for p in present if (g := moment.gradients[p]) is not None]), strict=True))
    for place, update, size in zip(kept, updates, sizes, strict=True):
        held = moment.held[place]
        course = held.course
        gradient = gradients.get(place)
        if gradient is not None and course.arrived and update > 0 and _is_masked(held, gradient):
            seen = moment.gradients[place]
            assert seen is not None
            moved = (picked[place] != moment.values[place]) & (seen == 0)
            course.masked_before = (moved, moment.values[place]) if bool(moved.any()) else None
        frozen = not held.tensor.requires_grad
        course.moves.take(Move(update, size, gradient, held.fresh, frozen, held.rate))
        if gradient is not None:
            course.masks_looked_at += course.account.masked
            course.account.masked = False


def judge_masked(course: Course, value: torch.Tensor) -> None:
    """Count a step that moved what was masked, unless the program has put most of it back since.

    Others may have had a gradient of exactly 0 as well, and go on by momentum as they should.
    """
    before, course.masked_before = course.masked_before, None
    if before is not None and before[0].shape == value.shape and before[0].device == value.device:
        moved, values = before
        stayed = int((item_of(value, moved) != item_of(values, moved)).sum())
        course.moves.masked += stayed * 2 >= int(moved.sum())


def _is_masked(held: Held, gradient: float) -> bool:
    """Whether a gradient that arrived was set to zero before the step, in whole or in part."""
    arrived = held.course.norm
    return held.course.account.masked or (gradient == 0 and arrived is not None and arrived > 0)
