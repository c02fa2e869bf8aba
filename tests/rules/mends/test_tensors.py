"""Mends of tensors that torch refuses or keeps for too long: changed in place, carried on, called with, leaves."""

from __future__ import annotations

import textwrap

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn
from torch.nn import functional as F

{before}

net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
for step in range(8):
    x, y = torch.rand(16, 4), torch.rand(16, 4)
    optimizer.zero_grad()
{body}
    optimizer.step()
"""
LOSS = "\nloss = F.mse_loss(h, y)\nloss.backward()"

MENDED = {
    "times": ("h = net(x)\nh *= y + 1" + LOSS, ["h = h * (y + 1)"]),
    "part": ("h = net(x)\nh[:, 0] = 0" + LOSS, ["h = h.clone()"]),
    "method": ("h = net(x)\nh.mul_(2)" + LOSS, ["h = h.mul(2)"]),
    "function": ("h = torch.sigmoid(net(x))\nh = torch.relu_(h)" + LOSS, ["h = torch.relu(h)"]),
    "argument": ("h = torch.sigmoid(net(x))\nh = F.relu(h, inplace=True)" + LOSS, ["h = F.relu(h)"]),
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
    "backward_twice": (
        "h = net(x)\nloss = F.mse_loss(h, y)\nloss.backward()\nh.square().mean().backward()",
        ["loss.backward(retain_graph=True)"],
    ),
}


def program(body: str, before: str = "") -> str:
    """A training loop with this body."""
    return PROGRAM.format(body=textwrap.indent(body, "    "), before=before)


@pytest.mark.parametrize("case", MENDED)
def test_refused_calls_are_mended(case: str, workshop: Workshop) -> None:
    """The lines that change are these, and nothing is raised or found afterwards."""
    body, more = MENDED[case]
    result = mended(workshop, program(body))
    assert (result.more, result.then) == (more, [])


def test_a_step_waits_for_all_backwards(workshop: Workshop) -> None:
    """A step that changes what a later backward of the same block needs comes behind that."""
    result = mended(
        workshop,
        """
        import torch
        from torch import nn

        body, head = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        first, second = (torch.optim.SGD(part.parameters(), lr=0.01) for part in (head, body))
        for _ in range(4):
            h = body(torch.rand(8, 4))
            loss = (head(h) - 1).square().mean()
            first.zero_grad()
            second.zero_grad()
            loss.backward(retain_graph=True)
            first.step()
            (loss + h.square().mean()).backward()
            second.step()
        """,
    )
    backward = ["(loss + h.square().mean()).backward()"]  # which now stands before the step
    assert (result.less, result.more, result.then) == (backward, backward, [])


UPDATES = {
    "by_hand": ("for p in net.parameters():\n    p -= 0.1 * p.grad\n    p.grad.zero_()", ["with torch.no_grad():"]),
    "of_parts": ("net[0].weight[0] = 0\nnet[0].weight[1] = 0", ["with torch.no_grad():"]),
}
HAND = """
import torch
from torch import nn

net = nn.Linear(4, 2)
for step in range(4):
    net(torch.rand(8, 4)).square().mean().backward()
{body}
    for p in net.parameters():
        p.grad = None
"""


@pytest.mark.parametrize("case", UPDATES)
def test_updates_keep_no_history(case: str, workshop: Workshop) -> None:
    """An update and those behind it are put under `no_grad`, with their indent."""
    body, more = UPDATES[case]
    source = HAND.format(body=textwrap.indent(body.replace("net[0].weight", "net.weight"), "    "))
    result = mended(workshop, source)
    assert (result.more, result.then) == (more, [])


def test_an_input_is_not_changed_in_place(workshop: Workshop) -> None:
    """What is written to an input that requires grad is written to a copy, which keeps the history."""
    result = mended(
        workshop,
        """
        import torch

        x = torch.rand(4, 3, requires_grad=True)
        x[:, 0] *= 2
        x.square().sum().backward()
        print(x.grad)
        """,
    )
    assert result.more == ["x = x.clone()"]
    assert result.then == ["non-leaf"]


CARRIED = {
    "sum": ("total += loss", ["total += loss.item()"], "total = 0.0"),
    "sum_of_tensors": ("total += loss", ["total += loss.detach()"], "total = torch.zeros(())"),
    "average": ("total = 0.9 * total + 0.1 * loss", ["total = (0.9 * total + 0.1 * loss).detach()"], "total = 0.0"),
    "list": ("total.append(h)", ["total.append(h.detach())"], "total = []"),
    "pairs": ("total.append((step, h))", ["total.append((step, h.detach()))"], "total = []"),
    "dict": ("total[step] = h", ["total[step] = h.detach()"], "total = {}"),
}


@pytest.mark.parametrize("case", CARRIED)
def test_kept_results_lose_their_graph(case: str, workshop: Workshop) -> None:
    """What is kept from step to step is kept without its graph."""
    body, more, before = CARRIED[case]
    lines = "h = net(x + 1)\nloss = F.mse_loss(net(x), y)\nloss.backward()\n" + body
    result = mended(workshop, program(lines, before).replace("range(8)", "range(24)"))
    assert (result.finding.rule, result.more, result.then) == ("graph-growth", more, [])


STATES = {
    "state": ("h = cell(x, h)", "h = torch.zeros(16, 4)", ["h = h.detach()"]),
    "state_of_two": (
        "h = cell(x, h)",
        "h = (torch.zeros(16, 4), torch.zeros(16, 4))",
        ["h = tuple(part.detach() for part in h)"],
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_states_are_detached_between_windows(case: str, workshop: Workshop) -> None:
    """A state goes into the next window without its graph, and the window itself trains through it."""
    body, before, more = STATES[case]
    kind, out = ("RNNCell", "h") if case == "state" else ("LSTMCell", "h[0]")
    lines = f"for part in range(2):\n    {body}\nloss = F.mse_loss({out}, y)\nloss.backward()"
    source = program(lines, before).replace(
        "net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())", f"net = cell = nn.{kind}(4, 4)"
    )
    result = mended(workshop, source)
    assert (result.more, result.then) == (more, [])


def test_a_generator_is_detached_for_the_discriminator(workshop: Workshop) -> None:
    """The loss of one model does not lead its backward into the model of another optimizer."""
    result = mended(
        workshop,
        """
        import torch
        from torch import nn

        G, D = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        opt_g, opt_d = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (G, D))
        for _ in range(4):
            fake = torch.tanh(G(torch.randn(8, 3)))
            d_loss = D(fake).mean() - D(torch.rand(8, 4)).mean()
            opt_d.zero_grad()
            d_loss.backward()
            opt_d.step()
            g_loss = -D(fake).mean()
            opt_g.zero_grad()
            g_loss.backward()
            opt_g.step()
        """,
    )
    assert (result.more, result.then) == (["d_loss = D(fake.detach()).mean() - D(torch.rand(8, 4)).mean()"], [])


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
