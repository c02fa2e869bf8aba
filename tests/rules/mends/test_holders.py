"""Optimizers get what they lack, and are made when and as often as they should be."""

from __future__ import annotations

import textwrap

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

PROGRAM = """
import copy

import torch
from torch import nn
from torch.nn import functional as F


def fit(run, *optimizers, steps=4):
    for _ in range(steps):
        x = torch.rand(16, 4)
        loss = F.mse_loss(run(x), x.sum(dim=1, keepdim=True))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


{body}
"""
MENDED = {
    "a list": (
        """
        body, neck, head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        sgd = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
        fit(lambda x: head(neck(body(x)).tanh()), sgd)
        """,
        "not-in-optimizer",
        ["sgd = torch.optim.SGD([*body.parameters(), *head.parameters(), *neck.parameters()], lr=0.1)"],
    ),
    "groups": (
        """
        body, head = nn.Linear(4, 8), nn.Linear(8, 1)
        sgd = torch.optim.SGD([{"params": body.parameters()}], lr=0.1)
        fit(lambda x: head(body(x).tanh()), sgd)
        """,
        "not-in-optimizer",
        ['sgd.add_param_group({"params": head.parameters()})'],
    ),
    "made later": (
        """
        body = nn.Linear(4, 8)
        sgd = torch.optim.SGD(body.parameters(), lr=0.1)
        head = nn.Linear(8, 1)
        fit(lambda x: head(body(x).tanh()), sgd)
        """,
        "not-in-optimizer",
        ['sgd.add_param_group({"params": head.parameters()})'],
    ),
    "a part of self": (
        """
        class Job:
            def __init__(self):
                self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
                self.sgd = torch.optim.SGD(self.body.parameters(), lr=0.1)


        job = Job()
        fit(lambda x: job.head(job.body(x).tanh()), job.sgd)
        """,
        "not-in-optimizer",
        ["self.sgd = torch.optim.SGD([*self.body.parameters(), *self.head.parameters()], lr=0.1)"],
    ),
    "a list with a name": (
        """
        body, head = nn.Linear(4, 8), nn.Linear(8, 1)
        weights = [body.weight, body.bias]
        sgd = torch.optim.SGD(weights, lr=0.1)
        fit(lambda x: head(body(x).tanh()), sgd)
        """,
        "not-in-optimizer",
        ["weights = [body.weight, body.bias, *head.parameters()]"],
    ),
    "a part of an object": (
        """
        class Goal(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(4))

            def forward(self, x):
                return x * self.scale


        class Job:
            def __init__(self):
                self.goal = Goal()


        body = nn.Linear(4, 4)
        sgd = torch.optim.SGD(body.parameters(), lr=0.1)
        job = Job()
        fit(lambda x: job.goal(body(x)).sum(dim=1, keepdim=True), sgd)
        """,
        "not-in-optimizer",
        ['sgd.add_param_group({"params": job.goal.parameters()})'],
    ),
    "a new layer": (
        """
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        if len(net) == 3:
            net[0] = nn.Linear(4, 8, bias=False)
        fit(net, sgd)
        """,
        "stale-optimizer",
        ["sgd = torch.optim.SGD(net.parameters(), lr=0.1)"],
    ),
    "a new layer after some steps": (
        """
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        fit(net, sgd)
        net[2] = nn.Linear(8, 1)
        fit(net, sgd)
        """,
        "stale-optimizer",
        ["sgd = torch.optim.SGD(net.parameters(), lr=0.1)"],
    ),
    "a copy in every step": (
        """
        net = nn.Linear(4, 1)
        for _ in range(8):
            adam = torch.optim.Adam(net.parameters(), lr=0.01)
            fit(net, adam, steps=1)
        """,
        "rebuilt-optimizer",
        ["adam = torch.optim.Adam(net.parameters(), lr=0.01)"],
    ),
    "a layer many times": (
        """
        layer = nn.Linear(4, 4)
        net = nn.Sequential(*(3 * [layer]))
        fit(lambda x: net(x).mean(dim=1, keepdim=True), torch.optim.SGD(net.parameters(), lr=0.1))
        """,
        "shared-module",
        ["net = nn.Sequential(*([nn.Linear(4, 4) for _ in range(3)]))"],
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_who_holds_what(name: str, workshop: Workshop) -> None:
    """The line that says what is held changes, or moves, and no other."""
    body, rule, more = MENDED[name]
    result = mended(workshop, PROGRAM.format(body=textwrap.dedent(body).strip()))
    assert result.finding.rule == rule
    assert result.more == more
    assert result.then == []


def test_what_a_scheduler_holds_is_not_made_anew(workshop: Workshop) -> None:
    """There is no edit where something else has been made of the optimizer by then."""
    body = """
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(sgd, 10)
        net[2] = nn.Linear(8, 1)
        fit(net, sgd)
        scheduler.step()
    """
    result = mended(workshop, PROGRAM.format(body=textwrap.dedent(body).strip()))
    assert result.finding.rule == "stale-optimizer"
    assert not any(help_.edits for help_ in result.finding.help)
