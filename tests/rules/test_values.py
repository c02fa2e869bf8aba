"""Gradients and losses that are not finite, exactly zero, vanishing or exploding."""

from __future__ import annotations

import textwrap
import warnings

import pytest
import torch

from gradscope.graph.storage import decode, encode
from gradscope.reports.report import Report
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(0)
net, last = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)
{before}
optimizer = torch.optim.SGD([*net.parameters(), *last.parameters()], lr=0.01)
for step in range(8):
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
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
        outcome = workshop.observe(source)
    assert list(outcome.run.failures) == []
    lines = (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()
    findings = Report.of(decode(encode(outcome.run))).findings
    return [(f.rule, f.span is not None and "# here" in lines[f.span.line - 1]) for f in findings]


PLAIN = "loss = F.cross_entropy(last(net(x)), y)"
FORWARD = {
    "log": "p = last(net(x)).softmax(1) * 0\nloss = -torch.log(p)[:, 0].mean()  # here",
    "overflow": "z = last(net(x)) * 1000\nloss = torch.exp(z).mean()  # here",
    "masked row": "s = last(net(x)).masked_fill(y[:, None] > 0, -torch.inf)\nloss = s.softmax(1)[:, 0].mean()  # here",
    "mean of nothing": "each = last(net(x)).sum(1)\nloss = each[y > 5].mean() + each.square().mean()  # here",
    "of data": "x = (x - x) / (x - x)  # here\nloss = F.cross_entropy(last(net(x)), y)",
    "late": f"{PLAIN}\nif step == 5:\n    loss = loss / (loss - loss)  # here",
    "spread of one": "x = x / (x[0, :1].std() + 1e-8)  # here\nloss = F.cross_entropy(last(net(x)), y)",
    "a constant": f"{PLAIN}\nloss = loss * 0.5 + 1 + torch.log(x * 0 - 1).mean()  # here",
    "an older constant": f"bound = torch.log(x * 0 - 1)  # here\n{PLAIN}\nloss = loss * 0.5 + bound.mean()",
    "an absent class": "h, n = last(net(x)).sum(1), (y > 5).float()\nbad = (h * n).sum() / n.sum()  # here\n"
    "loss = (h.mean() + bad) / 2",
    "half precision": "h = (last(net(x)) * 0 + 100).half()\nenergy = (h * h).sum()  # here\n"
    "size = energy.float().sqrt()\nloss = (h / size).float().mean() + size - size",
    "half precision and relu": "h = (last(net(x)) * 0 + 3e4).half().sum(1)  # here\nh = h.relu()\n"
    "loss = (h - h).float().mean()",
    "half precision and a sum": "h = (last(net(x)) * 0 + 3e4).half()\ns = h.sum(1)  # here\n"
    "s = s - s.detach()\nloss = s.float().mean()",
    "in vain": "loss = torch.relu(last(net(x)) - 1e6).mean() - torch.log(x * 0).mean()  # here",
    "refused": "p = last(net(x))\np = p / (p - p)  # here\nloss = torch.distributions.Categorical(p).logits.sum()",
}


@pytest.mark.parametrize("body", FORWARD.values(), ids=FORWARD)
def test_loss_is_not_finite(workshop: Workshop, body: str) -> None:
    """The first operation that makes NaN or infinity is told, and nothing that follows from it."""
    assert found(workshop, body)[:1] == [("nonfinite-forward", True)]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (f"{PLAIN}\nif step == 2:\n    att = torch.log(x * 0 - 1)\n    loss = loss + att.mean()", ("att", "x")),
        (f"{PLAIN}\nif step == 2:\n    loss = -torch.log(torch.sigmoid(last(net(x)) - 999)).mean()", ("loss",)),
        ("score = last(net(x)) - torch.inf\nloss = (score * 0).softmax(-1).mean()", ("score",)),
        ("score = last(net(x)) * torch.inf\nloss = score.mean()", ("score",)),
    ],
)
def test_names_of_what_is_not_finite(workshop: Workshop, body: str, names: tuple[str, ...]) -> None:
    """Result and operands have a name also where their step is not kept; where they have none, the loss has one."""
    body = textwrap.indent(body, "    ")
    (finding,) = Report.of(workshop.run(PROGRAM.format(body=body, before=""))).findings
    assert (finding.rule, finding.tensors[: len(names)]) == ("nonfinite-forward", names)


def test_names_of_what_gradients_spoil(workshop: Workshop) -> None:
    """First the parameters that got the gradient, then those that it spoilt later, then what the operation took."""
    source = """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.bias = nn.Linear(4, 3), nn.Parameter(torch.zeros(3))

            def forward(self, x):
                return self.first(x) + self.bias

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            size = net.bias.abs()
            loss = net(torch.rand(8, 4)).square().mean() + torch.sqrt(size * 0.5).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    (finding,) = Report.of(workshop.run(source)).findings
    assert finding.rule == "nonfinite-gradient"
    assert finding.tensors == ("net.bias", "first.weight", "first.bias", "size")
    assert finding.facts == (
        "not finite: net.bias",
        "note: all 3 steps after it are spoilt, and first.weight, first.bias with them",
    )


def test_a_step_spoils_the_parameters(workshop: Workshop) -> None:
    """Of finite gradients an `eps` that is 0 in float16 makes NaN: it is the step, and no operation of the forward."""
    source = """
        import torch
        from torch import nn

        net = nn.Linear(4, 1).half()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(4):
            x = torch.rand(8, 4).half()
            x[:, 1] = 0
            loss = net(x).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # here
    """
    outcome = workshop.observe(source)
    (finding,) = Report.of(decode(encode(outcome.run))).findings
    assert (finding.rule, finding.tensors) == ("nonfinite-forward", ("net.weight", "net.bias"))
    lines = (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()
    assert finding.span is not None
    assert "# here" in lines[finding.span.line - 1]
    assert "the gradients were finite" in finding.message


def test_a_parameter_that_was_never_filled(workshop: Workshop) -> None:
    """What is NaN from the start is no doing of a step."""
    before = "last.bias.data.fill_(torch.nan)"
    body = f"{PLAIN}  # here"
    assert found(workshop, body, before) == [("nonfinite-forward", True)]


BACKWARD = {
    "sqrt": "h = net(x)\nloss = (h - h).square().sum(1).sqrt().mean() + last(h).square().mean()  # here",
    "where": "h = last(net(x))\nloss = torch.where(h > 99, torch.exp(h * 999), h).square().mean()  # here",
    "division": "h = last(net(x))\nz = h - h\nloss = torch.where(z > 0, h / z, h).square().mean()  # here",
    "late": f"{PLAIN}\nif step == 5:\n    loss = loss + (loss - loss) ** 0.5  # here",
    "a factor": "h = last(net(x))\nu = h / (h - h)  # here\nloss = (u * h)[h > 99].sum() + h.square().mean()",
    "masked row": "s = last(net(x)) + torch.zeros(16, 3).masked_fill(y[:, None] > 0, -torch.inf)\n"
    "loss = -torch.where(y > 0, 0, s.log_softmax(1)[:, 0]).mean()  # here",
}


@pytest.mark.parametrize("body", BACKWARD.values(), ids=BACKWARD)
def test_only_gradients_are_not_finite(workshop: Workshop, body: str) -> None:
    """The operation whose backward makes NaN of finite gradients is told at its forward line."""
    assert found(workshop, body)[:1] == [("nonfinite-gradient", True)]


def test_a_model_that_is_called_twice_is_one_story(workshop: Workshop) -> None:
    """The gradient vanishes in both calls of one model: the further line is a label."""
    source = """
        import torch
        from torch import nn

        layers = [layer for _ in range(14) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
        net = nn.Sequential(nn.Linear(1, 16), nn.Sigmoid(), *layers, nn.Linear(16, 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(10):
            y = net(torch.rand(8, 1))  # call
            start = net(torch.zeros(1, 1))  # call
            loss = y.square().mean() + (start - 9).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    (finding,) = Report.of(workshop.run(source)).findings
    assert finding.rule == "vanishing-gradient"
    lines = (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()
    places = [finding.span, *(label.span for label in finding.labels)]
    assert len(places) == 2
    assert all(place is not None and "# call" in lines[place.line - 1] for place in places)


def test_weight_norm_of_single_elements_does_not_vanish(workshop: Workshop) -> None:
    """A direction in one dimension has no slope: what arrives there is rounding noise, and its length learns."""
    source = """
        import torch
        from torch import nn
        from torch.nn.utils.parametrizations import weight_norm

        net = nn.Sequential(weight_norm(nn.Linear(1, 8)), nn.Tanh(), weight_norm(nn.Linear(8, 1)))
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(20):
            x = torch.rand(16, 1)
            loss = (net(x) - x.sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    assert Report.of(workshop.run(source)).findings == ()


ANOMALIES = {
    "a root of 0": "norms = (last(net(x)) * (step < 3)).square().sum(1).sqrt()  # here\nloss = norms.mean()",
    "a branch left out": "p = F.relu(last(net(x)) - 0.5)\nlogs = p.log()  # here\n"
    "loss = torch.where(p > 0, p * logs, torch.zeros_like(p)).mean()",
}


@pytest.mark.parametrize("body", ANOMALIES.values(), ids=ANOMALIES)
def test_anomaly_mode_raises_before_gradients_arrive(workshop: Workshop, body: str) -> None:
    """What anomaly mode stops is told as what went through is, in words for what has not happened."""
    with torch.autograd.set_detect_anomaly(False):  # it ends what the program turns on
        assert found(workshop, body, "torch.autograd.set_detect_anomaly(True)") == [("nonfinite-gradient", True)]
        source = (workshop.folder / "script.py").read_text(encoding="utf-8")
        (finding,) = Report.of(workshop.observe(source).run).findings
    assert "would get" in finding.message


def test_custom_function_divides_by_zero(workshop: Workshop) -> None:
    """Of a custom Function it is the division in its backward."""
    before = """
        class Unit(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                size = grad.norm()
                return grad / size  # here
    """
    assert found(workshop, "loss = (Unit.apply(last(net(x))) * 0).sum()", before)[:1] == [("nonfinite-gradient", True)]


HARMLESS = {
    "causal mask": "s = last(net(x)) + torch.tensor([0, 0, -torch.inf])\nloss = s.softmax(1).square().sum()",
    "missing data": "t = y[:, None].log() * 0\nk = ~t.isnan()\nloss = (last(net(x))[:, :1] - t)[k].abs().sum()",
    "infinite at first": f"{PLAIN}\nif step < 3:\n"
    "    loss = torch.relu(last(net(x)) - 1e6).mean() - torch.log(x * 0).mean()",
    "cleaned": "loss = last(net(x)).abs().sqrt().sum() + (x[:, 0] * 0 * net[0].weight[0, 0]).sum()",
}


@pytest.mark.parametrize("body", HARMLESS.values(), ids=HARMLESS)
def test_infinite_on_purpose(workshop: Workshop, body: str) -> None:
    """Masks of -inf and NaN that is left out do no harm."""
    assert found(workshop, body) == []


def test_skipped_steps(workshop: Workshop) -> None:
    """Infinite gradients that are thrown away, as a scaler does, do no harm."""
    body = f"""
        {PLAIN}
        (loss * (1e38 if step < 3 else 1.0) * (1e38 if step < 3 else 1.0)).backward()
        if not torch.isfinite(last.weight.grad).all():
            optimizer.zero_grad()
            continue
        optimizer.zero_grad()
        loss = F.cross_entropy(last(net(x)), y)
    """
    assert found(workshop, body) == []


ZERO = {
    "round": "loss = F.cross_entropy(last(net(x).round()), y)  # here",
    "sign": "h = net(x).sign()  # here\nloss = F.cross_entropy(last(h), y)",
    "clamp": "h = net(x).clamp(min=5.0)  # here\nloss = F.cross_entropy(last(h), y)",
    "dead relu": "h = torch.relu(net(x) - 9)  # here\nloss = F.cross_entropy(last(h), y)",
    "saturated": "h = net(x * 1e6 + 1e7)  # here\nloss = F.cross_entropy(last(h), y)",
    "softmax of one": "w = net(x)[:, :1].softmax(1)  # here\nloss = F.cross_entropy(last(w * x[:, [0] * 6]), y)",
    "factor": "loss = F.cross_entropy(last(net(x) * 0.0 + x[:, [0] * 6]), y)  # here",
}


@pytest.mark.parametrize("body", ZERO.values(), ids=ZERO)
def test_gradient_is_exactly_zero(workshop: Workshop, body: str) -> None:
    """The operation that takes a gradient and sends back zero is told, once."""
    assert found(workshop, body) == [("zero-gradient", True)]


NOT_DEAD = {
    "constant cancels": "h = last(net(x))\nloss = (h[:8] - h[8:]).square().mean()",
    "critic": "loss = last(net(x)).mean() - last(net(x + 1)).mean()",
    "zero at first": "if step == 0:\n    nn.init.zeros_(last.weight)\nloss = F.cross_entropy(last(net(x)), y)",
    "sometimes": "loss = F.relu(last(net(x)) - (9 if step % 2 else 0)).mean()",
    "takes part": "loss = last(net(x)).square().mean() + 0.0 * sum(p.sum() for p in spare.parameters())",
}


@pytest.mark.parametrize("body", NOT_DEAD.values(), ids=NOT_DEAD)
def test_zero_that_is_right(workshop: Workshop, body: str) -> None:
    """Zero by invariance, in the first step, in some steps, or of a tensor that only takes part, is no finding."""
    before = "spare = nn.Linear(2, 2)\nnet.append(nn.Identity())" if "spare" in body else ""
    assert found(workshop, body, before) == []


def test_vanishing(workshop: Workshop) -> None:
    """A long chain of small derivatives is told with the course of the gradient; a small weight of a term is not."""
    chain = "h = net(x)\nfor _ in range(40):\n    h = torch.tanh(0.3 * h)  # here\nloss = F.cross_entropy(last(h), y)"
    assert found(workshop, chain) == [("vanishing-gradient", True)]
    scaled = "h = net(x)\nloss = F.cross_entropy(last(h.detach()), y) + 1e-9 * h.square().mean()"
    assert found(workshop, scaled) == []


def test_exploding(workshop: Workshop) -> None:
    """A chain of factors above 1 is told at its line; the large gradients of a large loss are not."""
    chain = """
        optimizer.param_groups[0]["lr"] = 1e-30
        h = net(x)
        for _ in range(30):
            h = h * (2 + x[:, :1].abs())  # here
        loss = last(h).abs().mean()
    """
    assert ("exploding-gradient", True) in found(workshop, chain)
    large = "optimizer.param_groups[0]['lr'] = 1e-9\nloss = (last(net(x)) * 30 + 1e3 * x[:, :3]).square().sum()"
    assert found(workshop, large) == []


def test_vanishing_beside_a_double_backward(workshop: Workshop) -> None:
    """A pass that only computes the derivative of a result tells nothing of what trains: the next one is looked at."""
    body = """
        x.requires_grad_()
        h = net(x)
        for _ in range(12):
            h = torch.sigmoid(h @ mix)  # here
        out = last(h)
        slope = torch.autograd.grad(out.sum(), x, create_graph=True)[0]
        loss = out.square().mean() + slope.square().mean()
    """
    before = "mix = nn.Parameter(torch.randn(6, 6) / 6)\nlast.register_parameter('mix', mix)"
    assert found(workshop, body, before)[:1] == [("vanishing-gradient", True)]


@pytest.mark.filterwarnings("ignore:std")
def test_spread_of_a_single_element(workshop: Workshop) -> None:
    """Who divides by the standard deviation of one element is told of it, rather than of the division."""
    body = textwrap.indent(FORWARD["spread of one"], "    ")
    (finding,) = Report.of(workshop.run(PROGRAM.format(body=body, before=""))).findings
    assert finding.message.startswith("`std` made NaN")
    assert "a single element has no spread" in finding.help[0].message


def test_gradients_that_explode_hide_no_loss_that_is_not_finite(workshop: Workshop) -> None:
    """That the loss is NaN is an error, also where it is told of the steps that led there."""
    program = """
        import torch

        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(8, 8))
        optimizer = torch.optim.SGD([w], lr=50.0)
        x = torch.rand(16, 8)
        for _ in range(12):
            h = x
            for _ in range(3):
                h = h @ w
            loss = (h - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    report = Report.of(workshop.run(program))
    assert [(finding.rule, finding.severity) for finding in report.findings] == [
        ("step-size", "error"),
    ]
