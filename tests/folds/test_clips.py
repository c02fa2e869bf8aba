"""Which clips have something to work on, told by lists of what happens to one gradient."""

from __future__ import annotations

import pytest

from gradscope.folds.clips import Clips, State, Timing

STATES: dict[str, State] = {"clip": "fresh", "clip used": "used", "clip none": "none"}


def fold(events: str, rounds: int = 3) -> dict[str, dict[Timing, int]]:
    """The uses by line; `clip LINE` clips what waits for its use, `clip used LINE`, `clip none LINE` what does not."""
    clips: Clips[str] = Clips()
    arrived = False
    for event in [event.strip() for event in events.split(",")] * rounds:
        what, _, line = event.rpartition(" ")
        if what in STATES:
            clips.clip(line, 1.0, STATES[what], arrived=arrived)
        elif event == "arrive":
            clips.arrive()
            arrived = True
        elif event == "unscale":
            clips.unscale(1024.0)
        else:
            {"clear": clips.clear, "use": clips.use}[event]()
    return {place: line.uses for place, line in clips.lines.items() if line.uses}


@pytest.mark.parametrize(
    ("events", "uses"),
    [
        ("clear, arrive, clip a, use", {"in time": 3}),
        ("clear, arrive, clip a, arrive, clip a, use", {"in time": 3}),  # after each of several backwards
        ("clear, arrive, clip a, use, clip used a", {"in time": 3}),  # once too often
        ("clear, arrive, unscale, clip a, use", {"in time": 3}),
        ("clear, clip none a, arrive, use", {"early": 3}),
        ("clip used a, arrive, use", {"early": 3}),  # never cleared: the first of them lay before any backward
        ("arrive, clip a, clear, arrive, use", {"early": 3}),  # what it clips is thrown away
        ("clear, arrive, use, clip used a", {"late": 2}),
        ("clear, arrive, clip a, unscale, use", {"scaled": 3}),
        ("clear, arrive, clip a, unscale, clear, arrive, clip a, use", {"in time": 3}),  # a step was withheld
    ],
)
def test_the_latest_clip_before_a_use_counts(events: str, uses: dict[Timing, int]) -> None:
    """One that worked on all that is used, else the last that had nothing of it."""
    assert fold(events) == {"a": uses}


def test_two_lines_are_told_apart() -> None:
    """A second line that clips in time makes the first harmless; a clip of the first of two backwards is no slip."""
    assert fold("clear, clip none a, arrive, clip b, use") == {"b": {"in time": 3}}
    assert fold("clear, arrive, clip a, arrive, use") == {}
