"""Memory: that of a long run does not grow with its steps, and a large model needs no more. Measured on Linux."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

import gradscope
from benchmarks.ratios import Row, child

_WIDTH = 512


def rows(quick: bool) -> Iterator[Row]:
    """Peaks of two processes that differ in the number of steps alone, or in gradscope alone."""
    steps = 1_000 if quick else 10_000
    ratio = _measured("run", steps) / _measured("run", 10)
    yield Row(f"peak memory of {steps:,} observed steps", "of 10 observed steps", ratio, 1.10)
    millions = 20 if quick else 100
    ratio = _measured("observed", millions) / _measured("bare", millions)
    yield Row(f"peak memory of a model of {millions} million parameters", "without gradscope", ratio, 1.05)


def _measured(what: str, size: int) -> int:
    return int(child("benchmarks.memory", what, size))


def _run(steps: int) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradscope.observe(model=model, optimizer=optimizer) as seen:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    seen.report()


def _train(millions: int, observed: bool) -> None:
    """Train so deep a chain of layers that its gradients vanish, and their course through the graph is measured."""
    layers = millions * 1_000_000 // _WIDTH**2
    model = nn.Sequential(*[nn.Linear(_WIDTH, _WIDTH) for _ in range(layers)], nn.Linear(_WIDTH, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = gradscope.observe(model=model, optimizer=optimizer) if observed else None
    with seen or nullcontext():
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, _WIDTH)).square().mean().backward()
            optimizer.step()
    assert seen is None or seen.report().run.profiles


def _peak() -> int:
    # Not `ru_maxrss`: on Linux a child begins with the peak of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    what, size = sys.argv[1], int(sys.argv[2])
    if what == "run":
        _run(size)
    else:
        _train(size, observed=what == "observed")
    print(_peak())
