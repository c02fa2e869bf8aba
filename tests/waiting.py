"""Waiting for processes without asking the clock: a busy machine makes all things slow, and none of them wrong.

A process that hangs sleeps, with all its threads and children, and uses no time of the processor; one that is merely
slow runs, or waits for a processor or a disk, and the system tells these apart.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

LOOK = 0.25  # seconds between two looks
# nbclient waits for a cell for ever, but not for a kernel to start or to hand over what a cell has shown.
PATIENT = {"timeout": None, "startup_timeout": 3600, "iopub_timeout": 3600}


class Watched:
    """A process that is looked at from time to time; it hangs once so many looks in a row find it at rest."""

    def __init__(self, pid: int, looks: int) -> None:
        self.pid = pid
        self.looks = looks
        self._spent = -1
        self._at_rest = 0

    def hangs(self) -> bool:
        """Look once more."""
        spent, sleeps = _spent(self.pid)
        self._at_rest = self._at_rest + 1 if sleeps and spent == self._spent else 0
        self._spent = spent
        return self._at_rest >= self.looks


def communicated(process: subprocess.Popen[str], looks: int = 360) -> tuple[str, str]:
    """What a process writes until its end. One that hangs for so many looks is killed, and TimeoutExpired raised.

    Ninety seconds by default: ranks of a distributed run wait for each other for up to a minute.
    """
    watched = Watched(process.pid, looks)
    while True:
        try:
            return process.communicate(timeout=LOOK)
        except subprocess.TimeoutExpired:
            if watched.hangs():
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGABRT)
                process.kill()
                process.communicate()
                raise


def _spent(pid: int) -> tuple[int, bool]:
    """The processor's time that a process, its threads and its children have used, and whether all of them sleep."""
    used, sleeps = 0, True
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            fields = Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
            sleeps = sleeps and fields[0] == "S"
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                more, too = _spent(int(child))
                used, sleeps = used + more, sleeps and too
    except OSError:
        return used, False  # it is gone meanwhile, or this system does not tell
    return used, sleeps
