"""The loss over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradscope.folds.series import Series

POINTS = 1_000


@dataclass(slots=True)
class Trend:
    """A straight line through numbers that come one by one: their mean, how far they scatter, how steep it is."""

    count: int = 0
    mean: float = 0.0
    _middle: float = 0.0  # of the places, which count from 0
    _width: float = 0.0  # sums of squares and of products, each of distances from the means
    _spread: float = 0.0
    _together: float = 0.0

    def add(self, value: float) -> None:
        """Take the next number."""
        place, before = self.count, value - self.mean
        self.count += 1
        away = place - self._middle
        self._middle += away / self.count
        self.mean += before / self.count
        self._width += away * (place - self._middle)
        self._spread += before * (value - self.mean)
        self._together += away * (value - self.mean)

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(max(self._spread, 0.0) / self.count) if self.count else 0.0

    @property
    def slope(self) -> float:
        """By how much it rises from one number to the next, by least squares."""
        return self._together / self._width if self._width else 0.0


@dataclass(slots=True)
class Losses:
    """The values of the loss that one line differentiates.

    A step has one point in `series`: the mean of its values, of which accumulation and closures have several.
    `constant` says that every single value was one number, to the last bit; `lowest`, `highest` and `trend` are those
    of the values that were finite.
    """

    first: float = math.nan
    last: float = math.nan
    constant: bool = True
    lowest: float = math.inf
    highest: float = -math.inf
    trend: Trend = field(default_factory=Trend)
    series: Series = field(default_factory=lambda: Series(POINTS))
    _step: int | None = None
    _passes: int = 0  # in that step
    _mean: float = 0.0

    def take(self, value: float, step: int) -> None:
        """The loss has a value in a step."""
        if self._step is None:
            self.first = value
        if step == self._step:
            self.series.take_back()
            self._passes += 1
            self._mean += (value - self._mean) / self._passes
        else:
            self._step, self._passes, self._mean = step, 1, value
        self.series.add(self._mean)
        self.last = value
        self.constant = self.constant and value == self.first and math.isfinite(value)
        if math.isfinite(value):
            self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)
            self.trend.add(value)
