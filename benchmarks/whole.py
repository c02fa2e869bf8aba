"""Whole programs under `gradscope explain`: CPU time with start-up apart, memory, and the size of the run that is kept.

The programs are of shapes that have cost most: a closure called hundreds of times, thousands of small operations before
the first step, passes within a custom backward, an evaluation loop ahead of all training, thousands of parameters.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.ratios import Row

_PROGRAMS = {
    "pinn": "L-BFGS on a PDE's residual",
    "rollout": "rollouts of small operations",
    "adjoint": "adjoint of an ODE",
    "evaluation": "80,000 operations ahead of step 1",
    "parameters": "5,000 parameters",
}
_LARGEST = 20e6  # bytes of a kept run
_TRIVIAL = "import torch\nprint(float(torch.ones(2).sum()))\n"


class _Cost(NamedTuple):
    seconds: float
    kilobytes: int


def rows(quick: bool) -> Iterator[Row]:
    """Three rows a program."""
    with tempfile.TemporaryDirectory() as folder:
        trivial, kept = Path(folder, "trivial.py"), Path(folder, "run.json")
        trivial.write_text(_TRIVIAL, encoding="utf-8")
        repeats = 1 if quick else 3
        began, began_observed = _cost(repeats, trivial), _cost(repeats, *_explain(kept), trivial)
        for name, what in _PROGRAMS.items():
            program = Path(__file__).parent / "programs" / f"{name}.py"
            bare, observed = _cost(repeats, program), _cost(repeats, *_explain(kept), program)
            ratio = (observed.seconds - began_observed.seconds) / (bare.seconds - began.seconds)
            yield Row(f"{what}, CPU time", "bare, start-up apart", ratio, 2.0)
            yield Row(f"{what}, peak memory", "bare", observed.kilobytes / bare.kilobytes, 1.5)
            yield Row(f"{what}, kept run", "20 MB", kept.stat().st_size / _LARGEST, 1.0)


def _explain(kept: Path) -> tuple[str | Path, ...]:
    return "-m", "gradscope", "explain", "--fail-on", "never", "--save", kept


def _cost(repeats: int, *arguments: str | Path) -> _Cost:
    """The least of some runs in processes of their own."""
    return min(_run(arguments) for _ in range(repeats))


def _run(arguments: tuple[str | Path, ...]) -> _Cost:
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    return _Cost(used.ru_utime + used.ru_stime, used.ru_maxrss)
