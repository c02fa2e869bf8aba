"""Modules whose parameters are swapped when they are converted."""

from __future__ import annotations

import pytest
import torch

from tests.workshop import Workshop, named


def test_swapped_parameters_stay_the_same_to_us(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch swaps no tensor that has weak references; what was seen of a parameter before goes on after it."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    run = workshop.run(
        """
        import weakref
        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(dtype):
            optimizer.zero_grad()
            net(torch.ones(2, 4, dtype=dtype)).square().mean().backward()
            optimizer.step()

        for _ in range(4):
            step(torch.float32)
        aside = [parameter.detach() for parameter in net.parameters()]
        aside.clear()
        net.double()
        for _ in range(4):
            step(torch.float64)
        net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
        step(torch.float64)
        mine = weakref.ref(net[0].weight)
        try:
            net.float()
        except RuntimeError as error:
            refused = error
        assert "weakref" in str(refused.__cause__ or refused) or "swap" in str(refused)
        """
    )
    received = named(run, "net.0.weight").received
    assert received is not None
    assert (received.steps, received.of) == (9, 9)
    assert named(run, "net.0.weight").change


def test_the_gradient_of_a_non_leaf_is_not_asked_for(workshop: Workshop) -> None:
    """Torch warns of it: in this suite that would be a failure of a probe."""
    run = workshop.run(
        """
        import torch
        b = torch.ones(3, requires_grad=True)
        h = torch.ones(3, requires_grad=True) * 2
        optimizer = torch.optim.SGD([b], lr=0.1)
        for _ in range(3):
            (b * 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        b.requires_grad_(False)
        b.copy_(h)
        b.sum().backward()
        """
    )
    assert run.step_count == 3
