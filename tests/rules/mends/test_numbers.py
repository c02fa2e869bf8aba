"""Numbers are changed where the program writes them down, and what is flat is gone round."""

from __future__ import annotations

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

RATED = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
x = torch.rand(32, 4)
{before}

def train(optimizer):
    for _ in range(30):
        loss = F.mse_loss(net(x), x.sum(dim=1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

{after}
"""
MADE = "train(torch.optim.Adam(net.parameters(), lr={}))"
RATES = {
    "setting": ("SETTINGS = dict(rate=1e-9, steps=3)", MADE.format('SETTINGS["rate"]'), "SETTINGS = dict(rate="),
    "field": (
        "class Options:\n    rate: float = 1e-9\n    steps: int = 3\n",
        MADE.format("Options.rate"),
        "rate: float = ",
    ),
    "variable": ("RATE = 1e-9", MADE.format("RATE"), "RATE = "),
    "argument": (
        "",
        "def start(model, rate=0.1):\n    train(torch.optim.Adam(model.parameters(), rate))\n\nstart(net, rate=1e-9)",
        "start(net, rate=",
    ),
    "default": (
        "",
        "def start(model, rate=1e-9):\n    train(torch.optim.Adam(model.parameters(), rate))\n\nstart(net)",
        "def start(model, rate=",
    ),
}


@pytest.mark.parametrize("name", RATES)
def test_a_rate_changes_where_it_is_written(name: str, workshop: Workshop) -> None:
    """The number itself is replaced, through variables, tables, fields, defaults and arguments."""
    before, after, more = RATES[name]
    result = mended(workshop, RATED.format(before=before, after=after))
    assert result.finding.rule == "step-size"
    assert len(result.more) == 1
    assert result.more[0].startswith(more)
    assert result.then == []


def test_a_rate_that_is_computed_is_told_only(workshop: Workshop) -> None:
    """Which of several numbers is wrong nobody knows."""
    result = mended(workshop, RATED.format(before="BASE = 1e-9", after=MADE.format("BASE * len(x) / 32")))
    assert result.finding.rule == "step-size"
    assert not any(help_.edits for help_ in result.finding.help)


FLAT = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
coder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
optimizer = torch.optim.SGD([*coder.parameters(), *decoder.parameters()], lr=0.1)
for _ in range(6):
    x = torch.rand(16, 4)
    h = coder(x)
    {line}
    loss = F.mse_loss(decoder(code), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("code = (h * 8).round() / 8", ["code = (h * 8 + ((h * 8).round() - (h * 8)).detach()) / 8"]),
        ("code = torch.sign(h)", ["code = h + (torch.sign(h) - h).detach()"]),
        ("code = coder(x).floor()", ["code = coder(x)", "code = code + (code.floor() - code).detach()"]),
    ],
)
def test_a_flat_operation_is_gone_round(line: str, more: list[str], workshop: Workshop) -> None:
    """Its values stay, and its derivative is 1; what is computed once is still computed once."""
    result = mended(workshop, FLAT.format(line=line))
    assert result.finding.rule == "zero-gradient"
    assert result.more == more
    assert result.then == []
