"""Losses with swapped arguments, and weights that come after the reduction."""

from __future__ import annotations

import pytest

from tests.rules.loops import found, report_of
from tests.workshop import Workshop

NET = "net = nn.Linear(5, 3)"
ONE = "net = nn.Linear(5, 1)"
X = "x, y, w = torch.randn(12, 5), torch.randint(0, 3, (12,)), torch.rand(12)\n"
SWAPPED = {
    "kl_div": (
        NET,
        "t = torch.randn(12, 3).log_softmax(1)\nloss = F.kl_div(t, net(x).log_softmax(1), log_target=True)",
    ),
    "module": (NET, "loss = nn.CrossEntropyLoss()(F.one_hot(y, 3).float(), net(x))"),
    "sigmoid": (ONE, "loss = F.binary_cross_entropy(w.view(12, 1), torch.sigmoid(net(x)))"),
    "logits": (ONE, "loss = F.binary_cross_entropy_with_logits(w.gt(0.5).float().view(12, 1), net(x))"),
    "teacher": (
        f"{NET}\nteacher = nn.Linear(5, 3)",
        "with torch.no_grad():\n    t = teacher(x).log_softmax(1)\nloss = F.kl_div(t, net(x).softmax(1))",
    ),
}
IN_ORDER = {
    "distilled": "t, p = torch.randn(12, 3).softmax(1), net(x)\n"
    "loss = F.kl_div(p.log_softmax(1), t) + F.cross_entropy(p, t)",
    "mse": "loss = F.mse_loss(torch.randn(12, 3), net(x)) + F.l1_loss(torch.randn(12, 3), net(x))",
    "prior": "loss = F.cross_entropy(net(x), y) + F.kl_div(torch.full((12, 3), 1 / 3).log(), net(x).softmax(1))",
    "both ways": "a = net(x).log_softmax(1)\nb = net(x + 0.1).log_softmax(1)\n"
    "loss = F.kl_div(a, b.detach(), log_target=True) + F.kl_div(a.detach(), b, log_target=True)",
    "self": "p = net(x)\nloss = F.cross_entropy(p, y) + F.kl_div(p.detach().log_softmax(1), net(x + 1).softmax(1))",
    "codebook": "z = net(x)\nq = z.round() + net.bias\nloss = F.mse_loss(z.detach(), q) + F.mse_loss(z, q.detach())",
}
AFTER = {
    "module": (NET, "loss = (nn.CrossEntropyLoss()(net(x), y) * w).mean()"),
    "normalised": (NET, "each = F.cross_entropy(net(x), y)\nloss = (w * each).sum() / w.sum()"),
    "advantages": (NET, "loss = (F.nll_loss(net(x).log_softmax(1), y) * torch.randn(12)).mean()"),
    "by hand": (ONE, "each = (net(x) - x.sum(1, keepdim=True)).pow(2).mean()\nloss = torch.mean(w.view(12, 1) * each)"),
}
BEFORE = {
    "none": "loss = (F.cross_entropy(net(x), y, reduction='none') * w).mean()",
    "tasks": "each = F.cross_entropy(net(x), y)\nloss = (torch.tensor([0.5, 0.2, 1.0]) * each).sum()",
    "scalar": "loss = F.cross_entropy(net(x), y) * w.mean() + 0.1 * F.cross_entropy(net(x), y)",
    "entropy": "p = net(x).log_softmax(1)\nloss = -(p.gather(1, y.view(12, 1)).view(12) * w).mean() + p.mean() * 0.1",
}


@pytest.mark.parametrize(("before", "body"), SWAPPED.values(), ids=SWAPPED)
def test_prediction_in_the_place_of_the_target(workshop: Workshop, before: str, body: str) -> None:
    """What is trained is the target, and what has no history the prediction."""
    assert found(workshop, before, X + body + "  # here") == [("target-gradient", True)]


@pytest.mark.parametrize("body", IN_ORDER.values(), ids=IN_ORDER)
def test_losses_with_arguments_in_order(workshop: Workshop, body: str) -> None:
    """Symmetric losses, priors and losses in both directions may have a gradient in their target."""
    assert found(workshop, NET, X + body) == []


def test_the_help_swaps_the_arguments(workshop: Workshop) -> None:
    """The edit puts the prediction first, also where the target that comes first makes the loss NaN."""
    body = "t = torch.rand(12, 3).softmax(1)\nloss = F.kl_div(t, net(x).log_softmax(1), reduction='sum')"
    (finding,) = report_of(workshop, NET, X + body).findings
    assert (finding.rule, finding.severity) == ("target-gradient", "error")
    (edit,) = finding.help[0].edits
    assert edit.text == "F.kl_div(net(x).log_softmax(1), t, reduction='sum')"
    assert "t" in finding.tensors


@pytest.mark.parametrize(("before", "body"), AFTER.values(), ids=AFTER)
def test_weights_meet_one_number(workshop: Workshop, before: str, body: str) -> None:
    """One weight a sample, and a loss that is a mean over the samples already."""
    assert found(workshop, before, X + body + "  # here") == [("weights-after-reduction", True)]


@pytest.mark.parametrize("body", BEFORE.values(), ids=BEFORE)
def test_weights_that_weigh(workshop: Workshop, body: str) -> None:
    """Weights of samples before the reduction, of tasks, and single ones."""
    assert found(workshop, NET, X + body) == []
