"""Ratios that a busy machine does not spoil: the forms of one program take turns, and medians are compared."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

# Makes what the steps run within.
Form: TypeAlias = Callable[[], AbstractContextManager[object, bool | None]]


@dataclass(frozen=True)
class Row:
    """One line of the table; without a budget it is there for comparison."""

    what: str
    against: str
    ratio: float
    budget: float | None = None


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def against_bare(
    step: Callable[[], object],
    bare: Form,
    forms: Mapping[str, Form],
    rounds: int,
    steps: int,
) -> dict[str, float]:
    """How much longer a step takes within each form than bare.

    In each round every form runs `steps` steps. A form's ratio in a round is that of the sums; over the rounds
    the median is taken.
    """
    step()
    ratios: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        base = _run(step, bare, steps)
        for name, form in forms.items():
            ratios[name].append(_run(step, form, steps) / base)
    return {name: median(values) for name, values in ratios.items()}


def _run(step: Callable[[], object], form: Form, steps: int) -> float:
    with form():
        return seconds(lambda: [step() for _ in range(steps)])


def child(module: str, *arguments: object) -> str:
    """The last line that a module of ours prints in a process of its own; CalledProcessError if it crashes."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
