"""Changes in place go into new tensors, or keep no history."""

from __future__ import annotations

import textwrap

import pytest

from tests.rules.mending import mended, training
from tests.workshop import Workshop

LOSS = "\nloss = F.mse_loss(h, y)\nloss.backward()"

MENDED = {
    "times": ("h = net(x)\nh *= y + 1" + LOSS, ["h = h * (y + 1)"]),
    "part": ("h = net(x)\nh[:, 0] = 0" + LOSS, ["h = h.clone()"]),
    "method": ("h = net(x)\nh.mul_(2)" + LOSS, ["h = h.mul(2)"]),
    "function": ("h = torch.sigmoid(net(x))\nh = torch.relu_(h)" + LOSS, ["h = torch.relu(h)"]),
    "argument": ("h = torch.sigmoid(net(x))\nh = F.relu(h, inplace=True)" + LOSS, ["h = F.relu(h)"]),
}


@pytest.mark.parametrize("case", MENDED)
def test_refused_calls_are_mended(case: str, workshop: Workshop) -> None:
    """The lines that change are these, and nothing is raised or found afterwards."""
    body, more = MENDED[case]
    result = mended(workshop, training(body))
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
