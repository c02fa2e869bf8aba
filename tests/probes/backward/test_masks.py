"""Hooks on leaves whose work is looked at."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import gradscope
from gradscope.probes.backward.masks import _Watched


def test_hooks_go_back_at_the_end() -> None:
    """During an observation hooks work as they are; after it they are the user's own, unless removed."""
    weight = torch.nn.Parameter(torch.ones(3))
    mask = torch.tensor([0.0, 1.0, 1.0])

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * mask

    with gradscope.observe():
        weight.register_hook(hook)
        handle = weight.register_hook(torch.neg)
        weight.sum().backward()
        handle.remove()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, -1.0, -1.0]
    hooks = weight._backward_hooks  # type: ignore[attr-defined]
    assert list(hooks.values()) == [hook]


def test_removed_hooks_are_not_kept() -> None:
    """What a hook holds dies with it, and of hooks without number only the first are watched."""
    weight = torch.nn.Parameter(torch.ones(3))
    with gradscope.observe():
        for _ in range(40):
            mask = torch.ones(3)
            handle = weight.register_hook(lambda gradient, mask=mask: gradient * mask)
            weight.sum().backward()
            handle.remove()
        gone = weakref.ref(mask)
        del mask, handle
        gc.collect()
        assert gone() is None


def test_hooks_are_left_alone_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """To compare what a hook makes of a gradient is to read values, which breaks the capture of a CUDA graph."""
    compared: list[bool] = []
    monkeypatch.setattr(_Watched, "compare", lambda *_: compared.append(True))
    weight = torch.nn.Parameter(torch.ones(3))
    with gradscope.observe():
        weight.register_hook(torch.neg)
        monkeypatch.setattr("gradscope.probes.backward.masks.capturing", lambda: True)
        weight.sum().backward()
        assert compared == []
        monkeypatch.setattr("gradscope.probes.backward.masks.capturing", lambda: False)
        weight.sum().backward()
        assert compared == [True]
