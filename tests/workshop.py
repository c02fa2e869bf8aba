"""A place to write programs and to run them: observed in this process, or bare in one of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from gradscope.graph.facts import Operation, Run, Tensor
from gradscope.probes.program.scripts import Outcome, observe_program, program_of_script
from gradscope.shells.cli import main
from tests.waiting import communicated

FORUM = Path(__file__).parents[1] / "examples" / "forum.py"


class Ended(NamedTuple):
    """How a command went."""

    status: int
    out: str
    err: str


class Workshop:
    """A folder with programs; `observe` and `gradscope` run in this process, `python` and `pair` do not."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch

    def write(self, source: str, name: str = "script.py") -> Path:
        """Write a file, taking the indentation of the test away."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source).lstrip("\n"), encoding="utf-8")
        return path

    def observe(self, source: str, *args: str, steps: int | None = None, checks: Sequence[str] = ()) -> Outcome:
        """Run a program under observation."""
        self.write(source)
        return observe_program(program_of_script("script.py", args), steps, checks)

    def run(self, source: str, *args: str, steps: int | None = None, checks: Sequence[str] = ()) -> Run:
        """The facts of a program that must end well, and with every part of ours at work."""
        outcome = self.observe(source, *args, steps=steps, checks=checks)
        if outcome.error is not None:
            raise outcome.error
        assert list(outcome.run.failures) == []
        return outcome.run

    def gradscope(self, *args: object) -> Ended:
        """The command line."""
        self._monkeypatch.setattr(sys, "argv", ["gradscope", *map(str, args)])
        # A script that has the process to itself stays on the scene to the end of it.
        self._monkeypatch.setattr(sys, "path", list(sys.path))
        self._monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Ended(ended.value.code or 0, out.getvalue(), err.getvalue())

    def start(self, *args: object, **options: object) -> subprocess.Popen[str]:
        """Python in a process of its own."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GRADSCOPE"))}
        return subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=self.folder,
            env={**environment, "OMP_NUM_THREADS": "1"},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
        )

    def python(self, *args: object) -> Ended:
        """Python in a process of its own, to its end."""
        return _wait(self.start(*args))

    def pair(self, *args: object, options: Sequence[str] = ()) -> tuple[Ended, Ended]:
        """The same program by bare Python and by `gradscope explain`, at the same time."""
        bare = self.start(*args)
        seen = self.start("-m", "gradscope", "explain", *options, *args)
        return _wait(bare), _wait(seen)


def _wait(process: subprocess.Popen[str]) -> Ended:
    out, err = communicated(process)
    return Ended(process.returncode, out, err)


def operations(run: Run) -> list[Operation]:
    """All operations that a run kept, in their order."""
    return [operation for step in run.steps for operation in step.operations]


def named(run: Run, name: str) -> Tensor:
    """The latest tensor of a name."""
    found = [tensor for tensor in run.tensors if tensor.name == name]
    assert found, f"no tensor is named {name}: {sorted({str(tensor.name) for tensor in run.tensors})}"
    return found[-1]
