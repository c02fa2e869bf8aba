"""Graphs that live on from step to step: a value computed from those of earlier steps, or results that never die.

A value's *links* count how often the graph behind it crosses from one step to the next (or, within a step, from one
call of a root module to the next). A tensor that is merely reused has one link however long the run; a sum that is
carried on has one more in every step. Results that die with their step have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from gradscope.graph import limits
from gradscope.graph.facts import Span

_CENSUS = 8  # the first step after which live results are counted; then after 12, 18, 27, ...
Kind: TypeAlias = Literal["steps", "calls", "kept", "cycle"]
Place = TypeVar("Place")


class Linked(Protocol):
    """A value: when it was made, and how many links its graph has, in steps and in calls."""

    serial: int
    site: Any  # that made it
    leaf: bool
    step: int
    call: int
    steps: int
    calls: int


Item = TypeVar("Item", bound=Linked)
Values: TypeAlias = Sequence[tuple[int, Item, bool]]  # number, holder, and whether it has history


@dataclass(slots=True)
class GrowthRecord(Generic[Place, Item]):
    """One line at which a graph grows: how many links or live results so far, and since which step.

    `keeper` is the line that puts live results where they stay, if it is known; `ended` says that a backward had
    started from the latest of these. `carried` is the serial of the value of the step before that was taken last.
    """

    kind: Kind
    site: Place
    subject: Item
    count: int
    since: int
    until: int
    keeper: Span | None = None
    ended: bool = False
    carried: int = 0


class Growth(Generic[Place, Item]):
    """Watches the links of values as they are made, and counts live results now and then."""

    def __init__(self) -> None:
        self.found: dict[tuple[Kind, Place], GrowthRecord[Place, Item]] = {}
        self.calls = 0
        # The most links that a backward ever led through.
        self.trained: dict[Kind, int] = {"steps": 0, "calls": 0, "kept": 0}
        self._passed = 0  # steps that passes of the engine had closed before there was any optimizer
        self._readers: dict[Place, Place] = {}  # lines that only read a value which another line carries on
        self._roots: set[int] = set()  # of the backwards of this step
        self._census = _CENSUS
        self._gathered: dict[tuple[Kind, Place], int] = {}  # the most results that were used and let go
        self._alive: dict[tuple[Kind, Place], frozenset[int]] = {}  # the steps of what the latest census counted

    def begin(self, subjects: Iterable[Item], step: int) -> None:
        """The first optimizer is there, and counts the steps from now on.

        What passes of the engine had closed before were no steps: one forward may ask for many gradients.
        """
        self._passed = step - 1
        self.found = {key: record for key, record in self.found.items() if key[0] == "calls"}
        self._alive.clear()
        for subject in subjects:
            subject.steps = 0

    def link(self, inputs: Values[Item], outputs: Values[Item], step: int, place: Place | None) -> None:
        """Number the links of what an operation made at a place, or in the call of a root module there."""
        steps = calls = 0
        linked: Item | None = None
        deeper: Item | None = None
        for _, subject, history in inputs:
            if history and not subject.leaf:
                crossing = subject.step != step
                if subject.steps + crossing > steps:
                    steps = subject.steps + crossing
                    linked = subject if crossing else None
                crossing = subject.call != self.calls
                if subject.calls + crossing > calls:
                    calls = subject.calls + crossing
                    deeper = subject if crossing else None
        for _, subject, history in outputs:
            if history:
                subject.step, subject.call, subject.steps, subject.calls = step, self.calls, steps, calls
        if steps >= limits.STEPS_IN_A_CHAIN and linked is not None:
            self._carry(place, outputs[0][1], linked, steps, step)
        elif calls >= limits.CALLS_TOGETHER and deeper is not None:
            self._note("calls", place, deeper, calls, step)

    def _carry(self, site: Place | None, subject: Item, carried: Item, count: int, step: int) -> None:
        """A line takes a value of the step before. Of several that take the same one, that which made it carries it."""
        site = self._readers.get(site, site) if site is not None else None
        for (kind, other), record in list(self.found.items()):
            if kind == "steps" and record.carried == carried.serial and site is not None and other != site:
                if site == carried.site:
                    del self.found[kind, other]
                    self._readers[other] = site
                else:
                    self._readers[site] = site = other
                    subject = record.subject
        self._note("steps", site, subject, count, step)
        if site is not None:
            self.found["steps", site].carried = carried.serial

    def _note(self, kind: Kind, site: Place | None, subject: Item, count: int, step: int) -> None:
        if site is None:
            return
        step -= self._passed
        record = self.found.get((kind, site))
        if record is None:
            self.found[kind, site] = GrowthRecord(kind, site, subject, count, step, step)
        else:
            record.count, record.until, record.subject = max(record.count, count), step, subject

    def differentiated(self, roots: Iterable[Item]) -> None:
        """A backward leads through the graph behind these: so many links are meant."""
        for subject in roots:
            self._roots.add(subject.serial)
            self.trained["steps"] = max(self.trained["steps"], subject.steps)
            self.trained["calls"] = max(self.trained["calls"], subject.calls)
        self.trained["kept"] = self.trained["steps"]  # what is kept may be what led there

    def is_due(self, step: int) -> bool:
        """Whether live results are counted at the end of this step."""
        return step >= self._census

    def census(
        self, step: int, alive: Mapping[tuple[Kind, Place], Mapping[int, Item]]
    ) -> Iterable[tuple[GrowthRecord[Place, Item], Mapping[int, Item]]]:
        """Take in which results of earlier steps are alive, by the line that made them and by their step.

        What counts has lived through two censuses. What a program gathers over steps for a backward that leads through
        it, and then lets go, is meant: as much of it again is told no more.
        Gives what is found for the first time, with the results that are kept.
        """
        roots, self._roots = self._roots, set()
        self._census += self._census // 2
        for key, steps in self._alive.items():
            if self.trained["steps"] and len(steps.intersection(alive.get(key, ()))) * 2 < len(steps):
                self._gathered[key] = max(len(steps), self._gathered.get(key, 0))
                self.found.pop(key, None)
        self._alive, before = {key: frozenset(found) for key, found in alive.items()}, self._alive
        new = []
        for (kind, site), found in alive.items():
            first, earlier = min(found), before.get((kind, site), frozenset())
            least = max(len(earlier) + 1, 2 * self._gathered.get((kind, site), 0))
            staying = len(earlier.intersection(found)) >= limits.RESULTS_KEPT and len(found) >= least
            if staying and len(found) >= (step - first + 1) * limits.STEPS_WITH_RESULTS:
                known = (kind, site) in self.found
                self._note(kind, site, found[max(found)], len(found), step)
                record = self.found[kind, site]
                record.since, record.ended = first - self._passed, found[max(found)].serial in roots
                if kind == "kept" and not known:
                    new.append((record, found))
        return new

    def passed_over(self) -> None:
        """A step has ended without a census."""
        self._roots.clear()
