"""`@gradscope.observe` on the training step of the transformer: while it counts, and once its steps are spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import torch

import gradscope
from benchmarks.ratios import Row, seconds
from benchmarks.recording import transformer


def rows(quick: bool) -> Iterator[Row]:
    """The step undecorated, decorated in the counting form from its first call to its last, and after them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = 8 if quick else 32
    model, optimizer, step = transformer()
    step()
    counting, spent = [], []
    for _ in range(3 if quick else 9):
        decorated = gradscope.observe(model=model, optimizer=optimizer, operations=False, steps=steps)(step)
        bare = _run(step, steps)
        counting.append(_run(decorated, steps) / bare)
        bare = _run(step, steps)
        spent.append(_run(decorated, steps) / bare)
    yield Row("@observe(operations=False) on T", "the bare step", median(counting), 1.03)
    yield Row("@observe on T, steps spent", "the bare step", median(spent), 1.01)


def _run(step: Callable[[], object], steps: int) -> float:
    return seconds(lambda: [step() for _ in range(steps)])
