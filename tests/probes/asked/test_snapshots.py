"""Putting a program's state back after `gradscope.confirm(..., restore=True)`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gradscope


class Trainer:
    """A step as a method: everything that it changes hangs on the object."""

    def __init__(self, kind: Callable[..., torch.optim.Optimizer]) -> None:
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
        self.scale = torch.ones(1, requires_grad=True)
        self.optimizer = kind([*self.model.parameters(), self.scale])
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)

    def step(self) -> None:
        """One step that changes all there is."""
        self.model.train()
        x = torch.randn(8, 3) * random.random()
        loss = (self.model(x) * self.scale).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()

    def state(self) -> list[Any]:
        """Everything that a step changes, as values."""
        optimizer = self.optimizer.state_dict()
        moments = [value for state in optimizer["state"].values() for value in state.values()]
        gradients = [p.grad for p in self.model.parameters()]
        tensors = [*self.model.state_dict().values(), self.scale, *moments]
        return [
            [tensor.tolist() for tensor in tensors if isinstance(tensor, torch.Tensor)],
            [gradient if gradient is None else gradient.tolist() for gradient in gradients],
            [{**group, "params": len(group["params"])} for group in optimizer["param_groups"]],
            self.scheduler.last_epoch,
            [part.training for part in self.model.modules()],
            torch.get_rng_state().tolist(),
            random.getstate(),
        ]


KINDS = {
    "sgd": lambda tensors: torch.optim.SGD(tensors, lr=0.1, momentum=0.9),
    "adam": lambda tensors: torch.optim.Adam(tensors, lr=0.1),
}


@pytest.mark.parametrize("before", [0, 2], ids=["fresh", "trained"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_everything_is_put_back(kind: str, before: int) -> None:
    """Values, buffers, gradients, moments, learning rate, modes and random states are as before, to the last bit."""
    trainer = Trainer(KINDS[kind])
    for _ in range(before):
        trainer.step()
    trainer.model.eval()
    state = trainer.state()
    report = gradscope.confirm(trainer.step, steps=3, restore=True)
    assert trainer.state() == state
    assert report.run.step_count == 3
    assert any(row.moved for row in report.tensors)


def test_a_closure_and_a_step_that_raises() -> None:
    """What a function closes over is put back, also where its step raises."""
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    calls: list[int] = []

    def step() -> None:
        optimizer.zero_grad()
        w.square().sum().backward()
        optimizer.step()
        calls.append(len(calls))
        if len(calls) > 2:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        gradscope.confirm(step, restore=True)
    assert w.tolist() == [1.0, 1.0]
    assert w.grad is None


def test_without_restore_the_step_has_run() -> None:
    """Unless asked, nothing is put back."""
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)

    def step() -> None:
        w.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    gradscope.confirm(step, steps=2)
    assert w.tolist() == pytest.approx([0.8, 0.8])
