"""Calls that torch refuses get what they need."""

from __future__ import annotations

import pytest

from tests.rules.mending import mended, training
from tests.workshop import Workshop

LOSS = "\nloss = F.mse_loss(h, y)\nloss.backward()"

MENDED = {
    "several": (
        "h = net(x)\nloss = F.mse_loss(h, y, reduction='none')\nloss.backward()",
        ["loss = F.mse_loss(h, y, reduction='none').mean()"],
    ),
    "several_inline": (
        "F.mse_loss(net(x), y, reduction='none').backward()",
        ["F.mse_loss(net(x), y, reduction='none').mean().backward()"],
    ),
    "grad_of_several": (
        "x.requires_grad_()\nh = net(x)\nslope, = torch.autograd.grad(h, x, create_graph=True)\n"
        "loss = F.mse_loss(h, y) + slope.square().mean()\nloss.backward()",
        ["slope, = torch.autograd.grad(h.sum(), x, create_graph=True)"],
    ),
    "inference": ("with torch.inference_mode():\n    z = x * 2\nh = net(z)" + LOSS, ["with torch.no_grad():"]),
    "whole_numbers": (
        "scale = torch.tensor([1, 2, 3, 4], requires_grad=True)\nh = net(x) * scale" + LOSS,
        ["scale = torch.tensor([1, 2, 3, 4], requires_grad=True, dtype=torch.float32)"],
    ),
    "whole_numbers_later": (
        "scale = torch.arange(\n    1,\n    5,\n)\nscale.requires_grad_()\nh = net(x) * scale" + LOSS,
        ["5, dtype=torch.float32"],
    ),
}


@pytest.mark.parametrize("case", MENDED)
def test_refused_calls_are_mended(case: str, workshop: Workshop) -> None:
    """The lines that change are these, and nothing is raised or found afterwards."""
    body, more = MENDED[case]
    result = mended(workshop, training(body))
    assert (result.more, result.then) == (more, [])


FUNCTION = """
import torch
from torch import nn

class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx, grad_output):
        {body}

net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for _ in range(3):
    loss = (Scaled.apply(net(torch.rand(8, 4)), 3.0) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


BACKWARDS = {
    "one_less": ("return grad_output * ctx.factor", ["return grad_output * ctx.factor, None"]),
    "no_return": ("grad_x = grad_output * ctx.factor", ["return grad_x, None"]),
    "upstream": (
        "return torch.full_like(grad_output, ctx.factor), None",
        ["return grad_output * torch.full_like(grad_output, ctx.factor), None"],
    ),
}


@pytest.mark.parametrize("case", BACKWARDS)
def test_backward_returns_its_gradients(case: str, workshop: Workshop) -> None:
    """A backward returns a value for each argument, and the gradient that comes in is a factor."""
    body, more = BACKWARDS[case]
    result = mended(workshop, FUNCTION.format(body=body))
    assert (result.more, result.then) == (more, [])
