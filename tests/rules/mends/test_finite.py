"""What an operation takes is kept where its result and its derivative are finite."""

from __future__ import annotations

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

PROGRAM = """
import math

import torch
from torch import nn
from torch.nn import functional as F

net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5))
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
for step in range(4):
    x = torch.rand(16, 4)
    h = net(x)
    {line}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
MENDED = {
    "sqrt": ("loss = torch.sqrt((h - h[:1]).square().sum(1)).mean()", "torch.sqrt((h - h[:1]).square().sum(1) + 1e-8)"),
    "method": (
        "loss = h.var(dim=1).mul(0 * x[:, 0]).sqrt().mean() + h.mean()",
        "(h.var(dim=1).mul(0 * x[:, 0]) + 1e-8)",
    ),
    "power": ("loss = (((h - h[:1]) ** 2) ** 0.5).mean()", "((((h - h[:1]) ** 2 + 1e-8)) ** 0.5)"),
    "division": (
        "loss = (x[:, :1].relu() / (h - h[:1]).abs().sum(1, keepdim=True)).mean()",
        ".sum(1, keepdim=True).clamp(min=1e-8)",
    ),
    "log of sigmoid": (
        "loss = -torch.log(torch.sigmoid(200 * h - 300)).mean()",
        "loss = -F.logsigmoid(200 * h - 300).mean()",
    ),
    "log of softmax": ("loss = -(400 * h).softmax(dim=1).log().mean()", "loss = -F.log_softmax(400 * h, dim=1).mean()"),
    "log": ("loss = -(h - h[:1]).abs().log().mean()", ".abs().clamp(min=1e-8).log()"),
    "arccosine": (
        "loss = torch.acos(F.cosine_similarity(h, h * 2, dim=1).clamp(-1, 1)).mean() + h.mean()",
        ".clamp(-1, 1).clamp(-1 + 1e-6, 1 - 1e-6)",
    ),
    "mask": (
        "loss = h.masked_fill(x[:, :1] < 0.9, -math.inf).softmax(dim=1).square().mean()",
        "masked_fill(x[:, :1] < 0.9, -1e4)",
    ),
    "where": ("loss = torch.where(h < 5, h, torch.exp(h * 1000)).mean()", "torch.exp((h * 1000).clamp(max=80.0))"),
}


@pytest.mark.parametrize("name", MENDED)
def test_a_number_that_stays_finite(name: str, workshop: Workshop) -> None:
    """The operation that made NaN or infinity is given what it can bear, in its own line."""
    line, more = MENDED[name]
    result = mended(workshop, PROGRAM.format(line=line))
    assert result.finding.rule in ("nonfinite-forward", "nonfinite-gradient")
    assert len(result.less) == len(result.more) == 1
    assert more in result.more[0]
    assert result.then == []


def test_the_logarithm_of_what_is_negative_is_told_only(workshop: Workshop) -> None:
    """A limit would hide that the numbers mean something else."""
    result = mended(workshop, PROGRAM.format(line="loss = torch.log(h - 3).mean()"))
    assert result.finding.rule == "nonfinite-forward"
    assert not any(help_.edits for help_ in result.finding.help)
