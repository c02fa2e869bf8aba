"""Runs of the user's program in processes of their own, observed, with changed sources or as they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Run
from gradscope.graph.storage import load


class Wanted(msgspec.Struct, frozen=True):
    """What is to be run: a script or a module as the command line names it, with sources in the place of its files."""

    script: str
    args: tuple[str, ...] = ()
    module: bool = False
    steps: int | None = None
    checks: tuple[str, ...] = ()
    changed: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    save: str = ""


class NotRun(GradscopeError):
    """A program could not be run at all; its process has said why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How it went: the facts, or None where the time was up; and the exit status of the process."""

    run: Run | None
    status: int


def run(wanted: Wanted, *, timeout: float | None = None, output: int | None = subprocess.DEVNULL) -> Ran:
    """Run a program under observation and wait for it, `timeout` seconds at most.

    `output` is where the program's own standard output goes, None for ours; where it is shown, its errors are too.
    Raises NotRun.
    """
    with tempfile.TemporaryDirectory(prefix="gradscope-", ignore_cleanup_errors=True) as folder:
        save = Path(folder, "run.json")
        asked = Path(folder, "wanted.json")
        asked.write_bytes(msgspec.json.encode(msgspec.structs.replace(wanted, save=str(save))))
        command = [sys.executable, "-m", "gradscope.shells.trials.child", str(asked)]
        errors = subprocess.DEVNULL if output == subprocess.DEVNULL else None
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=timeout is not None
        )
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return Ran(None, 124)
        finally:
            _end(child, alone=timeout is not None)
        if not save.exists():
            raise NotRun(f"{wanted.script} could not be observed: its process ended with {status}")
        return Ran(load(save), status)


def _end(child: subprocess.Popen[bytes], *, alone: bool) -> None:
    """End a process that still runs, with all that it has started where it leads a session of its own."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            if alone:
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
        child.wait()
