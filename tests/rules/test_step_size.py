"""Learning rates that do not fit the values."""

from __future__ import annotations

import pytest

from gradscope.reports.report import Report
from tests.workshop import Workshop

LOOP = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(12, 16), nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 12))
    optimizer = torch.optim.{optimizer}
    {more}
    for step in range({steps}):
        words = torch.randint(0, 12, (32, 3))
        loss = nn.functional.cross_entropy(net(words), words[:, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        {after}
"""


def rules(workshop: Workshop, optimizer: str, more: str = "", after: str = "", steps: int = 30) -> list[str]:
    """The rules that a program draws."""
    source = LOOP.format(optimizer=optimizer, more=more, after=after, steps=steps)
    return [finding.rule for finding in Report.of(workshop.run(source)).findings]


@pytest.mark.parametrize("optimizer", ["Adam(net.parameters(), lr=1.0)", "SGD(net.parameters(), lr=3000.0)"])
def test_steps_larger_than_the_values_are_told_at_the_optimizer(workshop: Workshop, optimizer: str) -> None:
    """The first step throws the initialisation away, and the loss ends above its start."""
    findings = Report.of(workshop.run(LOOP.format(optimizer=optimizer, more="", after="", steps=30))).findings
    assert findings[0].rule == "step-size"
    assert findings[0].span is not None
    assert findings[0].span.line == 6
    assert len(findings[0].tensors) == 5
    assert "smaller learning rate: with about" in findings[0].help[0].message


@pytest.mark.parametrize(
    "optimizer", ["SGD(net.parameters(), lr=1e-7, momentum=0.9)", "Adam(net.parameters(), lr=1e-9)"]
)
def test_steps_of_next_to_nothing_go_before_no_update(workshop: Workshop, optimizer: str) -> None:
    """Some tensors move by their last bits and others not at all: it is one story."""
    assert rules(workshop, optimizer) == ["step-size"]


def test_warm_up_and_the_end_of_a_schedule_draw_nothing(workshop: Workshop) -> None:
    """A rate of next to nothing at the start or at the end is a part of a schedule."""
    more = "schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: {})"
    after = "schedule.step()"
    warm = more.format("min(1.0, 1e-8 + step / 10)")
    assert rules(workshop, "SGD(net.parameters(), lr=0.5)", warm, after) == []
    assert rules(workshop, "SGD(net.parameters(), lr=0.5)", more.format("1.0 if step < 10 else 1e-9"), after) == []


def test_large_steps_that_learn_draw_nothing(workshop: Workshop) -> None:
    """Values that start small are meant to grow: what counts is whether the loss ends above its start."""
    more = "[nn.init.normal_(parameter, std=1e-3) for parameter in net.parameters()]"
    assert rules(workshop, "Adam(net.parameters(), lr=0.01)", more, steps=60) == []
