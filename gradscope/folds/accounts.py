"""What becomes of gradients between their arrival and their use: applied by a step, used by hand, or thrown away.

One account a leaf, a few counters each, so that a run of any length costs the same. An *arrival* is a backward that
added to `.grad`, a *use* is an optimizer's step (or one call of a step's closure) or an update by hand, and a *clear*
is whatever sets `.grad` to None or to zero.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from gradscope.folds.clips import Clips

Place = TypeVar("Place")
_PENDING = 64  # passes that one gradient remembers; more arrive only where nobody ever applies them
Stamp = tuple[int, int]  # of a `.grad`: which tensor it is, and how often that was changed
NO_GRADIENT: Stamp = (0, 0)


class Pass(Generic[Place]):
    """One backward: how many held tensors still wait for their gradient of it to be used, and whether one was.

    A gradient that was only `looked` at (its norm was read, it was checked for NaN) is thrown away on purpose where
    the step is left out; where a step follows all the same, it was meant to be used. `user` is the optimizer whose step
    was the first to use it, at whatever tensor.
    """

    __slots__ = ("looked", "served", "site", "user", "waiting")

    def __init__(self, site: Place | None) -> None:
        self.site = site
        self.waiting = 0
        self.looked = self.served = False
        self.user: int | None = None


class Discards(Generic[Place]):
    """Backwards from one line, and how many of them were cleared away before anybody used any of their gradients."""

    __slots__ = ("cleared_at", "passes", "serials", "vain")

    def __init__(self) -> None:
        self.passes = self.vain = 0
        self.cleared_at: Place | None = None
        self.serials: set[int] = set()


class Account(Generic[Place]):
    """The gradient of one leaf.

    `pending` are the passes that added to `.grad` since it was last used or cleared, `users` who has used what is in
    it, `mixed` whether a pass added to a gradient that had been used before, `masked` whether the line `masked_at`,
    which set parts of it to zero, worked on it again since the last step. `own` are the lines whose passes the first
    use took; `leftover` counts uses that took those of another line along, left there since another optimizer's step.
    """

    __slots__ = (
        "applied", "by_hand", "cleared_at", "cleared_first", "clips", "discarded", "first", "last", "leftover",
        "leftover_at", "masked", "masked_at", "mixed", "own", "passes", "pending", "piled", "reapplied", "robbed",
        "site", "stamp", "starved", "swept", "thrown", "users",
    )  # fmt: skip

    def __init__(self) -> None:
        self.pending: list[Pass[Place]] = []
        self.users: set[int] = set()
        self.mixed = self.discarded = self.swept = self.masked = False
        self.stamp: Stamp = NO_GRADIENT
        self.passes = self.applied = self.starved = self.cleared_first = self.robbed = 0
        self.reapplied = self.piled = self.by_hand = self.leftover = 0
        self.own: frozenset[Place | None] = frozenset()
        self.leftover_at: Place | None = None
        self.thrown: list[Pass[Place]] = []
        self.first = self.last = 0
        self.site: Place | None = None
        self.cleared_at: Place | None = None
        self.masked_at: Place | None = None
        self.clips: Clips[Place] | None = None

    def arrive(self, source: Pass[Place], before: Stamp, now: Stamp, step: int, held: bool) -> None:
        """A backward added to `.grad`, which bore the stamp `before` until then and bears the stamp `now`."""
        self.passes += 1
        self.first = self.first or step
        self.last = step
        self.site = source.site
        if not self.pending:
            if self.users and before != NO_GRADIENT and before == self.stamp:
                self.mixed = True
            elif before != self.stamp or before == NO_GRADIENT:
                self.mixed = False
            self.users.clear()
        if len(self.pending) < _PENDING:
            self.pending.append(source)
            source.waiting += held
        self.stamp = now
        self.discarded = False
        if self.clips is not None:
            self.clips.arrive()

    def changed(self, before: Stamp, now: Stamp) -> None:
        """The gradient was changed in place: if it has been used, it is what has been used all the same."""
        if before == self.stamp != NO_GRADIENT:
            self.stamp = now

    def mask(self, site: Place | None) -> None:
        """A line or a hook worked on the gradient; where it is the one that masks, the next step is on what it left."""
        self.masked |= self.masked_at is not None and self.masked_at == site

    def rob(self, used: set[Pass[Place]]) -> None:
        """A step of its optimizer used these passes at other tensors: those thrown away here were meant for it."""
        self.robbed += not used.isdisjoint(self.thrown)
        self.thrown = []

    def use(self, user: int, stamp: Stamp, supplied: bool) -> bool:
        """An optimizer uses what is in `.grad`. Returns whether there was anything that it had not used before."""
        fresh = bool(self.pending) or supplied
        if not fresh and self.users and user not in self.users and stamp == self.stamp != NO_GRADIENT:
            fresh = True  # another optimizer has used it, this one has not
        if fresh:
            self._note_leftover(user)
            self.applied += 1
            self.piled += self.mixed
            self._served(user)
            if self.clips is not None:
                self.clips.use()
        elif stamp == NO_GRADIENT or not self.users:
            self.starved += 1
            self.cleared_first += self.discarded
        else:
            self.reapplied += 1
        self.discarded = False
        self.users.add(user)
        self.stamp = stamp
        return fresh

    def _note_leftover(self, user: int) -> None:
        if not self.applied:
            self.own = frozenset(source.site for source in self.pending)
        elif len(self.pending) > 1 and self.pending[-1].user in (None, user):
            for source in self.pending:
                if source.user not in (None, user) and source.site not in self.own:
                    self.leftover += 1
                    self.leftover_at = source.site
                    break

    def use_by_hand(self) -> None:
        """The program computed with the gradient itself."""
        self.by_hand += 1
        for source in self.pending:
            source.served = True

    def look(self) -> None:
        """The program looked at the gradient."""
        for source in self.pending:
            source.looked = True

    def moved_by_hand(self, stamp: Stamp) -> None:
        """The program changed the leaf's value itself, after it had computed with the gradient."""
        if self.pending and all(source.looked or source.served for source in self.pending):
            self.applied += 1
            self.piled += self.mixed
            self._served()
            if self.clips is not None:
                self.clips.use()
            self.users.add(0)
            self.stamp = stamp

    def _served(self, user: int | None = None) -> None:
        for source in self.pending:
            source.served = True
            source.user = source.user or user
        self.pending.clear()

    def clear(self, site: Place | None, held: bool, swept: bool = False) -> list[Pass[Place]]:
        """`.grad` was set to None or to zero, `swept` together with those of a whole optimizer or module.

        Returns the passes that nobody can use any more, and nobody has used.
        """
        vain = []
        if self.clips is not None:
            self.clips.clear()
        if self.pending:
            for source in self.pending:
                source.waiting -= held
                if held and source.waiting <= 0 and not (source.looked or source.served):
                    vain.append(source)
            if not all(source.served for source in self.pending):
                self.discarded, self.swept = True, swept
                self.cleared_at = site
                self.thrown = self.pending[:]
            self.pending.clear()
        self.users.clear()
        self.mixed = False
        self.stamp = NO_GRADIENT
        return vain
