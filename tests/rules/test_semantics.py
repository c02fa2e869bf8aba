"""Programs that compute something else than was meant, and programs that only look so."""

from __future__ import annotations

import textwrap
import warnings

import pytest
import torch
from torch import nn

import gradscope
from gradscope.graph.storage import decode, encode
from gradscope.reports.report import Report
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(0)
net, one = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)), nn.Linear(4, 1)
optimizer = torch.optim.SGD([*net.parameters(), *one.parameters()], lr=0.01)
{before}
for step in range(6):
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    loss = 0.1 * one(x).square().mean() + 0.1 * F.cross_entropy(net(x), y)
{body}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def found(workshop: Workshop, body: str, before: str = "") -> list[tuple[str, bool]]:
    """The rules that a loop with this body draws, with whether each points at the line marked `# here`."""
    source = PROGRAM.format(
        body=textwrap.indent(textwrap.dedent(body).strip(), "    "), before=textwrap.dedent(before).strip()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = decode(encode(workshop.run(source)))
    lines = (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()
    return [(f.rule, f.span is not None and "# here" in lines[f.span.line - 1]) for f in Report.of(run).findings]


TWICE = {
    "cross_entropy": "loss = loss + F.cross_entropy(net(x).softmax(1), y)  # here",
    "module": "loss = loss + nn.CrossEntropyLoss()(nn.Softmax(dim=-1)(net(x)), y)  # here",
    "mixture": "p = torch.stack([net(x).softmax(1), net(x).softmax(1)]).mean(0)\nloss += F.cross_entropy(p, y)  # here",
    "votes": "p = (x @ x.T + one(x)).softmax(1) @ F.one_hot(y, 3).float()\nloss += F.cross_entropy(p, y)  # here",
    "by hand": "loss += F.nll_loss(F.log_softmax(net(x).softmax(1), dim=1), y)  # here",
    "sigmoid": "p = torch.sigmoid(one(x))\nloss += F.binary_cross_entropy_with_logits(p, p.gt(1).float())  # here",
    "ctc": "p = net(x).softmax(1).unsqueeze(1).expand(-1, 2, -1)\n"
    "loss += F.ctc_loss(p, y[:4].view(2, 2) % 2 + 1, torch.tensor([8, 8]), torch.tensor([2, 2]))  # here",
    "no logarithm": "p = net(x).softmax(1)\nloss += F.nll_loss(p, y)  # here",
    "no logarithm, clamped": "p = net(x).softmax(1).clamp(min=1e-8)\nloss += nn.NLLLoss()(p[:8], y[:8])  # here",
    "distilled": "p, q = net(x).softmax(1), net(x).detach().softmax(1)\nloss += F.kl_div(p, q)  # here",
}
ONCE = {
    "distilled": "p, q = net(x).log_softmax(1), net(x).detach().softmax(1)\nloss += F.kl_div(p, q)",
    "prior": "p = net(x).softmax(1)\nloss += F.kl_div(torch.full((16, 3), 1 / 3).log(), p, reduction='sum')",
    "log_softmax": "loss = loss + F.cross_entropy(net(x).log_softmax(1), y)",
    "ctc": "p = net(x).log_softmax(1).unsqueeze(1).expand(-1, 2, -1)\n"
    "loss = loss + F.ctc_loss(p, y[:4].view(2, 2) % 2 + 1, torch.tensor([8, 8]), torch.tensor([2, 2]))",
    "nll": "loss = loss + F.nll_loss(torch.log(net(x).softmax(1) + 1e-8), y)",
    "soft target": "loss = loss + F.cross_entropy(net(x), net(x).detach().softmax(1))",
    "attention": "loss = loss + F.cross_entropy((net(x).softmax(1) * net(x)), y)",
    "gate": "loss = loss + F.cross_entropy(net(x) * torch.sigmoid(one(x)), y)",
    "twice in attention": "loss = loss + F.cross_entropy(net(x).softmax(1).softmax(1) @ torch.randn(3, 3), y)",
}


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE)
def test_probabilities_squashed_again(workshop: Workshop, body: str) -> None:
    """A loss that squashes probabilities is told at its line."""
    assert found(workshop, body)[:1] == [("double-softmax", True)]


@pytest.mark.parametrize("body", ONCE.values(), ids=ONCE)
def test_squashed_once(workshop: Workshop, body: str) -> None:
    """Logarithms, targets, gates and weights of attention are no second softmax of a prediction."""
    assert found(workshop, body) == []


def test_one_sigmoid_before_several_losses(workshop: Workshop) -> None:
    """What is made a probability once is one story, however many losses take it."""
    body = """
        p = torch.sigmoid(one(x))
        loss = loss + F.binary_cross_entropy_with_logits(p, torch.zeros(16, 1))
        loss = loss + F.binary_cross_entropy_with_logits(p, torch.ones(16, 1))
    """
    source = PROGRAM.format(body=textwrap.indent(textwrap.dedent(body), "    "), before="")
    (finding,) = Report.of(workshop.run(source)).findings
    assert finding.rule == "double-softmax"
    assert "and here" in [label.message for label in finding.labels]


BROADCAST = {
    "mse_loss": "loss = loss + F.mse_loss(one(x), x.sum(1))  # here",
    "by hand": "loss = loss + (one(x) - x.sum(1)).abs().mean()  # here",
    "weights": "advantage = one(x).detach()\nloss = loss - (net(x).log_softmax(1)[:, 0] * advantage).mean()  # here",
    "likelihood": "loss = loss - torch.distributions.Normal(one(x), 1.0).log_prob(x.sum(1)).mean()  # here",
    "one dimension too many": "loss = loss + F.mse_loss(one(x), x.sum(1, keepdim=True).unsqueeze(-1))  # here",
    "none to one": "loss = loss + F.smooth_l1_loss(one(x).squeeze(1), x.sum(1).unsqueeze(-1))  # here",
    "one for several": "target = torch.randn(16, 5)\nloss = loss + (one(x) - target).pow(2).mean()  # here",
}
MEANT = {
    "scalar": "loss = loss + (one(x) - 1.0).square().mean() + F.mse_loss(one(x), torch.tensor([1.0]).expand(16, 1))",
    "quantiles": "e = x.sum(1, keepdim=True) - net(x)\nloss = loss + torch.maximum(0.1 * e, -0.9 * e).mean()",
    "pairs": "s = one(x).squeeze(1)\nloss = loss + F.softplus(s[:, None] - x.sum(1)).mean()",
    "outer": "s = one(x).squeeze(1)\na, b = s.unsqueeze(1), x.sum(1).unsqueeze(0)\nloss = loss + (a - b).abs().mean()",
    "layer": "h = torch.exp(-((one(x) - torch.linspace(-1, 1, 16)) ** 2))\nloss = loss + (h @ torch.ones(16)).mean()",
    "weights": "loss = loss + (torch.rand(16, 1) * (net(x) - torch.randn(16, 3)).square()).mean()",
}


@pytest.mark.parametrize("body", BROADCAST.values(), ids=BROADCAST)
def test_shapes_broadcast_in_a_loss(workshop: Workshop, body: str) -> None:
    """Prediction and target that make more elements than either has are told."""
    assert found(workshop, body)[:1] == [("loss-broadcast", True)]


@pytest.mark.parametrize("body", MEANT.values(), ids=MEANT)
def test_broadcasts_that_are_meant(workshop: Workshop, body: str) -> None:
    """Scalars, quantiles, all pairs, layers and weights of samples broadcast on purpose."""
    assert found(workshop, body) == []


def test_training_goes_on_in_evaluation_mode(workshop: Workshop) -> None:
    """`eval()` in a helper that nobody takes back is told there, also where dropout is called as a function."""
    helper = "def evaluate():\n    net.eval()  # here\n"
    assert found(workshop, "evaluate()", helper) == [("eval-mode", True)]
    functional = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

            def forward(self, x):
                return self.second(F.dropout(self.first(x), training=self.training))

        net = Net()
        optimizer.add_param_group({"params": net.parameters()})
        net.train(False)  # here
    """
    assert ("eval-mode", True) in found(workshop, "pass", functional)


def test_help_for_evaluation_mode_names_a_variable(workshop: Workshop) -> None:
    """Where several modules have one name, the help leaves out the number that tells them apart."""
    source = """
        def make():
            net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
            net(torch.ones(2, 4))
            return net

        kept = [make(), make()]
        net = kept[1].eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for step in range(6):
            loss = net(torch.randn(16, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    (finding,) = Report.of(workshop.run(f"import torch\nfrom torch import nn\n{textwrap.dedent(source)}")).findings
    assert finding.tensors[0] == "net#2"
    assert finding.help[0].message == "call `net.train()` before the training goes on"


KEPT_IN_EVAL = {
    "train again": "net.eval()\nnet.train()",
    "in no_grad": "net.eval()\nwith torch.no_grad():\n    net(x)\nnet.train()",
    "attack": "net.eval()\ntorch.autograd.grad(net(x.requires_grad_()).sum(), x)\nnet.train()",
    "last step": "if step == 5:\n    net.eval()",
}


@pytest.mark.parametrize("body", KEPT_IN_EVAL.values(), ids=KEPT_IN_EVAL)
def test_evaluation_between_steps(workshop: Workshop, body: str) -> None:
    """A module that is in training mode whenever it is trained is right."""
    assert found(workshop, body) == []


def test_frozen_backbone_in_evaluation_mode(workshop: Workshop) -> None:
    """A backbone whose parameters are frozen, and batch norm put into evaluation mode by itself, are on purpose."""
    before = """
        norm = nn.BatchNorm1d(4)
        head = nn.Linear(4, 3)
        backbone = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.BatchNorm1d(4)).eval().requires_grad_(False)
        optimizer.add_param_group({"params": [*norm.parameters(), *head.parameters()]})
        norm.eval()
    """
    assert found(workshop, "loss = loss + F.cross_entropy(head(norm(backbone(x))), y)", before) == []


def test_batch_norm_put_into_evaluation_mode_after_each_switch(workshop: Workshop) -> None:
    """Evaluations of the whole model in between are no cause: in training, batch norm was put there by itself."""
    before = """
        deep = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        optimizer.add_param_group({"params": deep.parameters()})
    """
    body = """
        deep.train()
        deep[1].eval()
        loss = loss + F.cross_entropy(deep(x), y)
        deep.eval()
        with torch.no_grad():
            deep(x)
        deep.train()
        deep[1].eval()
    """
    assert found(workshop, f"{textwrap.dedent(body)}\nif step == 5:\n    deep.eval()", before) == []


def test_batch_leak_is_asked_for(workshop: Workshop) -> None:
    """`--check batch` finds the mixing operation and changes nothing of the run; without it nothing is checked."""
    source = """
        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Softmax(dim=0))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            loss = net(torch.randn(8, 4))[:, 0].square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(loss.item(), torch.rand(1).item())
    """
    workshop.write(source)
    plain, checked = (
        workshop.gradscope("explain", *options, "script.py").out for options in ([], ["--check", "batch"])
    )
    assert "batch-leak" not in plain
    assert "warning[batch-leak]: the output of one sample of `net` depends on others: `softmax` mixes them" in " ".join(
        checked.split()
    )
    assert plain.splitlines()[0] == checked.splitlines()[0]


class Mixing(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (n, features)."""
        return x - x.mean(0)


def test_check_batch() -> None:
    """The library's form gives a report, and names batch norm in training mode as a known reason."""
    leak = gradscope.check_batch(Mixing(), torch.randn(6, 4))
    assert [(f.rule, f.severity) for f in leak.findings] == [("batch-leak", "warning")]
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    running = model[1].running_mean.clone()
    state = torch.get_rng_state()
    normed = gradscope.check_batch(model, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert [(f.rule, f.severity) for f in normed.findings] == [("batch-leak", "info")]
    assert torch.equal(running, model[1].running_mean)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert gradscope.check_batch(nn.GRU(4, 3, batch_first=True), torch.randn(5, 6, 4)).findings == ()
    with pytest.raises(TypeError, match="at least two samples"):
        gradscope.check_batch(model, torch.randn(1, 4))
