"""Which rows of a table are looked up, and what kind of row the one for padding is."""

from __future__ import annotations

from gradscope.graph.limits import PADDING_LOOKS


class Lookups:
    """Looks at what one table is indexed with.

    `padded` counts those in which the row for padding was among the looked up, and `real` those in which it was not
    used as padding: alone, as the one index of a sample, or in the middle of sequences in most that have it. `share` is
    how often it is looked up, relative to the mean of the other rows that are.
    """

    __slots__ = ("looks", "others", "padded", "real", "rows", "times")

    def __init__(self) -> None:
        self.looks = self.padded = self.real = self.times = self.others = 0
        self.rows = 0

    @property
    def is_done(self) -> bool:
        """Whether enough was looked at."""
        return self.looks >= PADDING_LOOKS

    def take(self, times: int, others: int, rows: int, real: bool) -> None:
        """One look: how often the row for padding, all others, how many of these there are."""
        self.looks += 1
        self.padded += times > 0
        self.real += times > 0 and real
        self.times += times
        self.others += others
        self.rows += rows

    @property
    def share(self) -> float:
        """How often the row is looked up, relative to the mean of the others."""
        return self.times * self.rows / (self.others * max(self.looks, 1)) if self.others else 0.0
