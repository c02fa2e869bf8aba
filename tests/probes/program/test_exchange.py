"""Reports on their way to rank 0, through a store as torchrun's agent keeps it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from gradscope.probes.program import exchange
from gradscope.probes.program.exchange import Exchange, Place, place_of

LAUNCHED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


@pytest.fixture
def place() -> Iterator[Place]:
    """Rank 0 of two, with a store that answers."""
    store = TCPStore("localhost", 0, None, True, wait_for_workers=False)
    yield Place(0, 2, "localhost", store.port, "test")
    del store


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for long."""
    for name in ("SHORT", "PATIENCE"):
        monkeypatch.setattr(exchange, name, 0.1)


def test_a_place_is_one_of_several_under_torchrun() -> None:
    """A single process, one that torchrun did not start and one without its store have none."""
    assert place_of(LAUNCHED) == Place(1, 2, "localhost", 29500, "gradscope/job/2")
    assert place_of({}) is None
    assert place_of({**LAUNCHED, "WORLD_SIZE": "1"}) is None
    assert place_of({**LAUNCHED, "MASTER_PORT": "any"}) is None
    assert place_of({key: value for key, value in LAUNCHED.items() if "AGENT" not in key}) is None


def test_reports_arrive_and_are_acknowledged(place: Place) -> None:
    """Rank 0 gets the bytes that rank 1 left, and rank 1 hears that they were told."""
    first, second = Exchange(place), Exchange(replace(place, rank=1))
    second.begin()
    second.post(b"report")
    first.begin()
    assert first.gather(False, lambda data: False) == {1: b"report"}
    first.told([1])
    assert second.is_told()
    for one in (first, second):
        one.end()


def test_waits_are_longer_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where twelve processes want three processors, all takes four times as long; nothing is hurried on an idle one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(os, "getloadavg", lambda: (12.0, 0.0, 0.0), raising=False)
    assert exchange.lasting(5.0) == 20.0
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 9.0, 9.0), raising=False)
    assert exchange.lasting(5.0) == 5.0


def test_no_wait_hangs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who never reports is left out, and where rank 0 never speaks a rank speaks for itself."""
    first, second = Exchange(place), Exchange(replace(place, rank=1))
    for one in (second, first):
        one.begin()
    assert first.gather(True, lambda data: False) == {}
    assert not second.is_told()
    monkeypatch.setattr(exchange, "PATIENCE", 3_600.0)
    first.terminated = True
    assert first.gather(False, lambda data: False) == {}
    first.end()
    second.end()


def test_without_a_store_there_is_nobody_to_wait_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is gone: reports go nowhere, and nothing is raised."""
    monkeypatch.setattr(exchange, "CONNECT", 0.1)
    alone = Exchange(replace(place, port=1))
    alone.begin()
    alone.post(b"report")
    assert alone.gather(False, lambda data: False) == {}
    assert not alone.is_told()
    alone.end()


def test_sigterm_is_put_off_and_put_back(place: Place) -> None:
    """Between the end of the script and that of the report SIGTERM only ends the waiting."""
    before = signal.getsignal(signal.SIGTERM)
    one = Exchange(place)
    one.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    assert one.terminated
    one.end()
    assert signal.getsignal(signal.SIGTERM) is before
