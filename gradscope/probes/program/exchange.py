"""How the processes that `torchrun` started hand their small reports to rank 0, once their scripts have ended.

The carrier is the store of torchrun's own agent: it outlives the script's process group, which most scripts destroy,
and every rank, which may die. Nothing here is a collective; every wait ends by itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import distributed

# Seconds, on a machine that has a processor for each who wants one (see `lasting`).
CONNECT = 10.0
PATIENCE = 60.0  # with ranks that still run
SHORT = 5.0  # where a rank has raised: the others may be waiting for it, and it for them
_PAUSE = 0.05


def lasting(seconds: float) -> float:
    """How long to wait for what takes so many seconds at most: longer where processes wait for a processor."""
    try:
        wanted = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows tells none
        return seconds
    return seconds * max(1.0, wanted / (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those that torchrun started; `prefix` keeps our keys in its store apart from all others."""

    rank: int
    world: int
    host: str
    port: int
    prefix: str


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Where this process stands; None for a single process and where torchrun keeps no store for its workers."""
    try:
        rank, world, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        host = environment["MASTER_ADDR"]
    except (KeyError, ValueError):
        return None
    if world < 2 or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not distributed.is_available():
        return None
    run, restart = (environment.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    return Place(rank, world, host, port, f"gradscope/{run}/{restart}")


class Exchange:
    """Reports on their way to rank 0. Where the store cannot be reached, there is nobody to wait for.

    torchrun ends all ranks with SIGTERM once one has failed. From `begin` on that is put off until `end`: it only
    ends the waiting.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.terminated = False
        self._store: Any = None
        self._handler: Any = None
        self._process = os.getpid()

    def begin(self) -> None:
        """The script has ended: say so, and put SIGTERM off."""
        try:
            self._handler = signal.signal(signal.SIGTERM, self._terminate)
        except ValueError:
            self._handler = None  # not the main thread
        try:
            self._store = distributed.TCPStore(  # type: ignore[attr-defined]
                self.place.host,
                self.place.port,
                None,
                False,
                timedelta(seconds=lasting(CONNECT)),
                wait_for_workers=False,
            )
            self._store.set(self._key("ended", self.place.rank), b"1")
        except Exception:
            self._store = None

    def end(self) -> None:
        """Put back what was there for SIGTERM."""
        if self._handler is not None and os.getpid() == self._process:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def _terminate(self, *_: object) -> None:
        self.terminated = True

    def _key(self, what: str, rank: int) -> str:
        return f"{self.place.prefix}/{what}/{rank}"

    def post(self, report: bytes) -> None:
        """Leave this rank's report for rank 0."""
        try:
            if self._store is not None:
                self._store.set(self._key("report", self.place.rank), report)
        except Exception:
            self._store = None

    def gather(self, raised: bool, is_raised: Callable[[bytes], bool]) -> dict[int, bytes]:
        """The reports of the other ranks as far as they come in time; `raised` says that this rank's script did."""
        found: dict[int, bytes] = {}
        missing = [rank for rank in range(self.place.world) if rank != self.place.rank]
        began = time.monotonic()
        until = began + lasting(SHORT if raised else PATIENCE)
        while missing and self._store is not None:
            for rank in list(missing):
                if self._has("report", rank):
                    found[rank] = bytes(self._store.get(self._key("report", rank)))
                    missing.remove(rank)
                    if is_raised(found[rank]):
                        until = min(until, time.monotonic() + lasting(SHORT))
            if any(self._has("ended", rank) for rank in missing):
                until = began + lasting(PATIENCE)  # it is at its report
            if self.terminated:
                until = min(until, time.monotonic())
            if not missing or time.monotonic() >= until:
                break
            time.sleep(_PAUSE)
        return found

    def told(self, ranks: Iterable[int]) -> None:
        """The merged report with these ranks is written: they need not speak for themselves."""
        try:
            for rank in ranks if self._store is not None else ():
                self._store.set(self._key("told", rank), b"1")
        except Exception:
            self._store = None

    def is_told(self) -> bool:
        """Wait until rank 0 has told what this rank had to report; False where it does not come to that in time."""
        began = time.monotonic()
        until = began + lasting(SHORT)
        while self._store is not None and not self.terminated:
            if self._has("told", self.place.rank):
                return True
            if self._has("ended", 0):
                until = began + lasting(PATIENCE)
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE)
        return False

    def _has(self, what: str, rank: int) -> bool:
        try:
            return self._store is not None and bool(self._store.check([self._key(what, rank)]))
        except Exception:
            self._store = None
            return False
