"""The memory of a long run: it does not grow with the number of steps. Measured on Linux."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import gradscope
from benchmarks.ratios import Row, child


def rows(quick: bool) -> Iterator[Row]:
    """Peaks of two processes that differ in the number of steps alone."""
    steps = 1_000 if quick else 10_000
    ratio = int(child("benchmarks.memory", steps)) / int(child("benchmarks.memory", 10))
    yield Row(f"peak memory of {steps:,} observed steps", "of 10 observed steps", ratio, 1.10)


def _peak(steps: int) -> int:
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradscope.observe(model=model, optimizer=optimizer) as seen:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    seen.report()
    # Not `ru_maxrss`: on Linux a child begins with the peak of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


if __name__ == "__main__":
    print(_peak(int(sys.argv[1])))
