"""What all tests share: one thread, a fixed seed, and a folder in which programs are written and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.workshop import Workshop

# A slow example says something of the machine, and nothing of us.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# What tells programs, pytest among them, how wide to write, in colour or not, and that nobody looks on.
SURROUNDINGS = ("BUILD_NUMBER", "CI", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "PY_COLORS", "PYTEST_ADDOPTS")


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same numbers and surroundings in every test, whatever ran before it and wherever it runs."""
    for name in SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_grad_enabled(True)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))  # undoes what programs do to sys.path
    return Workshop(tmp_path, monkeypatch)
