"""Programs that lose a gradient on the way, and programs that only look so."""

from __future__ import annotations

import textwrap
import warnings

import pytest

from gradscope.graph.facts import Finding, Span
from gradscope.reports.report import Report
from tests.workshop import Workshop

PROGRAM = """
import copy
import torch
from torch import nn
import torch.nn.functional as F

{before}
encoder, decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Linear(4, 2)
twin = copy.deepcopy(encoder)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01)
for step in range(3):
    x, y = torch.randn(16, 4), torch.randn(16, 2)
{body}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
ENCODER = ("encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias")


def findings(workshop: Workshop, body: str, before: str = "") -> tuple[str, tuple[Finding, ...]]:
    """What a training loop with this body draws, and its source."""
    source = PROGRAM.format(body=textwrap.indent(textwrap.dedent(body).strip(), "    "), before=textwrap.dedent(before))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = workshop.observe(source)
    report = Report.of(outcome.run)
    assert list(outcome.run.failures) == []
    assert report.failures == ()
    return (workshop.folder / "script.py").read_text(encoding="utf-8"), report.findings


NO_WAY_BACK = {
    "data": ("detach", "z = encoder(x).data  # here"),
    "detach_then_leaf": ("detach", "z = encoder(x).detach()  # here\nz.requires_grad_()"),
    "detach_in_place": ("detach", "z = encoder(x)\nz.detach_()  # here"),
    "behind_a_guard": ("detach", "w = encoder(x)\nw = torch.exp(w - w.max().detach())\nz = w.data  # here"),
    "beside_a_choice": (
        "detach",
        "h = encoder(x)\nk = h.detach().argmax(1, keepdim=True)\nz = h.gather(1, k).expand(-1, 4).detach()  # here",
    ),
    "inference_mode": ("no-grad", "with torch.inference_mode():\n    z = encoder(x)  # here\nz = z.clone()"),
    "no_grad": ("no-grad", "with torch.no_grad():\n    z = encoder(x)  # here"),
    "no_grad_and_noise": (
        "no-grad",
        "with torch.no_grad():\n    z = encoder(x)  # here\n    for p in encoder.parameters():\n"
        "        p.data.add_(0.01 * torch.randn_like(p))\n        p.data.mul_(0.99).clamp_(-1, 1)",
    ),
    "no_grad_after_a_start_from_another": (
        "no-grad",
        "if step == 0:\n    encoder[2].weight.data.copy_(decoder.weight.data.repeat(2, 2))\n"
        "with torch.no_grad():\n    z = encoder(x)  # here",
    ),
    "from_numpy": ("left-torch", "z = torch.from_numpy(encoder(x).detach().numpy() * 2)  # here"),
    "tolist": ("left-torch", "z = torch.tensor(encoder(x).tolist())  # here"),
    "as_tensor": ("rebuilt-tensor", "z = torch.as_tensor([list(row) for row in encoder(x)])  # here"),
    "parameter": ("rebuilt-tensor", "z = nn.Parameter(encoder(x))  # here"),
    "variable": ("rebuilt-tensor", "z = torch.autograd.Variable(encoder(x), requires_grad=True)  # here"),
    "data_copy": (
        "rebuilt-tensor",
        "other = nn.Linear(4, 8)\nother.weight.data.copy_(encoder(x)[:8])  # here\nz = other(x)[:, :4]",
    ),
    "long": ("non-differentiable-op", "z = (encoder(x) * 10).long()  # here\nz = z.float()"),
    "comparison": ("non-differentiable-op", "z = (encoder(x) > 0).float()  # here"),
    "argmax": ("non-differentiable-op", "z = F.one_hot(encoder(x).argmax(1), 4).float()  # here"),
    "choice": (
        "non-differentiable-op",
        "p = encoder(x) + torch.zeros_like(encoder(x))\n"
        "i = p.max(1, keepdim=True)[1]  # here\nz = torch.zeros_like(p).scatter_(1, i, 1.0)",
    ),
    "indices": ("non-differentiable-op", "z = x * encoder(x).topk(1).indices  # here"),
    "sample": ("non-differentiable-op", "z = torch.distributions.Normal(encoder(x), 1.0).sample()  # here"),
    "crop": ("non-differentiable-op", "size = int(encoder(x).mean().abs()) + 4  # here\nz = x[:, :size]"),
}


@pytest.mark.parametrize("case", NO_WAY_BACK)
def test_only_way_is_cut(case: str, workshop: Workshop) -> None:
    """A parameter whose only way to the loss is cut is one error: the rule of the cause, its line, all who suffer."""
    rule, body = NO_WAY_BACK[case]
    source, found = findings(workshop, body + "\nloss = F.mse_loss(decoder(z), y)")
    assert [(finding.rule, finding.severity) for finding in found] == [(rule, "error")]
    assert found[0].span is not None
    assert "# here" in source.splitlines()[found[0].span.line - 1]
    assert found[0].tensors == ENCODER
    assert any(fact.startswith("path: encoder.0.weight") and "-/-" in fact for fact in found[0].facts)


DEAD_TERMS = {
    "number": ("left-torch", "loss = F.mse_loss(decoder(z), y) + 0.1 * z.square().mean().item()  # here"),
    "number_in_a_dict": (
        "left-torch",
        "losses = {'fit': F.mse_loss(decoder(z), y)}\nlosses['size'] = 0.3 * z.square().mean().item()  # here\n"
        "loss = sum(losses.values())",
    ),
    "number_in_a_list": (
        "left-torch",
        "parts = [F.mse_loss(decoder(z), y), float(z.square().mean().detach())]  # here\nloss = 0\n"
        "for part in parts:\n    loss = loss + 0.7 * part",
    ),
    "sum_of_numbers": (
        "left-torch",
        "size = sum(p.norm().item() for p in encoder.parameters())  # here\n"
        "loss = F.mse_loss(decoder(z), y) + 0.01 * size",
    ),
    "rebuilt": ("rebuilt-tensor", "extra = torch.tensor([z.mean(), z.std()]).sum()  # here\nloss = z.mean() + extra"),
    "no_grad": (
        "no-grad",
        "with torch.no_grad():\n    extra = z.square().mean()  # here\nloss = F.mse_loss(decoder(z), y) + extra",
    ),
    "penalty": (
        "missing-create-graph",
        "x.requires_grad_()\nout = encoder(x).sum()\n"
        "slope = torch.autograd.grad(out, x, retain_graph=True)[0]  # here\nloss = out + slope.norm()",
    ),
    "residual": (
        "missing-create-graph",
        "t = torch.rand(16, 4, requires_grad=True)\nu = encoder(t)\n"
        "slope = torch.autograd.grad(u.sum(), t, retain_graph=True)[0]  # here\n"
        "loss = F.mse_loss(decoder(z), y) + (slope + u).square().mean()",
    ),
    "gradient_of_an_input": (
        "missing-create-graph",
        "x = x.clone().requires_grad_()\nencoder(x).sum().backward(retain_graph=True)\n"
        "slope = x.grad.norm(dim=1)  # here\nloss = F.mse_loss(decoder(z), y) + (slope - 1).square().mean()",
    ),
    "gradient": (
        "missing-create-graph",
        "F.mse_loss(decoder(z), y).backward(retain_graph=True)\n"
        "extra = encoder[0].weight.grad.square().sum()  # here\nloss = F.mse_loss(decoder(z), y) + extra",
    ),
}


@pytest.mark.parametrize("case", DEAD_TERMS)
def test_term_without_gradient(case: str, workshop: Workshop) -> None:
    """A summand of the loss without history is a warning, though its tensors learn from the other summands."""
    rule, body = DEAD_TERMS[case]
    source, found = findings(workshop, "z = encoder(x)\n" + body)
    loud = [finding for finding in found if finding.rule != "unused-parameter"]
    assert [(finding.rule, finding.severity) for finding in loud] == [(rule, "warning")]
    assert loud[0].span is not None
    assert "optimizer" not in loud[0].help[0].message
    assert "# here" in source.splitlines()[loud[0].span.line - 1]


@pytest.mark.parametrize(
    "body",
    [
        "loss = F.mse_loss(decoder(encoder(x)), y)\nloss = loss / encoder(y.mean() + x).norm().item()",
        "z = encoder(x)\nloss = F.mse_loss(decoder(z), y) + F.mse_loss(z, z.detach())",
        "z = encoder(x)\nloss = F.mse_loss(decoder(z), y) - (z + (z.round() - z).detach()).mean()",
        "z = encoder(x)\nloss = F.mse_loss(decoder(z + (z.round() - z).detach()), y)",
        "loss = F.mse_loss(decoder(F.gumbel_softmax(encoder(x), hard=True)), y)",
        "with torch.no_grad():\n    goal = twin(x)\n"
        "z = encoder(x)\nloss = F.mse_loss(z, goal) + decoder(z).square().mean()\n"
        "with torch.no_grad():\n    for a, b in zip(twin.parameters(), encoder.parameters()):\n        a.lerp_(b, 0.1)",
        "if step == 0:\n    optimizer.add_param_group({'params': twin.parameters()})\n"
        "with torch.no_grad():\n    goal = twin(x)\n"
        "z = encoder(x)\nloss = F.mse_loss(z, goal) + decoder(z).square().mean()\n"
        "for a, b in zip(twin.parameters(), encoder.parameters()):\n    a.data.lerp_(b.data, 0.1)",
        "if step == 0:\n    optimizer.add_param_group({'params': twin.parameters()})\n"
        "with torch.no_grad():\n    goal = twin(x)\n"
        "z = encoder(x)\nloss = F.mse_loss(z, goal) + decoder(z).square().mean()\n"
        "for a, b in zip(twin.parameters(), encoder.parameters()):\n    a.data = 0.9 * a.data + 0.1 * b.data",
        "weight = x.square().mean().item()\nloss = F.mse_loss(decoder(encoder(x)), y) + 0.1 * weight",
        "z = encoder(x)\nscale, size = z.norm().item(), z.square().mean().item()\nmeter = [0.5 * size]\n"
        "loss = F.mse_loss(decoder(z), y) / scale + 0.25",
        "d = torch.distributions.Categorical(logits=encoder(x))\na = d.sample()\nr = (a == 1).float()\n"
        "loss = -(d.log_prob(a) * (r - r.mean())).mean() + decoder(x).square().mean()",
        "z = encoder(x)\nhits = (z.argmax(1) == 1).sum().item()\n"
        "loss = F.mse_loss(decoder(z), y)\nlog = loss.item() + hits",
        "x.requires_grad_()\nslope = torch.autograd.grad(F.mse_loss(decoder(encoder(x)), y), x)[0]\n"
        "loss = F.mse_loss(decoder(encoder(x + 0.1 * slope.sign())), y)",
        "z = encoder(x)\nfirst, second = F.mse_loss(decoder(z), y), decoder(z).square().mean()\n"
        "a, b = (torch.autograd.grad(part, z, retain_graph=True)[0].norm() for part in (first, second))\n"
        "loss = first + a / (b + 1e-6) * second",
        "z = encoder(x)\nfirst = F.mse_loss(decoder(z), y)\n"
        "slope = torch.autograd.grad(first, z, retain_graph=True)[0]\n"
        "loss = first + F.mse_loss(decoder(z), slope[:, :2])",
        "weight, part = decoder.weight, encoder(x)\nfor _ in range(2):\n"
        "    inner = F.mse_loss(F.linear(part, weight), y)\n"
        "    weight = weight - 0.1 * torch.autograd.grad(inner, weight, retain_graph=True)[0]\n"
        "loss = F.mse_loss(F.linear(part, weight, decoder.bias), y)",
        "from torch.autograd import Variable\nx, y = Variable(x), Variable(y)\nbefore = Variable(encoder(x).data)\n"
        "z = encoder(x)\nloss = F.mse_loss(decoder(z), y) + F.mse_loss(z, before)",
    ],
    ids=[
        "scaled",
        "stop_gradient",
        "straight_through_to_the_loss",
        "straight_through",
        "gumbel",
        "teacher",
        "teacher_in_the_optimizer",
        "teacher_whose_data_is_replaced",
        "number_of_the_data",
        "numbers_for_a_meter",
        "reinforce",
        "metrics",
        "adversarial",
        "weights",
        "learned_gradient",
        "inner_loop",
        "variables_of_data",
    ],
)
def test_cuts_on_purpose_are_silent(body: str, workshop: Workshop) -> None:
    """Detaching, sampling and leaving torch draw nothing where everyone who is relied on gets a gradient."""
    assert findings(workshop, body)[1] == ()


def test_penalty_of_a_critic_that_is_frozen_by_turns(workshop: Workshop) -> None:
    """The penalty trains the critic; that the generator is detached before it is right, and no cause."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        maker, critic = nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        for_maker = torch.optim.SGD(maker.parameters(), lr=0.01)
        for_critic = torch.optim.SGD(critic.parameters(), lr=0.01)
        for _ in range(4):
            critic.requires_grad_(True)
            real, fake = torch.randn(8, 2), maker(torch.randn(8, 3)).detach()
            mixed = (0.5 * real + 0.5 * fake).requires_grad_()
            slope = torch.autograd.grad(critic(mixed).sum(), mixed, retain_graph=True)[0]
            loss = critic(fake).mean() - critic(real).mean() + (slope.norm(dim=1) - 1).square().mean()
            for_critic.zero_grad()
            loss.backward()
            for_critic.step()
            critic.requires_grad_(False)
            score = -critic(maker(torch.randn(8, 3))).mean()
            for_maker.zero_grad()
            score.backward()
            for_maker.step()
        """
    )
    (finding,) = Report.of(run).findings
    assert finding.rule == "missing-create-graph"
    assert {name.partition(".")[0] for name in finding.tensors} == {"critic"}


def test_number_that_is_a_factor_in_a_module(workshop: Workshop) -> None:
    """A parameter that is taken out of torch inside a forward leaves it there; it is not unused."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.scale = nn.Linear(4, 2), nn.Parameter(torch.zeros(()))

            def forward(self, x):
                return min(self.scale.exp().item(), 100.0) * self.body(x)

        net = Scaled()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    (finding,) = Report.of(run).findings
    assert (finding.rule, finding.tensors) == ("left-torch", ("net.scale",))


NUMBER = """
import torch
from torch import nn

net, rate = nn.Linear(4, 1), nn.Parameter(torch.tensor(0.5))
optimizer = torch.optim.SGD([*net.parameters(), rate], lr=0.1)
print(rate.item())
for _ in range(5):
    loss = net(torch.rand(8, 4)).square().mean() * {factor}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(rate.item())
"""


@pytest.mark.parametrize(
    ("factor", "rule"),
    [("rate.item()  # here", "left-torch"), ("rate.exp().item()  # here", "left-torch"), ("2", "unused-parameter")],
)
def test_numbers_before_each_loss_are_no_logs(factor: str, rule: str, workshop: Workshop) -> None:
    """A parameter that is read as a number and never computed with was meant to be a factor, unless it is logged."""
    (finding,) = Report.of(workshop.run(NUMBER.format(factor=factor))).findings
    assert (finding.rule, finding.tensors) == (rule, ("rate",))
    line = (
        (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()[(finding.span or Span("", 0)).line - 1]
    )
    assert ("# here" in line) == (rule == "left-torch")


def test_term_that_trains_nothing_comes_before_one_that_trains_others(workshop: Workshop) -> None:
    """Of two detaches of one output, that in a term without any gradient is the slip; both are one finding."""
    source, found = findings(
        workshop,
        """
        z = encoder(x)
        fit = F.mse_loss(decoder(x), y) + F.mse_loss(decoder.weight.mean(0).expand_as(z), z.detach())
        goal = decoder.weight.mean(0).detach()
        loss = fit + F.mse_loss(goal.expand_as(z), z.detach())  # here
        """,
    )
    assert [(finding.rule, finding.severity, finding.tensors) for finding in found] == [("detach", "error", ENCODER)]
    assert found[0].span is not None
    assert "# here" in source.splitlines()[found[0].span.line - 1]


POLICY = """
import torch
from torch import nn
import torch.nn.functional as F

policy, value = nn.Linear(4, 3), nn.Linear(4, 1)
optimizer = torch.optim.Adam([*policy.parameters(), *value.parameters()], lr=0.01)

def log_prob(x, chosen):
    return policy(x).log_softmax(1).gather(1, chosen)

for _ in range(4):
    x, chosen = torch.rand(8, 4), torch.randint(3, (8, 1))
    {before}
    for _ in range(3):
        now = {now}
        score = value(x)
        gain = x.sum(1, keepdim=True) - score.detach()
        loss = ((now - before).exp() * gain).mean() + score.square().mean() + {entropy}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    ("severity", "parts"),
    [
        (
            "warning",
            {
                "before": "before = log_prob(x, chosen).detach()",
                "now": "log_prob(x, chosen).detach()  # here",
                "entropy": "(policy(x).softmax(1) ** 2).sum()",
            },
        ),
        (
            "error",
            {
                "before": "with torch.no_grad():  # here\n        before = log_prob(x, chosen)",
                "now": "before",
                "entropy": "0",
            },
        ),
    ],
    ids=["computed_once_for_many_steps", "without_any_gradient"],
)
def test_a_term_is_told_once(severity: str, parts: dict[str, str], workshop: Workshop) -> None:
    """A term has one story: where it is cut in each step, and, of what gets no gradient at all, that it gets none."""
    source = POLICY.format(**parts)
    (finding,) = Report.of(workshop.run(source)).findings
    assert (finding.severity, finding.tensors) == (severity, ("policy.weight", "policy.bias"))
    assert finding.span is not None
    assert "# here" in (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()[finding.span.line - 1]


def test_distributions_and_shifts_lose_no_term(workshop: Workshop) -> None:
    """What is constant in a log-probability, or cancels as the maximum in a sum of exponentials, is no term."""
    body = """
        z = encoder(x)
        fit = torch.distributions.Normal(decoder(z), 1.0).log_prob(y).mean()
        top = z.max(1, keepdim=True).values.detach()
        loss = (top.squeeze(1) + (z - top).exp().sum(1).log()).mean() - fit
        """
    assert findings(workshop, body)[1] == ()


def test_terms_of_one_line(workshop: Workshop) -> None:
    """Terms that one line loses, one a layer, are one finding about all that they were computed from."""
    _, found = findings(
        workshop,
        """
        loss = F.mse_loss(decoder(encoder(x)), y)
        for layer in (encoder[0], encoder[2], decoder):
            loss = loss + layer.weight.data.norm()
        """,
    )
    assert [(finding.rule, finding.severity, finding.tensors) for finding in found] == [
        ("detach", "warning", ("encoder.0.weight", "encoder.2.weight", "decoder.weight"))
    ]


def test_what_a_gradient_does_not_depend_on(workshop: Workshop) -> None:
    """The last bias of an energy has no part in its slope; a second slope without a graph takes nothing from it."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        energy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(energy.parameters(), lr=0.01)
        for _ in range(3):
            x = torch.rand(8, 2, requires_grad=True)
            (slope,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(slope.sum(), x, retain_graph=True)
            loss = 0.5 * slope.square().sum() + second.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    (finding,) = Report.of(run).findings
    assert (finding.rule, finding.severity) == ("missing-create-graph", "warning")
    assert finding.span is not None
    assert finding.span.line == 9


def test_number_that_an_operation_elsewhere_takes(workshop: Workshop) -> None:
    """A learning rate that is taken out of torch for an inner loop leaves it there, and comes back at the update."""
    run = workshop.run(
        """
        import torch

        weight = torch.ones(4, requires_grad=True)
        rate = torch.tensor(-2.0, requires_grad=True)
        optimizer = torch.optim.SGD([weight, rate], lr=0.01)
        for _ in range(3):
            inner = (weight * torch.rand(4)).square().sum()
            (slope,) = torch.autograd.grad(inner, weight, create_graph=True)
            rates = {"weight": rate.exp().item()}
            adapted = weight - rates["weight"] * slope
            loss = (adapted * torch.rand(4)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    (finding,) = Report.of(run).findings
    assert (finding.rule, finding.tensors) == ("left-torch", ("rate",))
    assert finding.span is not None
    assert [finding.span.line, *(label.span.line for label in finding.labels)] == [9, 10]


def test_switch_left_off_elsewhere(workshop: Workshop) -> None:
    """Where another function leaves grad mode off, the finding points there, with a label on the line that suffers."""
    source, found = findings(
        workshop,
        "evaluate()\nloss = F.mse_loss(decoder(encoder(x)), y)",
        "def evaluate():\n    torch.set_grad_enabled(False)  # here",
    )
    torch_says = [label.message for label in found[0].labels]
    assert [finding.rule for finding in found] == ["no-grad"]
    assert found[0].span is not None
    assert "# here" in source.splitlines()[found[0].span.line - 1]
    assert torch_says[-1] == "so torch raises RuntimeError here"
    assert found[0].help[0].message.startswith("turn it on again")


def test_what_learned_before_the_way_was_lost(workshop: Workshop) -> None:
    """Tensors that gradients moved until then are not said to move without any."""
    _, (finding,) = findings(
        workshop,
        "loss = F.mse_loss(decoder(encoder(x)), y)\nif step == 1:\n    evaluate()",
        "def evaluate():\n    torch.set_grad_enabled(False)",
    )
    assert finding.rule == "no-grad"
    assert finding.facts[-1].endswith("stepped 2 times; gradients came in 2 of them")


def test_indices_beside_values(workshop: Workshop) -> None:
    """Of an operation that gives values and their places, only the places are said to have no derivative."""
    body = "places = encoder(x).topk(2, dim=1).indices\nloss = F.mse_loss(decoder(table[places].mean(1)), y)"
    _, (finding,) = findings(workshop, body, "table = torch.randn(4, 4)")
    assert finding.rule == "non-differentiable-op"
    assert finding.caret == "the indices that `topk` gives have no derivative and no history"


def test_inference_mode_is_labelled(workshop: Workshop) -> None:
    """A finding on a line under inference mode has a label on the `with`."""
    body = "with torch.inference_mode():  # switch\n    z = encoder(x)\nloss = F.mse_loss(decoder(z.clone()), y)"
    source, found = findings(workshop, body)
    assert "# switch" in source.splitlines()[found[0].labels[0].span.line - 1]


def test_cut_behind_a_cut(workshop: Workshop) -> None:
    """Where the history ends once more, an edit of the first cut would not do, and the second is named."""
    body = "z = torch.autograd.Variable(encoder(x).data, requires_grad=True)\nloss = (decoder(z) - y).square().mean()"
    _, (finding,) = findings(workshop, body)
    (mend, *_) = finding.help
    assert (finding.rule, mend.edits) == ("detach", ())
    assert mend.message.endswith("leave out `.data`, and mend `Variable` behind it, which ends the history again")


def test_decorated_function(workshop: Workshop) -> None:
    """Under a decorator the finding points into the function, with a label on the call."""
    source, found = findings(
        workshop,
        "z = encode(x)  # call\nloss = F.mse_loss(decoder(z), y)",
        "@torch.no_grad()\ndef encode(x):\n    return encoder(x)  # here",
    )
    assert [finding.rule for finding in found] == ["no-grad"]
    assert found[0].span is not None
    assert "# here" in source.splitlines()[found[0].span.line - 1]
    assert "# call" in source.splitlines()[found[0].labels[0].span.line - 1]


def test_copy_that_learns_in_place_of_the_model(workshop: Workshop) -> None:
    """An optimizer that holds a model whose deep copy is trained is told of the copy."""
    _, found = findings(workshop, "loss = F.mse_loss(decoder(twin(x)), y)")
    assert [finding.rule for finding in found] == ["rebuilt-tensor"]


def test_copies_that_learn_in_place_of_a_model_nobody_calls(workshop: Workshop) -> None:
    """A model whose deep copies are called, stepped and asked for a loss has its name, and is told of the copy."""
    run = workshop.run(
        """
        import copy
        import torch
        from torch import nn

        class Meta:
            def __init__(self):
                self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
                self.optimizer = torch.optim.Adam(self.net.parameters())

            def step(self):
                learner = copy.deepcopy(self.net)
                inner = torch.optim.SGD(learner.parameters(), lr=0.02)
                for _ in range(2):
                    loss = learner(torch.rand(5, 1)).square().mean()
                    inner.zero_grad()
                    loss.backward()
                    inner.step()
                self.optimizer.zero_grad()
                learner(torch.rand(5, 1)).square().mean().backward()
                self.optimizer.step()

        meta = Meta()
        for _ in range(4):
            meta.step()
        """
    )
    (finding,) = Report.of(run).findings
    assert (finding.rule, finding.severity) == ("rebuilt-tensor", "error")
    assert [name.partition("net.")[2] for name in finding.tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_picture_shows_the_cut(workshop: Workshop) -> None:
    """The picture of a broken program has a red edge with the line on it; that of a healthy one has none."""
    broken = Report.of(workshop.run(PROGRAM.format(before="", body="    loss = decoder(encoder(x).detach()).mean()")))
    broken.render(workshop.folder / "broken.dot")
    healthy = Report.of(workshop.run(PROGRAM.format(before="", body="    loss = decoder(encoder(x)).mean()")))
    healthy.render(workshop.folder / "healthy.dot")
    red = [
        line for line in (workshop.folder / "broken.dot").read_text().splitlines() if "#c40000" in line and "->" in line
    ]
    assert len(red) == 1
    assert "line 12" in red[0]
    assert "#c40000" not in (workshop.folder / "healthy.dot").read_text()


def test_optimizers_that_step_in_turn(workshop: Workshop) -> None:
    """Of two detaches of one output, the one on the way to the loss of its own optimizer is the cause."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        maker, judge = nn.Linear(3, 2), nn.Linear(2, 1)
        maker_optimizer = torch.optim.SGD(maker.parameters(), lr=0.1)
        judge_optimizer = torch.optim.SGD(judge.parameters(), lr=0.1)
        for _ in range(4):
            made = maker(torch.randn(8, 3))
            judge_loss = judge(made.detach()).mean()
            judge_optimizer.zero_grad()
            judge_loss.backward()
            judge_optimizer.step()
            maker_loss = -judge(made.detach()).mean()
            maker_optimizer.zero_grad()
            maker_loss.backward()
            maker_optimizer.step()
        """
    )
    found = Report.of(run).findings
    assert [(finding.rule, finding.span.line if finding.span else 0) for finding in found] == [("detach", 13)]
    assert found[0].tensors == ("maker.weight", "maker.bias")


def test_terms_inside_a_library_are_its_own_business(workshop: Workshop) -> None:
    """What is constant in a library's loss by design is told by no line of the user's."""
    run = workshop.run(
        """
        import torch

        library = {}
        exec(
            "def loss_of(w, x):\\n"
            "    kept = w.detach().square().sum()\\n"
            "    return (w * x).sum() + kept + w.sum().item()\\n",
            library,
        )
        w = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss = library["loss_of"](w, torch.rand(3))
            loss.backward()
            optimizer.step()
        """
    )
    assert list(Report.of(run).findings) == []


def test_of_two_cuts_that_cancel_the_added_one_is_told(workshop: Workshop) -> None:
    """To mend what is subtracted would send the gradient back with the wrong sign."""
    body = "soft = encoder(x)\nz = (soft > 0).float() - soft.detach() + soft.detach()\nloss = F.mse_loss(decoder(z), y)"
    source, (finding,) = findings(workshop, body)
    assert finding.span is not None
    assert finding.rule == "detach"
    assert finding.message == "`encoder` never learns: its 4 parameters got no gradient in 3 steps"
    line = source.splitlines()[finding.span.line - 1]
    assert line[: finding.span.column - 1].endswith("+ soft")


FAST_WEIGHTS = """
import torch
from torch import nn

torch.manual_seed(0)
w, b = nn.Parameter(torch.rand(1, 2)), nn.Parameter(torch.zeros(1))
outer = torch.optim.Adam([w, b], lr=0.01)
for _ in range(4):
    x = torch.rand(8, 2)
    fast = [w, b]
    for _ in range(2):
        inner = (x @ fast[0].T + fast[1] - 1).square().mean()
        grads = torch.autograd.grad(inner, fast, create_graph=True)
        fast = [{update} for p, g in zip(fast, grads)]
    outer.zero_grad()
    loss = (x @ fast[0].T + fast[1] - 2).square().mean()
    loss.backward()
    outer.step()
"""


def test_gradients_that_only_autograd_grad_returned(workshop: Workshop) -> None:
    """What `autograd.grad` returns does not fill `.grad`: a step that finds none there has nothing to apply."""
    cut = FAST_WEIGHTS.format(update="(p - 0.1 * g).detach().requires_grad_()")
    (finding,) = Report.of(workshop.observe(cut).run).findings
    assert (finding.rule, finding.severity, finding.tensors) == ("detach", "error", ("w", "b"))
    assert "`autograd.grad` returned gradients of them, and none came to `.grad` in 4 steps" in finding.message
    assert "note: Adam holds these 2 tensors and stepped 4 times; no step had a gradient to apply" in finding.facts
    assert Report.of(workshop.observe(FAST_WEIGHTS.format(update="p - 0.1 * g")).run).findings == ()


def test_returned_gradients_that_are_put_into_place(workshop: Workshop) -> None:
    """Who writes the result of `autograd.grad` into `.grad` gives the optimizer what it needs."""
    program = FAST_WEIGHTS.format(update="(p - 0.1 * g).detach().requires_grad_()")
    program = program.replace("    loss.backward()\n", "    w.grad, b.grad = torch.autograd.grad(loss, fast)\n")
    assert Report.of(workshop.observe(program).run).findings == ()


def test_cut_of_every_step_rather_than_of_the_first(workshop: Workshop) -> None:
    """What a rollout computes once with grad mode off is meant so; what each step computes so is not."""
    program = """
        import torch
        from torch import nn

        policy, baseline = nn.Linear(4, 1), nn.Linear(4, 1)
        optimizer = torch.optim.Adam([*policy.parameters(), *baseline.parameters()], lr=0.01)
        x = torch.rand(16, 4)
        with torch.no_grad():
            old = policy(x)
        for _ in range(4):
            with torch.no_grad():  # here
                new = policy(x)
            loss = -(new - old).exp().mean() + (baseline(x) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    source = textwrap.dedent(program)
    found = [finding for finding in Report.of(workshop.observe(source).run).findings if finding.severity == "error"]
    assert [finding.rule for finding in found] == ["no-grad"]
    places = [found[0].span, *(label.span for label in found[0].labels)]
    assert any("# here" in source.splitlines()[span.line - 1] for span in places if span is not None)
    assert not any("old = policy(x)" in source.splitlines()[span.line - 1] for span in places[:1] if span is not None)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_of_what_requires_no_grad(reentrant: bool, workshop: Workshop) -> None:
    """The reentrant kind keeps no history of its parameters where no input requires grad: the help says which does."""
    source = f"""
        import torch
        from torch.utils.checkpoint import checkpoint

        block, head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD([*block.parameters(), *head.parameters()], lr=0.01)
        for _ in range(4):
            optimizer.zero_grad()
            head(checkpoint(block, torch.rand(4, 3), use_reentrant={reentrant})).sum().backward()
            optimizer.step()
        """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of it as well
        found = Report.of(workshop.run(source)).findings
    assert [finding.rule for finding in found] == ["no-grad"] * reentrant
    assert all("use_reentrant=False" in finding.help[0].message for finding in found)


_ENDLESS = """
    net, head = Net(), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1)
    for _ in range(2):
        loss = head(CALL).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    ("body", "call", "said"),
    [
        (
            "    @torch.no_grad()\n    def encode(self, x):\n        return self.layer(x)",
            "net.encode(torch.rand(2, 3))",
            "decorator",
        ),
        (
            "    @contextlib.contextmanager\n    def still(self):\n        with torch.no_grad():\n            yield\n\n"
            "    def encode(self, x):\n        with self.still():\n            return self.layer(x)",
            "net.encode(torch.rand(2, 3))",
            "outside of the `with` block",
        ),
    ],
    ids=["decorator", "around a yield"],
)
def test_where_grad_mode_is_turned_off_elsewhere(workshop: Workshop, body: str, call: str, said: str) -> None:
    """The mend is where the mode is switched: no line of the program can turn it on."""
    head = "import contextlib\nimport torch\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n"
    head += "        super().__init__()\n        self.layer = nn.Linear(3, 3)\n\n"
    (found,) = Report.of(workshop.run(head + body + "\n" + textwrap.dedent(_ENDLESS).replace("CALL", call))).findings
    assert found.rule == "no-grad"
    assert said in found.help[0].message
