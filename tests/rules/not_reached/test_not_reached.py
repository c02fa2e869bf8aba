"""Programs with tensors that no gradient can get to, and programs that only look so."""

from __future__ import annotations

import textwrap
import warnings

import pytest

from gradscope.graph.facts import Finding, Span
from gradscope.reports.report import Report
from tests.workshop import Workshop

HEAD = "import torch\nfrom torch import nn\n"
MODULE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 1)
{made}

    def forward(self, x):
{forward}
        return self.out(x)

net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(3):
    loss = net(torch.rand(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
TRAIN = """
def train(optimizer, loss_of, steps=2):
    for step in range(steps):
        loss = loss_of(torch.rand(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # refused
        optimizer.step()

"""


class Judged:
    """What a program draws, and the lines that it is about."""

    def __init__(self, source: str, findings: tuple[Finding, ...]) -> None:
        self.lines = source.splitlines()
        self.findings = findings

    @property
    def told(self) -> list[tuple[str, str]]:
        """Rule and severity of each finding."""
        return [(finding.rule, finding.severity) for finding in self.findings]

    def line(self, span: Span | None) -> str:
        """The source line of a place."""
        assert span is not None
        return self.lines[span.line - 1]

    def must_be(self, rule: str, severity: str, *tensors: str) -> Finding:
        """One finding, of this rule, about these tensors, at the line marked `# here`."""
        assert self.told == [(rule, severity)]
        assert self.findings[0].tensors == tensors
        assert "# here" in self.line(self.findings[0].span)
        return self.findings[0]


def judge(workshop: Workshop, program: str) -> Judged:
    """All findings of a program, with every part of ours at work."""
    path = workshop.write(HEAD + textwrap.dedent(program))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some of these as well
        outcome = workshop.observe(path.read_text(encoding="utf-8"))
    report = Report.of(outcome.run)
    assert list(outcome.run.failures) == []
    assert report.failures == ()
    return Judged(path.read_text(encoding="utf-8"), report.findings)


def module(made: str, forward: str = "pass") -> str:
    """A training loop of a module that makes and computes this beside its `out`."""
    made, forward = (textwrap.indent(textwrap.dedent(part).strip(), " " * 8) for part in (made, forward))
    return MODULE.format(made=made, forward=forward)


def assert_silent(workshop: Workshop, program: str) -> None:
    """Run a correct program to its end; nothing is found in it."""
    workshop.write(HEAD + textwrap.dedent(program))
    report = Report.of(workshop.run(HEAD + textwrap.dedent(program)))
    assert report.failures == ()
    assert report.findings == ()


# --- unused-parameter ----------------------------------------------------------------------------------------------


def test_layer_that_is_never_called(workshop: Workshop) -> None:
    """A layer that `forward` never calls is shown where it was made."""
    found = judge(workshop, module("self.norm = nn.LayerNorm(4)  # here"))
    finding = found.must_be("unused-parameter", "warning", "norm.weight", "norm.bias")
    assert finding.message == "`norm` is never trained: no loss was computed from its 2 parameters in 3 steps"
    assert finding.labels == ()
    assert "never used: norm.weight, norm.bias" in finding.facts


@pytest.mark.parametrize(
    "forward",
    ["gate = torch.sigmoid(self.gate(x))  # here", "x = x\nh = self.gate(x)  # here\nh = x"],
)
def test_result_that_goes_nowhere(forward: str, workshop: Workshop) -> None:
    """A layer whose result no loss is computed from is shown where that ends, with a label where it was made."""
    found = judge(workshop, module("self.gate = nn.Linear(4, 4)  # made", forward))
    finding = found.must_be("unused-parameter", "warning", "gate.weight", "gate.bias")
    assert ["# made" in found.line(label.span) for label in finding.labels] == [True]
    assert "used, but leads to no loss: gate.weight, gate.bias" in finding.facts


@pytest.mark.parametrize("replacing", [True, False])
def test_codebook_that_is_made_anew_in_each_forward(replacing: bool, workshop: Workshop) -> None:
    """Parameters that the program replaces in each step by what it computes rely on no gradient; those it keeps do."""
    program = """
        import torch
        from torch import nn

        class Quantizer(nn.Module):
            def __init__(self):
                super().__init__()
                self.average, self.codes = nn.Parameter(torch.randn(6, 2)), nn.Embedding(6, 2)

            def forward(self, z):
                chosen = nn.functional.one_hot(torch.cdist(z, self.codes.weight).argmin(1), 6).float()
                quantized = chosen @ self.codes.weight
                average = 0.9 * self.average + 0.1 * chosen.t() @ z
                if replacing:
                    self.average = nn.Parameter(average)
                    self.codes.weight = nn.Parameter(self.average / 2)
                return z + (quantized - z).detach(), (quantized.detach() - z).square().mean()

        encoder, quantizer, decoder = nn.Linear(4, 2), Quantizer(), nn.Linear(2, 4)
        parts = nn.ModuleList([encoder, quantizer, decoder])
        optimizer = torch.optim.Adam(parts.parameters(), lr=0.01)
        for _ in range(6):
            x = torch.rand(8, 4)
            quantized, commitment = quantizer(encoder(x))
            loss = (decoder(quantized) - x).square().mean() + commitment
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    found = Report.of(workshop.run(program.replace("replacing:", f"{replacing}:"))).findings
    assert [finding.rule for finding in found] == ([] if replacing else ["detach", "unused-parameter"])


def test_result_that_becomes_a_number(workshop: Workshop) -> None:
    """Where the result of a layer is only logged, that is its end, and a label shows where it becomes a number."""
    program = """
        import torch
        from torch import nn

        net, extra = nn.Linear(4, 1), nn.Linear(4, 1)
        optimizer = torch.optim.SGD([*net.parameters(), *extra.parameters()], lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4)
            size = extra(x).square().mean()
            log = size.item()
            loss = net(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    (finding,) = Report.of(workshop.run(program)).findings
    assert (finding.rule, finding.tensors) == ("unused-parameter", ("extra.weight", "extra.bias"))
    assert [(label.span.line, label.message) for label in finding.labels] == [
        (4, "made here"),
        (9, "and becomes a plain number here"),
    ]
    assert finding.span is not None
    assert finding.span.line == 8


@pytest.mark.parametrize(
    "forward",
    [
        "for layer in self.layers[:-1]:  # here\n    x = torch.tanh(layer(x))",
        "for i in range(len(self.layers) - 1):  # here\n    x = torch.tanh(self.layers[i](x))",
        "for i, layer in enumerate(self.layers):  # here\n    if i == 3:\n        break\n    x = layer(x)",
    ],
    ids=["slice", "index", "break"],
)
def test_loop_that_stops_short(forward: str, workshop: Workshop) -> None:
    """Where a loop over a ModuleList ends before a layer, the finding points at the loop, a label at the list."""
    made = "self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))  # made"
    found = judge(workshop, module(made, forward))
    finding = found.must_be("unused-parameter", "warning", "layers.3.weight", "layers.3.bias")
    assert finding.caret == "this loop ends before it comes to `layers.3`"
    assert ["# made" in found.line(label.span) for label in finding.labels] == [True]


def test_loop_over_something_else_is_not_blamed(workshop: Workshop) -> None:
    """A loop whose variable does not say which layer is called is not the one that stops short."""
    made = "self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))  # here"
    forward = "for _ in range(2):\n    x = torch.tanh(self.layers[0](x))"
    judge(workshop, module(made, forward)).must_be("unused-parameter", "warning", "layers.1.weight", "layers.1.bias")


def test_layer_that_only_evaluation_uses(workshop: Workshop) -> None:
    """A layer that runs where grad mode is off is used: a label shows where, and no help says to delete it."""
    forward = "if not torch.is_grad_enabled():\n    x = self.extra(x)  # evaluated"
    program = module("self.extra = nn.Linear(4, 4)  # here", forward)
    found = judge(workshop, program + "    with torch.no_grad():\n        net(torch.rand(8, 4))\n")
    finding = found.must_be("unused-parameter", "warning", "extra.weight", "extra.bias")
    assert ["# evaluated" in found.line(label.span) for label in finding.labels] == [True]
    assert finding.facts[0] == "used with grad mode off, and in no loss: extra.weight, extra.bias"
    assert [advice.message for advice in finding.help] == ["compute a loss from it as well"]


def test_average_of_weights_is_no_use(workshop: Workshop) -> None:
    """A copy of the weights that follows them computes nothing with a layer that `forward` never calls."""
    program = module("self.norm = nn.LayerNorm(4)  # here")
    follow = "    with torch.no_grad():\n        kept = [p * 0.9 for p in net.parameters()]\n"
    finding = judge(workshop, program + follow).must_be("unused-parameter", "warning", "norm.weight", "norm.bias")
    assert finding.labels == ()


def test_module_of_several_lines_is_one_finding(workshop: Workshop) -> None:
    """All that an unused module makes on several lines is told of at once, at the first of them."""
    block = """
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Linear(4, 8)  # here
                self.down = nn.Linear(8, 4)

            def forward(self, x):
                return self.down(self.up(x))
    """
    made = "self.used = Block()\nself.spare = Block()"
    found = judge(workshop, textwrap.dedent(block) + module(made, "x = self.used(x)"))
    names = [f"spare.{layer}.{part}" for layer in ("up", "down") for part in ("weight", "bias")]
    finding = found.must_be("unused-parameter", "warning", *names)
    assert finding.message == "`spare` is never trained: no loss was computed from its 4 parameters in 3 steps"


def test_lines_of_a_module_that_is_used_are_findings_of_their_own(workshop: Workshop) -> None:
    """Two forgotten layers are two findings; two of one line are one, and are called `them`."""
    made = "self.norm = nn.LayerNorm(4)\nself.a, self.b = nn.Linear(4, 4, False), nn.Linear(4, 4, False)"
    told = judge(workshop, module(made)).findings
    assert [finding.tensors for finding in told] == [("norm.weight", "norm.bias"), ("a.weight", "b.weight")]
    assert told[1].message == "`a.weight` and `b.weight` are never trained: no loss was computed from them in 3 steps"


UNUSED_FOR_A_WHILE = {
    "heads_by_turns": """
        body, heads = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
        turns = iter([0, 1, 2, 0, 1, 2])
        train(torch.optim.SGD([*body.parameters(), *heads.parameters()], lr=0.1),
              lambda x: heads[next(turns)](body(x)), 6)
    """,
    "frozen_parts": """
        body, head, spare = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 4)
        body.requires_grad_(False)
        spare.requires_grad_(False)
        train(torch.optim.SGD([*body.parameters(), *head.parameters(), *spare.parameters()], lr=0.1),
              lambda x: head(body(x)))
    """,
    "optimizer_that_never_stepped": """
        net, spare = nn.Linear(4, 1), nn.Linear(4, 4)
        later = torch.optim.SGD(spare.parameters(), lr=0.1)
        train(torch.optim.SGD(net.parameters(), lr=0.1), net)
    """,
    "no_backward": """
        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        optimizer.step()
    """,
}


@pytest.mark.parametrize("case", UNUSED_FOR_A_WHILE)
def test_unused_for_a_reason(case: str, workshop: Workshop) -> None:
    """Heads used by turns, frozen parts, and optimizers that nobody steps or trains with draw nothing."""
    assert_silent(workshop, TRAIN + textwrap.dedent(UNUSED_FOR_A_WHILE[case]))


# --- unregistered-parameter ----------------------------------------------------------------------------------------

UNREGISTERED = {
    "list_of_modules": (
        "net.layers",
        ("net.layers[0].weight", "net.layers[0].bias", "net.layers[1].weight", "net.layers[1].bias"),
        "self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]  # here",
        "for layer in self.layers:\n    x = layer(x)",
    ),
    "dict_of_modules": (
        "net.heads['a']",
        ("net.heads['a'].weight", "net.heads['a'].bias"),
        "self.heads = {'a': nn.Linear(4, 4)}  # here",
        "x = self.heads['a'](x)",
    ),
    "list_of_parameters": (
        "net.w",
        ("net.w[0]", "net.w[1]"),
        "self.w = [nn.Parameter(torch.rand(4)) for _ in range(2)]  # here",
        "for w in self.w:\n    x = x * w",
    ),
    "dict_of_parameters": (
        "net.w['a']",
        ("net.w['a']",),
        "self.w = {'a': nn.Parameter(torch.rand(4))}  # here",
        "x = x * self.w['a']",
    ),
    "tensor_attribute": (
        "net.scale",
        ("net.scale",),
        "self.scale = torch.ones(4, requires_grad=True)  # here",
        "x = x * self.scale",
    ),
    "made_anew": ("w", ("w",), "pass", "w = nn.Parameter(torch.ones(4))  # here\nx = x * w"),
}


@pytest.mark.parametrize("case", UNREGISTERED)
def test_parameter_that_no_module_registers(case: str, workshop: Workshop) -> None:
    """What gets gradients and is in no `parameters()` is one error at the line that made it, with all its tensors."""
    subject, names, made, forward = UNREGISTERED[case]
    finding = judge(workshop, module(made, forward)).must_be("unregistered-parameter", "error", *names)
    assert finding.message.startswith(f"`{subject}` never learns: ")


def test_modules_in_a_list_of_a_model_that_is_never_called(workshop: Workshop) -> None:
    """A model is entered through a method of its own: what it holds in a list is a part of it, made where it is put."""
    program = """
        import torch
        from torch import nn

        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 4)

            def forward(self, x):
                return self.fc(x).tanh()

        class Flow(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = [Layer()]  # here
                self.loc = nn.Parameter(torch.zeros(4))

            def log_prob(self, x):
                for layer in self.layers:
                    x = layer(x)
                return -(x - self.loc).square().sum(1)

        flow = Flow()
        optimizer = torch.optim.SGD(flow.parameters(), lr=0.01)
        for _ in range(3):
            loss = -flow.log_prob(torch.rand(8, 4)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    names = ("flow.layers[0].fc.weight", "flow.layers[0].fc.bias")
    judge(workshop, program).must_be("unregistered-parameter", "error", *names)


def test_layers_in_an_object_of_a_class_of_its_own(workshop: Workshop) -> None:
    """A class that is no module hides its layers from the module that holds it, as a list does."""
    program = """
        import torch
        from dataclasses import dataclass
        from torch import nn

        @dataclass
        class Block:
            inner: nn.Module
            gain: torch.Tensor

            def __call__(self, x):
                return self.inner(x).tanh() * self.gain

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = Block(nn.Linear(4, 4), torch.ones(4))  # here
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                return self.out(self.block(x))

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    names = ("net.block.inner.weight", "net.block.inner.bias")
    judge(workshop, program).must_be("unregistered-parameter", "error", *names)


def test_objects_that_are_no_part_of_a_module(workshop: Workshop) -> None:
    """Neither a trainer that holds the module, nor a network in eval mode that only measures, is a part of it."""
    program = """
        import torch
        from torch import nn

        class Measure:
            def __init__(self):
                self.features = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval()

            def __call__(self, x):
                return self.features(x).square().mean()

        class Trainer:
            def __init__(self, net):
                self.net, self.measure = net, Measure()
                self.scorer = nn.Linear(4, 1)
                self.optimizer = torch.optim.SGD([*net.parameters(), *self.scorer.parameters()], lr=0.01)

            def step(self):
                out = self.net(torch.rand(8, 4))
                loss = self.measure(out) + self.net.measure(out) + self.scorer(out).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.out = nn.Linear(4, 4)
                self.measure = Measure()
                self.trainer = Trainer(self)

            def forward(self, x):
                return self.out(x)

        net = Net()
        for _ in range(3):
            net.trainer.step()
    """
    assert_silent(workshop, program)
    names = [tensor.name for tensor in workshop.run(program).tensors if tensor.registered == "attribute"]
    assert names == []


def test_unregistered_in_a_run_of_one_step(workshop: Workshop) -> None:
    """One step with a gradient is enough where there is but one."""
    program = module("self.scale = torch.ones(4, requires_grad=True)  # here", "x = x * self.scale")
    found = judge(workshop, program.replace("range(3)", "range(1)"))
    found.must_be("unregistered-parameter", "error", "net.scale")


def test_gradient_printed_to_find_out_why(workshop: Workshop) -> None:
    """Who prints the gradient of a tensor attribute in search of the reason is told it all the same."""
    program = module("self.scale = torch.ones(4, requires_grad=True)  # here", "x = x * self.scale")
    found = judge(workshop, program + "    print(net.scale.grad)\n")
    found.must_be("unregistered-parameter", "error", "net.scale")


REGISTERED = {
    "containers": module(
        """
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.heads = nn.ModuleDict({'a': nn.Linear(4, 4)})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(4))])
        self.shifts = nn.ParameterDict({'a': nn.Parameter(torch.ones(4))})
        """,
        """
        for layer in self.layers:
            x = layer(x)
        x = self.heads['a'](x * self.scales[0] + self.shifts['a'])
        """,
    ),
    "by_hand": module("self.scale = torch.ones(4, requires_grad=True)", "x = x * self.scale")
    + """\
    with torch.no_grad():
        net.scale -= 0.1 * net.scale.grad
        net.scale.grad = None
""",
    "given_to_the_optimizer": module("self.scale = torch.ones(4, requires_grad=True)", "x = x * self.scale").replace(
        "SGD(net.parameters()", "SGD([*net.parameters(), net.scale]"
    ),
    "saliency": module("self.image = None", "self.image = x.requires_grad_()\nx = x * 2")
    + "    saliency = net.image.grad.abs()\n",
    "image_that_stays": module("self.image = None", "self.image = x")
    .replace("for step", "image = torch.rand(8, 4, requires_grad=True)\nfor step")
    .replace("net(torch.rand(8, 4))", "net(image)")
    + "    saliency = net.image.grad.abs()\n",
    "new_input_never_read": module("self.image = None", "self.image = x").replace(
        "net(torch.rand(8, 4))", "net(torch.rand(8, 4, requires_grad=True))"
    ),
    "points_of_an_equation": module(
        "self.t = torch.rand(8, 1, requires_grad=True)",
        """
        u = torch.tanh(self.out.weight.sum() * self.t)
        slope, = torch.autograd.grad(u.sum(), self.t, create_graph=True)
        x = x * (slope - u)
        """,
    ),
    "result_kept": module("self.hyper = nn.Linear(4, 4)", "self.w = self.hyper(x).mean(0)\nx = x * self.w"),
}


@pytest.mark.parametrize("case", REGISTERED)
def test_attributes_that_need_no_registration(case: str, workshop: Workshop) -> None:
    """Torch's own containers, tensors moved by hand, inputs and results that a module keeps draw nothing."""
    assert_silent(workshop, REGISTERED[case])


# --- frozen-parameter ----------------------------------------------------------------------------------------------

TWO_LAYERS = TRAIN + "net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))\n"
EVERY = ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")


@pytest.mark.parametrize(
    "freeze",
    ["for p in net.parameters():\n    p.requires_grad = False  # here", "net.requires_grad_(False)  # here"],
    ids=["each", "module"],
)
def test_all_is_frozen(freeze: str, workshop: Workshop) -> None:
    """Where backward is refused since all is frozen, the finding shows who froze it, a label the refused line."""
    found = judge(workshop, f"{TWO_LAYERS}{freeze}\ntrain(torch.optim.SGD(net.parameters(), lr=0.1), net)\n")
    finding = found.must_be("frozen-parameter", "error", *EVERY)
    assert finding.caret == "frozen here"
    assert ["# refused" in found.line(label.span) for label in finding.labels] == [True]


def test_made_frozen(workshop: Workshop) -> None:
    """Where nothing froze the parameter but the line that made it, that line is shown."""
    found = judge(
        workshop,
        TRAIN + "w = nn.Parameter(torch.ones(4), requires_grad=False)  # here\n"
        "train(torch.optim.SGD([w], lr=0.1), lambda x: x @ w)\n",
    )
    assert found.must_be("frozen-parameter", "error", "w").caret == "made here, and frozen"


def test_attribute_of_a_module_unfreezes_nothing(workshop: Workshop) -> None:
    """`module.requires_grad = True` is a warning about that module's parameters, at the line that froze them."""
    found = judge(
        workshop,
        TWO_LAYERS + "net.requires_grad_(False)  # here\nnet[0].requires_grad_(True)\nnet[2].requires_grad = True\n"
        "train(torch.optim.SGD(net.parameters(), lr=0.1), net)\n",
    )
    finding = found.must_be("frozen-parameter", "warning", "net.2.weight", "net.2.bias")
    assert finding.message == "`net.2` stays frozen: `requires_grad = True` on a module is a plain attribute"
    assert [help_.message for help_ in finding.help] == ["call `net.2.requires_grad_(True)`"]


def test_attribute_of_a_module_explains_the_refusal(workshop: Workshop) -> None:
    """Where backward is refused because of it, there is one finding: the refusal, with the attribute as its mend."""
    found = judge(
        workshop,
        TWO_LAYERS + "net.requires_grad_(False)  # here\nnet[2].requires_grad = True\n"
        "train(torch.optim.SGD(net.parameters(), lr=0.1), net)\n",
    )
    finding = found.must_be("frozen-parameter", "error", *EVERY)
    assert "note: `net.2.requires_grad = True` on a module is a plain attribute" in finding.facts
    assert [help_.message for help_ in finding.help] == ["call `net.2.requires_grad_(True)`"]


ADAPTER = (
    TRAIN
    + """
class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.low = nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return self.base(x) + x @ self.low

net = nn.Sequential(Adapted(), nn.Linear(4, 1))
"""
)


def test_chosen_one_by_one_and_frozen(workshop: Workshop) -> None:
    """An optimizer that was given some parameters of a module, and those are frozen as the others are."""
    found = judge(
        workshop,
        ADAPTER + "net[0].requires_grad_(False)  # here\n"
        "train(torch.optim.Adam([net[0].low, *net[1].parameters()], lr=0.1), net)\n",
    )
    finding = found.must_be("frozen-parameter", "warning", "net.0.low")
    assert "though Adam was given it" in finding.message


@pytest.mark.parametrize("given", ["net.parameters()", "[*net[0].base.parameters(), *net[1].parameters()]"])
def test_frozen_parts_of_what_is_given_whole(given: str, workshop: Workshop) -> None:
    """Who gives an optimizer whole modules means nothing by what is frozen in them."""
    program = ADAPTER + f"net[0].requires_grad_(False)\ntrain(torch.optim.Adam({given}, lr=0.1), net)\n"
    assert judge(workshop, program).findings == ()


def test_never_unfrozen_for_the_second_phase(workshop: Workshop) -> None:
    """What a first phase froze and a second optimizer was given as it was is a warning, with a label on that."""
    found = judge(
        workshop,
        TWO_LAYERS + "for p in net[0].parameters():\n    p.requires_grad = False  # here\n"
        "train(torch.optim.SGD(net[2].parameters(), lr=0.1), net)\n"
        "train(torch.optim.Adam(net.parameters(), lr=0.1), net)  # second\n",
    )
    finding = found.must_be("frozen-parameter", "warning", "net.0.weight", "net.0.bias")
    assert ["# second" in found.line(label.span) for label in finding.labels] == [True]
    assert "Adam was given it" in finding.message


def test_added_as_frozen_as_it_was(workshop: Workshop) -> None:
    """Who adds a group to an optimizer that has stepped means to train it from then on."""
    program = (
        TWO_LAYERS
        + "for p in net[0].parameters():\n    p.requires_grad = False  # here\n"
        + "optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)  # made\ntrain(optimizer, net)\n{}"
        + "optimizer.add_param_group({{'params': net[0].parameters(), 'lr': 0.01}})\ntrain(optimizer, net, 4)\n"
    )
    found = judge(workshop, program.format(""))
    finding = found.must_be("frozen-parameter", "warning", "net.0.weight", "net.0.bias")
    assert ["# made" in found.line(label.span) for label in finding.labels] == [True]
    assert finding.message.endswith("though SGD was given it in a group that was added later")
    assert judge(workshop, program.format("net[0].requires_grad_(True)\n")).findings == ()


def test_result_in_the_place_of_its_leaf(workshop: Workshop) -> None:
    """`retain_grad()` would only lead the next backward into a graph that is freed: the help is another."""
    program = """
        import torch

        w = torch.rand(4, requires_grad=True)
        for _ in range(2):
            loss = w.square().sum()
            loss.backward()
            w = w - 0.1 * w.grad
    """
    outcome = workshop.observe(program)
    (finding,) = Report.of(outcome.run).findings
    assert (finding.rule, finding.tensors) == ("non-leaf", ("w",))
    assert finding.help[0].message.endswith("go on with `w.detach().requires_grad_()`")


FROZEN_ON_PURPOSE = {
    "peft": """
        net[0].requires_grad_(False)
        train(torch.optim.AdamW(net.parameters(), lr=0.1), net, 3)
    """,
    "gan": """
        critic = nn.Linear(1, 1)
        ours, theirs = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.SGD(critic.parameters(), lr=0.1)
        for _ in range(3):
            for p in critic.parameters():
                p.requires_grad = True
            train(theirs, lambda x: critic(net(x).detach()), 1)
            for p in critic.parameters():
                p.requires_grad = False
            train(ours, lambda x: critic(net(x)), 1)
    """,
    "second_phase_unfrozen": """
        net[0].requires_grad_(False)
        train(torch.optim.SGD(net[2].parameters(), lr=0.1), net)
        net[0].requires_grad_(True)
        train(torch.optim.SGD(net.parameters(), lr=0.1), net)
    """,
    "one_optimizer_unfrozen": """
        net[0].requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        train(optimizer, net)
        net[0].requires_grad_(True)
        train(optimizer, net)
    """,
    "group_added": """
        net[0].requires_grad_(False)
        optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
        train(optimizer, net)
        net[0].requires_grad_(True)
        optimizer.add_param_group({"params": net[0].parameters()})
        train(optimizer, net)
    """,
    "attribute_that_agrees": """
        net.requires_grad = True
        train(torch.optim.SGD(net.parameters(), lr=0.1), net)
    """,
}


@pytest.mark.parametrize("case", FROZEN_ON_PURPOSE)
def test_frozen_on_purpose(case: str, workshop: Workshop) -> None:
    """Frozen from the start as peft does, toggled as GANs do, or unfrozen in time: nothing is said."""
    assert_silent(workshop, TWO_LAYERS + textwrap.dedent(FROZEN_ON_PURPOSE[case]))


# --- non-leaf ------------------------------------------------------------------------------------------------------

READ_IN_VAIN = {
    "to": ("x", "x = torch.rand(4, requires_grad=True).to(torch.float64)  # here\nx.sum().backward()\nx.grad  # None"),
    "named_leaf": (
        "x",
        "w = torch.rand(4, requires_grad=True)\nx = w.to(torch.float64)  # here\nx.sum().backward()\nx.grad  # None",
    ),
    "update": (
        "w",
        "x, w = torch.rand(8, 4), torch.rand(4, requires_grad=True)\nfor _ in range(3):\n"
        "    (x @ w).square().mean().backward()\n    w = w - 0.1 * w.grad  # here, None",
    ),
}


@pytest.mark.parametrize("case", READ_IN_VAIN)
def test_gradient_of_a_non_leaf_is_read(case: str, workshop: Workshop) -> None:
    """Who reads `.grad` of a non-leaf is shown the operation that made it one, with a label on the read."""
    name, program = READ_IN_VAIN[case]
    found = judge(workshop, program + "\n")
    finding = found.must_be("non-leaf", "error", name)
    assert ["None" in found.line(label.span) for label in finding.labels] == [True]


REFUSED = {
    "scaled": (("w",), "w = torch.rand(4, requires_grad=True) * 0.01  # here\ntorch.optim.SGD([w], lr=0.1)  # refused"),
    "slices": (
        ("first", "second"),
        "table = torch.rand(4, 3, requires_grad=True)\nfirst, second = table[0], table[1]  # here\n"
        "torch.optim.SGD([first, second], lr=0.1)  # refused",
    ),
    "slices_in_the_call": (
        ("table[0]", "table[1]"),
        "table = torch.rand(4, 3, requires_grad=True)\ntorch.optim.SGD([table[0], table[1]], lr=0.1)  # here, refused",
    ),
}


def test_several_reads_of_a_non_leaf_are_one_finding(workshop: Workshop) -> None:
    """The gradient of a non-leaf that is read in two places has one cause."""
    program = (
        "w = torch.rand(4, 1, requires_grad=True) * 0.01\n(torch.rand(3, 4) @ w).mean().backward()\n"
        "print(w.grad)\nupdate = 0 if w.grad is None else w.grad\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the read itself
        assert [finding.rule for finding in judge(workshop, program).findings] == ["non-leaf"]


@pytest.mark.parametrize("case", REFUSED)
def test_optimizer_refuses_a_non_leaf(case: str, workshop: Workshop) -> None:
    """Where an optimizer refuses non-leaves, the finding shows what made them, a label the optimizer."""
    names, program = REFUSED[case]
    found = judge(workshop, program + "\n")
    finding = found.must_be("non-leaf", "error", *names)
    assert ["refused" in found.line(label.span) for label in finding.labels] == [True]


@pytest.mark.parametrize("change", [".to(torch.float64)", " * 0.01"])
def test_converted_parameter_as_an_attribute(change: str, workshop: Workshop) -> None:
    """A module that keeps the result of an operation on a Parameter has no parameter: shown where it was made."""
    made = f"self.w = nn.Parameter(torch.rand(4)){change}  # here"
    judge(workshop, module(made, "x = (x.double() * self.w).float()")).must_be("non-leaf", "error", "net.w")


READ_WITH_REASON = {
    "retained": "y = x * 2\ny.retain_grad()\ny.sum().backward()\nfirst = y.grad.norm()\nsecond = y.grad.norm()\n",
    "retained_and_asked_before": "y = x * 2\ny.retain_grad()\nprint(y.grad)\ny.sum().backward()\nprint(y.grad)\n",
    "leaf": "y = x.to(torch.float64)\ny.sum().backward()\nprint(x.grad)\n",
    "leaf_before_backward": "print(x.grad)\nx.sum().backward()\n",
    "nothing_to_convert": "y = x.to(torch.float32)\ny.sum().backward()\nprint(y.grad)\n",
}


@pytest.mark.parametrize("case", READ_WITH_REASON)
def test_gradients_that_are_there(case: str, workshop: Workshop) -> None:
    """Retained gradients, however often they are read, and those of leaves draw nothing."""
    assert_silent(workshop, "x = torch.rand(4, requires_grad=True)\n" + READ_WITH_REASON[case])


def test_loss_made_to_require_grad(workshop: Workshop) -> None:
    """`loss.requires_grad_()` lets a backward run that trains nothing: what was frozen is told all the same."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        net = nn.Linear(3, 1)
        net.requires_grad_(False)  # here
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.randn(5, 3)).square().mean()
            loss.requires_grad_()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    found = Report.of(run).findings
    assert [(finding.rule, finding.tensors) for finding in found] == [("frozen-parameter", ("net.weight", "net.bias"))]
    assert found[0].span is not None
    assert found[0].span.line == 5


SCRIPTED = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 3)  # made
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        return self.norm(self.proj(x){cut})

encoder = torch.jit.{how}
optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
for step in range(3):
    loss = encoder(torch.rand(8, 4))[:, 0].square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize("how", ["trace(Encoder(), torch.rand(8, 4))", "script(Encoder())"])
def test_inside_torchscript_nobody_knows_what_is_used(how: str, workshop: Workshop) -> None:
    """Where no gradient comes out of TorchScript, the report does not claim that no loss was computed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (finding,) = Report.of(workshop.run(HEAD + SCRIPTED.format(how=how, cut=".detach()"))).findings
        assert not Report.of(workshop.run(HEAD + SCRIPTED.format(how=how, cut=""))).findings
    assert finding.rule == "unused-parameter"
    assert finding.message.startswith("`proj` never learns: its 2 parameters got no gradient in 3 steps")
    assert finding.message.endswith("only TorchScript computes with it")


def test_a_parameter_without_a_name_is_told_by_who_makes_it(workshop: Workshop) -> None:
    """A property that makes its parameter anew at each access is named in the place of the parameter."""
    source = HEAD + MODULE.format(
        made="        self.start = 2.0\n\n    @property\n    def gain(self):\n"
        "        return nn.Parameter(torch.tensor(self.start))",
        forward="        x = x * self.gain",
    )
    (finding,) = Report.of(workshop.run(source)).findings
    assert finding.rule == "unregistered-parameter"
    assert finding.message.startswith("the parameter that `Net.gain` makes never learns")
    assert "unnamed" not in str(Report.of(workshop.run(source)))


def test_a_layer_that_only_a_function_holds(workshop: Workshop) -> None:
    """What a function has captured is in no `parameters()`; what is registered, or only measures, is left alone."""
    forward = "x = x + self.way(x)"
    wrong = judge(workshop, module("layer = nn.Linear(4, 4)  # here\nself.way = lambda x: layer(x)", forward))
    wrong.must_be("unregistered-parameter", "error", "net.way.layer.weight", "net.way.layer.bias")
    for right in (
        "self.layer = nn.Linear(4, 4)\nself.way = lambda x: self.layer(x)",
        "layer = nn.Linear(4, 4).eval()\nself.way = lambda x: layer(x)",
    ):
        assert judge(workshop, module(right, forward)).told == []


def test_a_plain_list_is_told_where_it_is_made(workshop: Workshop) -> None:
    """Of modules in a plain list the line of the list is told, and not that of a layer in their own class."""
    judged = judge(
        workshop,
        """
        class Cell(nn.Module):
            def __init__(self):
                super().__init__()
                self.build()

            def build(self):
                self.layer = nn.Linear(4, 4)

            def forward(self, x):
                return torch.tanh(self.layer(x))

        class Stack(nn.Module):
            def __init__(self):
                super().__init__()
                self.cells = self.make(2)
                self.out = nn.Linear(4, 1)

            def make(self, n):
                return [Cell() for _ in range(n)]  # here

            def forward(self, x):
                for cell in self.cells:
                    x = cell(x)
                return self.out(x)

        net = Stack()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(8, 4)).square().mean().backward()
            optimizer.step()
        """,
    )
    names = tuple(f"net.cells[{place}].layer.{name}" for place in range(2) for name in ("weight", "bias"))
    judged.must_be("unregistered-parameter", "error", *names)


PRETRAINED = """
class Bag(nn.Module):
    def __init__(self, vectors):
        super().__init__()
        self.table = nn.EmbeddingBag.from_pretrained(vectors{freeze})  # here
        self.out = nn.Linear(3, 1)

    def forward(self, ids):
        return self.out(self.table(ids))

net = Bag(torch.randn(7, 3))
optimizer = torch.optim.Adam({given}, lr=0.01)
for _ in range(3):
    optimizer.zero_grad()
    net(torch.randint(0, 7, (5, 2))).square().mean().backward()
    optimizer.step()
"""


def test_a_table_is_frozen_by_default(workshop: Workshop) -> None:
    """`from_pretrained` freezes unless it is told not to; who gives the table to an optimizer means to train it."""
    judged = judge(workshop, PRETRAINED.format(freeze="", given="net.parameters()"))
    judged.must_be("frozen-parameter", "warning", "table.weight")


@pytest.mark.parametrize(
    ("freeze", "given"),
    [
        (", freeze=True", "net.parameters()"),
        (", True", "net.parameters()"),
        (", freeze=False", "net.parameters()"),
        ("", "[p for p in net.parameters() if p.requires_grad]"),
    ],
)
def test_a_table_that_is_frozen_on_purpose(freeze: str, given: str, workshop: Workshop) -> None:
    """Whoever writes it, or leaves it out of the optimizer, means it."""
    assert judge(workshop, PRETRAINED.format(freeze=freeze, given=given)).told == []
