"""A loss gets what it is made for: an activation less, one shape, weights before the mean, the right axis."""

from __future__ import annotations

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.first, self.last, self.act = nn.Linear(4, 8), nn.Linear(8, out), {act}

    def forward(self, x):
        h = self.last(torch.tanh(self.first(x)))
        return {result}


net = Net({out})
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(6):
    x = torch.rand(16, 4)
    labels, weights = torch.randint(0, 3, (16,)), torch.rand(16)
    loss = {loss}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
CROSS = "F.cross_entropy(net(x), labels)"
MENDED = {
    "softmax": ("h.softmax(dim=-1)", CROSS, "double-softmax", "return h"),
    "sigmoid": (
        "torch.sigmoid(h)",
        "F.binary_cross_entropy_with_logits(net(x), F.one_hot(labels, 3).float())",
        "double-softmax",
        "return h",
    ),
    "no logarithm": (
        "F.softmax(h, dim=1)",
        "F.nll_loss(net(x), labels)",
        "double-softmax",
        "return F.log_softmax(h, dim=1)",
    ),
    "a mixture": (
        "torch.softmax(h, dim=1) @ torch.eye(3)",
        CROSS,
        "double-softmax",
        "loss = F.nll_loss(torch.log(net(x) + 1e-8), labels)",
    ),
    "another axis": ("F.log_softmax(h, 0)", "F.nll_loss(net(x), labels)", "softmax-dim", "return F.log_softmax(h, -1)"),
    "relu": ("F.relu(h)", "F.cross_entropy(net(x), labels)", "squashed-output", "return h"),
    "tanh": ("h.tanh()", "F.mse_loss(net(x), 9 * x[:, :3] - 4)", "squashed-output", "return h"),
    "a mean of means": (
        "h[:, 0]",
        "(weights * F.smooth_l1_loss(net(x), x[:, 0])).sum()",
        "weights-after-reduction",
        'loss = (weights * F.smooth_l1_loss(net(x), x[:, 0], reduction="none")).sum()',
    ),
    "a mean too early": (
        "h[:, 0]",
        "(weights * (net(x) - x[:, 0]).square().mean()).mean()",
        "weights-after-reduction",
        "loss = (weights * (net(x) - x[:, 0]).square()).mean()",
    ),
    "two shapes": (
        "h[:, :1]",
        "(x.sum(dim=1) - net(x)).abs().mean()",
        "loss-broadcast",
        "loss = (x.sum(dim=1) - net(x).squeeze(-1)).abs().mean()",
    ),
    "two shapes of a loss": (
        "h[:, :1]",
        "F.l1_loss(net(x), x.sum(dim=1))",
        "loss-broadcast",
        "loss = F.l1_loss(net(x).squeeze(-1), x.sum(dim=1))",
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_what_a_loss_is_given(name: str, workshop: Workshop) -> None:
    """One line changes, that of the activation, the operand or the loss."""
    result_line, loss, rule, more = MENDED[name]
    result = mended(workshop, PROGRAM.format(act="nn.Identity()", result=result_line, out=3, loss=loss))
    assert result.finding.rule == rule
    assert result.more == [more]
    assert result.then == []


def test_a_module_that_is_kept_by_name(workshop: Workshop) -> None:
    """`self.act(h)` is `h` where `self.act` is nothing but the activation."""
    source = PROGRAM.format(act="None\n        self.act = nn.Softmax(dim=1)", result="self.act(h)", out=3, loss=CROSS)
    result = mended(workshop, source)
    assert result.finding.rule == "double-softmax"
    assert result.more == ["return h"]
    assert result.then == []
