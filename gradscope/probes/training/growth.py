"""Which results of earlier steps are alive, and which line keeps them (see `gradscope.folds.growth`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TypeAlias

from gradscope.folds import growth
from gradscope.folds.growth import Kind
from gradscope.probes.forward.callsites import CallSites, Site
from gradscope.probes.records import Subject
from gradscope.probes.tensors.attributes import gradient_of
from gradscope.probes.training.keepers import keeper

Growth: TypeAlias = growth.Growth[Site, Subject]


def census(fold: Growth, step: int, subjects: Mapping[int, Subject], cyclic: Site | None, sites: CallSites) -> None:
    """At the end of a step, count what is alive, where a census is due.

    `cyclic` is the line of a backward that left gradients with a graph in `.grad`, if there was any: leaves
    among the living are then held by their own gradients.
    """
    if not fold.is_due(step):
        fold.passed_over()
        return
    for record, kept in fold.census(step, _alive(subjects, cyclic)):
        tensors = [tensor for subject in kept.values() if (tensor := subject.ref()) is not None]
        record.keeper = keeper(tensors, sites)


def _alive(subjects: Mapping[int, Subject], cyclic: Site | None) -> Mapping[tuple[Kind, Site], Mapping[int, Subject]]:
    alive: dict[tuple[Kind, Site], dict[int, Subject]] = defaultdict(dict)
    # In the order in which they were made: of one line and step the last counts.
    for subject in sorted(subjects.values(), key=lambda subject: subject.order):
        if subject.site is None or not subject.requires_grad or subject.registered is not None:
            continue
        tensor = subject.ref()
        if tensor is None:
            continue
        if not subject.leaf:
            alive["kept", subject.site][subject.step] = subject
        elif cyclic is not None and (gradient := gradient_of(tensor)) is not None and gradient.requires_grad:
            alive["cycle", cyclic][subject.step] = subject
    return alive
