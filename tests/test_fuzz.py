"""Random programs, bare and observed: `make fuzz N=10000` runs more of them, `make fuzz SEED=123` one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.making import ALL, made
from tests.fuzz.smaller import smaller
from tests.workshop import Workshop


def drawn_by(seed: int, without: tuple[str, ...] = ()) -> set[str]:
    """The ingredients of a program, which its first line names."""
    return set(made(seed, without).partition("\n")[0].removeprefix("# ").split(", "))


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked and looked at as Linux does")
def test_random_programs_do_not_notice(workshop: Workshop) -> None:
    """What they print, how they end and what they leave is the same to the last bit, and every report can be made."""
    ended = workshop.python(Path(run.__file__), 150, "--jobs", 2)
    assert ended.out == "150 of 150 the same\n", ended.out + ended.err


def test_a_seed_is_one_program() -> None:
    """The same number gives the same text each time."""
    assert made(7) == made(7) != made(8)


def test_every_ingredient_is_drawn() -> None:
    """Nothing stands in the registers that no program has, and what is left out stays out."""
    assert set().union(*map(drawn_by, range(1_500))) == {name for kind in ALL for name in kind.members}
    assert not any({"compiled", "linear"} & drawn_by(seed, ("compiled", "linear")) for seed in range(100))


def test_a_program_is_made_smaller() -> None:
    """What it does not need to fail goes, within blocks as well; the line that names its ingredients stays."""
    source = "# one\na = 1\nb = 2\nfor c in range(3):\n    d = c\n    if d:\n        e = b\nf = 3\n"
    tries: list[str] = []
    kept = smaller(source, lambda text: tries.append(text) is None and "e = b" in text)
    assert kept == "# one\nfor c in range(3):\n    if d:\n        e = b\n"
    assert len(tries) < 40
    assert smaller(source, lambda text: False).startswith("# one\na = 1\n")
