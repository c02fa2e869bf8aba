"""Losses that are one number in every step."""

from __future__ import annotations

import pytest

from gradscope.reports.report import Report
from tests.workshop import Workshop

LOOP = """
    import math
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    best = math.inf
    for step in range(6):
        x = torch.rand(16, 4)
        error = (net(x) - x[:, :2]).square()
        {loss}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        best = min(best, loss.item())
"""


@pytest.mark.parametrize(
    "loss",
    [
        "loss = error.mean() / error.mean().item()",
        "loss = sum(part / part.detach() for part in error.mean(0))",
        "loss = 0.5 * (error.mean() / error.detach().mean().clamp(min=1e-8))",
        "weight = 1 / error.mean().item(); loss = error.mean() * weight",
    ],
)
def test_terms_that_are_divided_by_themselves_are_told_at_the_division(workshop: Workshop, loss: str) -> None:
    """Whether by a tensor without history, by a number, or by one over it: the loss tells nothing."""
    (finding,) = Report.of(workshop.run(LOOP.format(loss=loss))).findings
    assert finding.rule == "constant-loss"
    assert finding.span is not None
    assert finding.span.line == 12
    assert "whoever reads it" in finding.labels[-1].message


@pytest.mark.parametrize(
    "loss",
    [
        "loss = error.mean() / x.detach().mean()",
        "score = net(x).log_softmax(1)[:, 0]; loss = -(torch.exp(score - score.detach()) * x[:, 0]).mean()",
        "loss = error[:, 0].mean() / error[:, 0].mean().detach() + error[:, 1].mean()",
        "ratio = error.exp() / error.exp().detach(); loss = (ratio * x[:, :2]).mean()",
    ],
)
def test_other_divisions_and_surrogates_draw_nothing(workshop: Workshop, loss: str) -> None:
    """A loss that has anything in it besides ratios to itself still tells how it goes."""
    assert Report.of(workshop.run(LOOP.format(loss=loss))).findings == ()
