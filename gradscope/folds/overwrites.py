"""Values that are written over between two steps, and what is left then of the progress that steps had made."""

from __future__ import annotations

from typing import Generic, TypeVar

from gradscope.graph.limits import PROGRESS_LOST, UNTOUCHED

Place = TypeVar("Place")
MOST = 8  # that are judged


class Overwrites(Generic[Place]):
    """How often one tensor was written over as a whole, and how often its progress was lost by that.

    `gaps` are the fewest and the most steps between two of them. `site` is the line that did it first.
    """

    __slots__ = ("gaps", "judged", "lost", "open", "since", "site")

    def __init__(self) -> None:
        self.judged = self.lost = 0
        self.open = False  # written over since the last step
        self.since: int | None = None  # the count of steps at the last one
        self.gaps: tuple[int, int] | None = None
        self.site: Place | None = None

    @property
    def is_done(self) -> bool:
        """Whether enough of them were judged."""
        return self.judged >= MOST

    def begin(self, site: Place | None) -> None:
        """The first write since the last step is about to happen."""
        self.open = True
        self.site = self.site or site

    def judge(self, progress: float, gone: float, same: float, steps: int) -> None:
        """A step is about to happen, after so many.

        `progress` is how far the steps since the last write had led, `gone` how far the value is from where they had
        led to, and `same` the share of elements that are as the steps had left them.
        """
        self.open = False
        if progress > 0:
            self.judged += 1
            self.lost += gone >= PROGRESS_LOST * progress and same <= UNTOUCHED
            if self.since is not None:
                gap = steps - self.since
                least, most = self.gaps or (gap, gap)
                self.gaps = min(least, gap), max(most, gap)
            self.since = steps
