"""The loss over a run: one point a step, thinned; told of every value."""

from __future__ import annotations

import math

import pytest

from gradscope.folds.losses import POINTS, Losses


def fold(*values: tuple[float, int]) -> Losses:
    """The fold of values, each with its step."""
    losses = Losses()
    for value, step in values:
        losses.take(value, step)
    return losses


def test_a_step_has_one_point_the_mean_of_its_passes() -> None:
    """Accumulation and closures give a step several values."""
    losses = fold((1.0, 1), (3.0, 1), (5.0, 2), (2.0, 4), (3.0, 4), (4.0, 4))
    assert losses.series.points == [2.0, 5.0, 3.0]
    assert (losses.first, losses.last, losses.lowest, losses.highest) == (1.0, 4.0, 1.0, 5.0)
    assert losses.trend.count == 6


@pytest.mark.parametrize("count", [POINTS - 1, POINTS, 12_345])
def test_a_long_series_is_thinned_evenly(count: int) -> None:
    """At most 1,000 points are kept, every so many-th from the first on, whatever a step's passes are."""
    losses = fold(*((float(step), step) for step in range(count) for _ in range(2)))
    series = losses.series
    assert series.seen == count
    assert POINTS // 3 < len(series.points) <= POINTS
    assert series.points == [float(step) for step in range(0, count, series.stride)]


def test_constant_is_told_of_every_value() -> None:
    """One other value in a long run is enough, also one that the thinned series left out."""
    assert fold(*((0.25, step) for step in range(5_000))).constant
    assert not fold(*((0.25 + (step == 4_001) * 1e-16, step) for step in range(5_000))).constant
    assert not fold((math.nan, 1), (math.nan, 2)).constant
    assert not fold((math.inf, 1), (math.inf, 2)).constant


def test_values_that_are_not_finite_leave_the_rest_as_it_was() -> None:
    """A NaN is a point, and no part of a range or a trend."""
    losses = fold((3.0, 1), (math.nan, 2), (1.0, 3))
    assert math.isnan(losses.series.points[1])
    assert (losses.lowest, losses.highest, losses.trend.mean, losses.trend.slope) == (1.0, 3.0, 2.0, -2.0)


def test_a_trend_is_a_line_by_least_squares() -> None:
    """The slope of a straight line, its mean and how far it scatters; noise alone has next to none."""
    trend = fold(*((10 - step / 4, step) for step in range(9))).trend
    assert (trend.mean, trend.slope) == (pytest.approx(9), pytest.approx(-0.25))
    assert trend.deviation == pytest.approx(math.sqrt(sum((step - 4) ** 2 for step in range(9)) / 9) / 4)
    assert fold().trend.slope == fold((1.0, 1)).trend.slope == fold().trend.deviation == 0
