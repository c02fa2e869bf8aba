"""When a dry run has seen enough."""

from __future__ import annotations

import time

from gradscope.probes.tape import Tape

STEPS = 3  # of each optimizer: fewer may be a warm-up, or a first state that is zero
SECONDS = 60.0


class Enough:
    """Whether every optimizer that has stepped made 3 steps, and stepped once more since then.

    Optimizers that one line makes again and again, to replace each other, count as one.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._round: dict[object, int] | None = None
        self._deadline = time.monotonic() + SECONDS

    def steps(self) -> bool:
        """Whether the step that has just ended was the last one that is needed."""
        steps: dict[object, int] = {}
        replaced = {mark.site for mark in self._tape.optimizers if mark.site is not None and mark.ref() is None}
        for mark in self._tape.optimizers:
            kind = mark.site if mark.site in replaced else mark.serial
            steps[kind] = steps.get(kind, 0) + mark.steps
        steps = {kind: count for kind, count in steps.items() if count}
        if not steps or min(steps.values()) < STEPS:
            self._round = None
            return False
        if self._round is None or self._round.keys() != steps.keys():
            self._round = steps
            return False
        return all(count > self._round[kind] for kind, count in steps.items())

    @property
    def time(self) -> bool:
        """Whether it has taken too long already."""
        return time.monotonic() > self._deadline
