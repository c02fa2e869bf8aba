"""Modes, counted step by step."""

from __future__ import annotations

import pytest

from gradscope.folds.modes import ModeCount


@pytest.mark.parametrize(
    ("steps", "counts", "switched"),
    [
        ([[True], [True]], [2, 0], None),
        ([[False], [False, False], []], [0, 2], "eval at 2"),
        ([[False, True], [True, False]], [2, 0], None),  # an evaluation in between is no training in that mode
        ([[True], [False], [True]], [2, 1], "eval at 2"),
    ],
)
def test_a_step_counts_once(steps: list[list[bool]], counts: list[int], switched: str | None) -> None:
    """As training, if any call of it was in training mode."""
    count: ModeCount[str] = ModeCount("dropout")
    for calls in steps:
        for place, training in enumerate(calls):
            first = count.run(training, None if training else "eval at 2")
            assert first == (place == 0)
        count.step(1)
    assert (count.counts, count.switched.get(1)) == ({1: counts}, switched)
