"""What single steps do to a tensor, of those that are looked at: the first ones, and every eighth after."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.folds.series import Series

POINTS = 256
_FIRST, _EVERY = 8, 8


def is_due(steps: int) -> bool:
    """Whether the step after so many is looked at."""
    return steps < _FIRST or steps % _EVERY == 0


class Move(NamedTuple):
    """One step of one tensor: 2-norms of the update, of the value before and of the gradient (None: there is none).

    `fresh` says that a gradient has arrived since the last step, `frozen` that it asks for none, and `rate` is the
    learning rate.
    """

    update: float
    size: float
    gradient: float | None
    fresh: bool = True
    frozen: bool = False
    rate: float | None = None


class Moves:
    """The steps of one tensor that were looked at: what moved it, and what did not.

    `masked` counts those that moved elements whose gradient had arrived and was set to zero, and that stayed there.
    """

    __slots__ = ("masked", "moved_frozen", "rate", "rate_zero", "still", "stirred", "updates")

    def __init__(self) -> None:
        self.updates = Series(POINTS)
        self.stirred = self.still = self.moved_frozen = self.masked = self.rate_zero = 0
        self.rate: float | None = None

    def take(self, move: Move) -> None:
        """Count one step."""
        if move.size > 0:
            self.updates.add(move.update / move.size)
        if move.rate is not None:
            self.rate = move.rate
            self.rate_zero += move.rate == 0
        if move.gradient is None:
            return
        if move.frozen:
            self.moved_frozen += move.update > 0 and not move.fresh
        elif move.fresh and move.gradient > 0:
            self.still += move.update == 0
            self.stirred += move.update != 0
