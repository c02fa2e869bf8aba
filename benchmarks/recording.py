"""The full record: what a training step costs under `gradscope.observe`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median

import torch
import torchviz  # type: ignore[import-untyped]
from torch import nn
from torch.autograd import backward
from torch.overrides import TorchFunctionMode

import gradscope
from benchmarks.ratios import Form, Row, against_bare, seconds

_RECORD, _ANOMALY, _MODE = "full record", "anomaly mode", "empty function mode"


def rows(quick: bool) -> Iterator[Row]:
    """A transformer, a recurrent loop and a chain of the smallest operations."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 3 if quick else 15

    model, optimizer, step = transformer()
    forms: dict[str, Form] = {_RECORD: partial(gradscope.observe, model=model, optimizer=optimizer), _ANOMALY: _anomaly}
    ratios = against_bare(step, nullcontext, forms, rounds // 3 or 1, steps=24)
    yield from _rows("T: 6-layer d=256 transformer step", ratios, 1.05)

    model, optimizer, step = _recurrent()
    forms = {
        _RECORD: partial(gradscope.observe, model=model, optimizer=optimizer),
        _ANOMALY: _anomaly,
        _MODE: _Empty,
    }
    ratios = against_bare(step, nullcontext, forms, rounds, steps=64)
    yield from _rows("S: recurrent loop, 600 operations", ratios, 1.4)

    start = torch.ones(4, requires_grad=True)
    forms = {_RECORD: gradscope.observe, _ANOMALY: _anomaly}
    ratios = against_bare(lambda: backward(_chain(start)), nullcontext, forms, rounds, steps=32)
    ratios["torchviz.make_dot"] = _drawing(start, rounds)
    yield from _rows("C: chain of 2,000 adds", ratios, 3.0)


def _rows(program: str, ratios: dict[str, float], budget: float) -> Iterator[Row]:
    for form, ratio in ratios.items():
        yield Row(f"{program}, {form}", "the bare step", ratio, budget if form == _RECORD else None)


def transformer() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """T: a training step on 8 sequences of 32 tokens."""
    layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
    model = nn.Sequential(nn.Embedding(1000, 256), nn.TransformerEncoder(layer, 6), nn.Linear(256, 1000))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(1000, (8, 33))

    def step() -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        backward(nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
        optimizer.step()

    return model, optimizer, step


def _recurrent() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """S: 120 times five operations: an item of the input, two products, a sum and a tanh."""
    model = nn.ParameterDict({"w": torch.randn(16, 64) / 4, "u": torch.randn(64, 64) / 8})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data, target = torch.randn(120, 16, 16), torch.randn(16, 64)
    w, u = model["w"], model["u"]

    def step() -> None:
        optimizer.zero_grad()
        hidden = torch.zeros(16, 64)
        for time in range(120):
            hidden = torch.tanh(data[time] @ w + hidden @ u)
        backward(nn.functional.mse_loss(hidden, target))
        optimizer.step()

    return model, optimizer, step


def _chain(start: torch.Tensor) -> torch.Tensor:
    value = start
    for _ in range(2_000):
        value = value + 1.0
    return value.sum()


def _drawing(start: torch.Tensor, rounds: int) -> float:
    sys.setrecursionlimit(20_000)  # torchviz walks by recursion
    ratios = []
    for _ in range(rounds):
        bare = seconds(lambda: backward(_chain(start)))
        ratios.append(seconds(partial(torchviz.make_dot, _chain(start))) / bare)
    return median(ratios)


@contextmanager
def _anomaly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            yield


class _Empty(TorchFunctionMode):
    """Passes every call on."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))
