"""Predictions that cannot reach their targets."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Finding
from gradscope.reports.report import Report
from tests.workshop import Workshop

LOOP = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(6):
        x = torch.randn(32, 4)
        y = x[:, :3] * 2
        labels = x[:, :3].argmax(1)
        out = {out}
        loss = {loss}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def told(workshop: Workshop, out: str, loss: str) -> list[Finding]:
    """The findings of a program that ends well."""
    return list(Report.of(workshop.run(LOOP.format(out=out, loss=loss))).findings)


@pytest.mark.parametrize(
    ("out", "loss", "said"),
    [
        ("torch.relu(net(x))", "(out - y).square().mean()", "of the targets lie beyond"),
        ("torch.sigmoid(net(x))", "(y - out).abs().mean()", "of the targets lie beyond"),
        ("torch.tanh(net(x)).reshape(-1)", "F.smooth_l1_loss(out, y.reshape(-1))", "of the targets lie beyond"),
        ("F.relu(net(x))", "F.cross_entropy(out, labels)", "of them are cut off at 0"),
        ("F.relu(net(x))", "F.nll_loss(F.log_softmax(out, dim=1), labels)", "of them are cut off at 0"),
        ("F.relu(net(x))[:, 0]", "F.binary_cross_entropy_with_logits(out, (y[:, 0] > 0).float())", "cut off at 0"),
        ("F.dropout(net(x), 0.4)", "F.l1_loss(out, y)", "40% of the predictions are set to 0"),
        ("F.dropout(net(x), 0.4)[:, 1]", "((out - y[:, 1]) ** 2).mean() + 0.1 * x.mean()", "are set to 0"),
    ],
)
def test_what_the_last_operation_cuts_off_is_told_at_it(workshop: Workshop, out: str, loss: str, said: str) -> None:
    """Straight or through views, into a loss of torch or one by hand; with the layer that suffers."""
    (finding,) = told(workshop, out, loss)
    assert finding.rule == "squashed-output"
    assert said in finding.message
    assert finding.tensors == ("net.2.weight", "net.2.bias")
    assert finding.span is not None
    assert finding.span.line == 12


@pytest.mark.parametrize(
    ("out", "loss"),
    [
        ("torch.relu(net(x))", "F.mse_loss(out, y.abs())"),
        ("torch.tanh(net(x))", "F.mse_loss(out, y.clamp(-1, 1))"),
        ("torch.sigmoid(net(x))", "F.mse_loss(out, (y > 0).float())"),
        ("x[:, :3] + torch.tanh(net(x))", "F.mse_loss(out, y)"),
        ("F.relu(net(x)).unsqueeze(1).repeat(1, 4, 1).mean(1)", "F.cross_entropy(out, labels)"),
        ("F.dropout(net(x), 0.4, training=False)", "F.mse_loss(out, y)"),
        ("F.dropout(net(x), 0.4)", "F.mse_loss(out, F.dropout(net(x), 0.4))"),
        ("y - torch.relu(net(x))", "F.mse_loss(out, y / 2)"),
        ("y - torch.relu(net(x))", "((out - y / 2) ** 2).mean()"),
    ],
)
def test_targets_within_reach_draw_nothing(workshop: Workshop, out: str, loss: str) -> None:
    """The activation fits its targets, is not the last operation, or what is compared is no target."""
    assert told(workshop, out, loss) == []


def test_few_targets_beyond_a_limit_are_outliers(workshop: Workshop) -> None:
    """Counts with a little noise lie below 0 now and then."""
    loss = "F.mse_loss(out, y.abs() + 0.05 * torch.randn_like(y))"
    assert told(workshop, "torch.relu(net(x))", loss) == []
