"""Links from step to step, counted from lists of operations."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.folds.growth import Growth


@dataclass
class Result:
    """What an operation of a line gives."""

    serial: int
    site: str
    leaf: bool = False
    step: int = 0
    call: int = 0
    steps: int = 0
    calls: int = 0


def carried(steps: int, *, anew: bool = False) -> Growth[str, Result]:
    """A line that adds to its own result of the step before, or (`anew`) to one that is made in each step."""
    growth: Growth[str, Result] = Growth()
    before = Result(0, "start")
    for step in range(1, steps + 1):
        if anew:
            before = Result(1_000 + step, "start", step=step)
        after = Result(step, "line 3")
        growth.link([(0, before, True)], [(1, after, True)], step, "line 3")
        before = after
    return growth


def test_a_value_that_is_carried_on_has_a_link_a_step() -> None:
    """Few links are nothing yet; a value of the same step has none."""
    (record,) = carried(20).found.values()
    assert (record.kind, record.site, record.count, record.until) == ("steps", "line 3", 20, 20)
    assert carried(4).found == {}
    assert carried(20, anew=True).found == {}


def kept(lives: range, steps: int = 40, trained_at: int | None = None) -> Growth[str, Result]:
    """Results of one line: in each step those of the steps in `lives`, counted back, are alive."""
    growth: Growth[str, Result] = Growth()
    for step in range(1, steps + 1):
        if not growth.is_due(step):
            growth.passed_over()
            continue
        alive = {step - back: Result(step - back, "line 5") for back in lives if step - back > 0}
        growth.census(step, {("kept", "line 5"): alive} if alive else {})
    return growth


def test_results_that_never_die_are_counted() -> None:
    """More at each census; a window of the latest ones never grows."""
    (record,) = kept(range(1, 40)).found.values()
    assert (record.kind, record.since) == ("kept", 1)
    assert kept(range(1, 7)).found == {}


def test_steps_before_any_optimizer_were_none() -> None:
    """The first optimizer begins the count anew."""
    growth = carried(20)
    growth.begin([], 18)
    assert growth.found == {}
