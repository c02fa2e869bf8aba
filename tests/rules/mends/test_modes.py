"""Modules go into the mode in which they are to run, where they run."""

from __future__ import annotations

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn
from torch.nn import functional as F

net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)


def batch():
    x = torch.rand(16, 4)
    return x, x.sum(dim=1, keepdim=True)

{body}
"""
CHECKED_EACH_STEP = """
def check(model):
    model.eval()
    x, y = batch()
    with torch.no_grad():
        return F.mse_loss(model(x), y)


def train(model, steps):
    for step in range(steps):
        if step % 3 == 0:
            print(check(model))
        x, y = batch()
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


train(net, 8)
"""
FIT = """
for epoch in range(4):
    x, y = batch()
    loss = F.mse_loss(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(check())
"""
IN_A_FUNCTION = """
@torch.no_grad()
def check():
    x, y = batch()
    error = F.mse_loss(net(x), y)
    return error.item()

"""


@pytest.mark.parametrize(
    ("body", "rule", "more"),
    [
        (CHECKED_EACH_STEP, "eval-mode", ["model.train()"]),
        (IN_A_FUNCTION + FIT, "train-mode", ["net.eval()", "net.train()"]),
    ],
)
def test_modes_that_are_put_in(body: str, rule: str, more: list[str], workshop: Workshop) -> None:
    """`train()` goes before the forward that trains, `eval()` before what only measures."""
    result = mended(workshop, PROGRAM.format(body=body))
    assert result.finding.rule == rule
    assert result.more == more
    assert result.then == []


def test_a_mode_that_cannot_be_taken_back_is_told_only(workshop: Workshop) -> None:
    """Where the last line of a function both runs the module and returns, there is no edit."""
    body = "@torch.no_grad()\ndef check():\n    x, y = batch()\n    return F.mse_loss(net(x), y).item()\n" + FIT
    result = mended(workshop, PROGRAM.format(body=body))
    assert result.finding.rule == "train-mode"
    assert not any(help_.edits for help_ in result.finding.help)
