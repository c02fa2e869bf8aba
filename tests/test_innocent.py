"""Correct programs that look guilty, beside twins that are: only these are told."""

from __future__ import annotations

import textwrap
import warnings

import pytest

from tests.rules.training import NET, judge
from tests.workshop import Workshop

SHAPES = {
    "zeros of an old spelling": "z = h.data.new(h.size()).zero_()",
    "zeros like it": "z = torch.zeros_like(h)",
    "zeros of its kind": "z = h.new_zeros(h.shape)",
    "a number of its kind": "z = h.new_tensor(0.0).expand_as(h)",
    "a copy that is filled": "z = h.detach().clone().fill_(0.5)",
    "numbers in its shape": "z = torch.arange(48.0).view_as(h).type_as(h).to(h)",
    "numbers beside it": "z, _ = torch.broadcast_tensors(torch.zeros(6), h)",
    "noise in its shape": "z = torch.empty_like(h).normal_()",
}
PRIOR = """
    first, head = nn.Linear(4, 6), nn.Linear(6, 1)
    scale = nn.Parameter(torch.ones(6))
    optimizer = Adam([*first.parameters(), *head.parameters(), scale], lr=0.01)
    for _ in range(4):
        x, y = data()
        h = first(x)
        {line}
        loss = F.mse_loss(head(h), y) + (scale - z).square().mean() + 0.1 * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.parametrize("line", SHAPES.values(), ids=SHAPES)
def test_what_has_but_the_shape_of_a_value(line: str, workshop: Workshop) -> None:
    """What takes shape and type of a value, and none of its numbers, loses no gradient."""
    assert judge(workshop, PRIOR.format(line=line)).findings == ()


VALUES = {
    "detach": "z = h.detach() + h.data.new(h.size()).zero_()  # here",
    "rebuilt-tensor": "z = h.new_tensor(h)  # here",
}


@pytest.mark.parametrize(("rule", "line"), VALUES.items(), ids=VALUES)
def test_what_has_the_numbers_of_a_value(rule: str, line: str, workshop: Workshop) -> None:
    """A prior that is made of the numbers themselves is a term that trains nothing."""
    found = [(finding.rule, finding.severity) for finding in judge(workshop, PRIOR.format(line=line)).findings]
    assert found == [(rule, "warning")]


GATHERED = """
    class Descent(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {{}})

        @torch.no_grad()
        def step(self, closure):
            with torch.enable_grad():
                loss = closure()
            held = self.param_groups[0]["params"]
            flat = torch.cat([p.new(p.numel()).zero_() if p.grad is None else p.grad.view(-1) for p in held])
            place = 0
            for p in held:
                p.sub_(0.1 * flat[place : place + p.numel()].view_as(p))
                place += p.numel()
            return loss

    net, spare = Net(), nn.Linear(4, 1)
    optimizer = Descent([*net.parameters(), *spare.parameters()])

    def closure():
        optimizer.zero_grad()
        x, y = data()
        loss = F.mse_loss(net(x){more}, y)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
"""


def test_gathering_gradients_that_are_not_there(workshop: Workshop) -> None:
    """An optimizer that takes zeros in the shape of what has no gradient cuts nothing: it is a matter of use."""
    assert [finding.rule for finding in judge(workshop, GATHERED.format(more="")).findings] == ["unused-parameter"]
    found = judge(workshop, GATHERED.format(more=" + spare(x).detach()"))
    assert [finding.rule for finding in found.findings] == ["detach"]


def test_a_copy_to_start_from(workshop: Workshop) -> None:
    """A parameter that only gave another its first values is not cut off; one that gives them in each step is."""
    program = """
        net = Net()
        old = nn.Parameter(torch.randn(1, 4))
        new = nn.Parameter(torch.empty(1, 4))
        optimizer = SGD([*net.parameters(), old, new], lr=0.01)
        for step in range(5):
            if {when}:
                new.data.copy_(old)
            x, y = data()
            loss = F.mse_loss(net(x) + x @ new.T, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    assert judge(workshop, program.format(when="step == 0")).findings == ()
    found = judge(workshop, program.format(when="True")).findings
    assert [finding.rule for finding in found] == ["rebuilt-tensor"]


SAMPLERS = {
    "before any optimizer": """
        net = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 1))

        def flow(x):
            for _ in range(16):
                slope, = torch.autograd.grad(net(x).sum(), x, create_graph=True)
                x = x - 0.05 * slope
            return x

        y = flow(torch.randn(8, 2, requires_grad=True))
        optimizer = Adam(net.parameters(), lr=1e-3)
        for _ in range(3):
            loss = flow(torch.randn(8, 2, requires_grad=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """,
    "without any": """
        net = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 1))
        x = torch.randn(8, 2, requires_grad=True)
        for _ in range(16):
            slope, = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            x = x - 0.05 * slope
        x.sum().backward()
    """,
}


@pytest.mark.parametrize("program", SAMPLERS.values(), ids=SAMPLERS)
def test_many_gradients_in_one_forward(program: str, workshop: Workshop) -> None:
    """Passes of the engine before there is an optimizer are no steps, and what a backward leads through is meant."""
    assert judge(workshop, program).findings == ()


def test_one_state_that_is_carried_on(workshop: Workshop) -> None:
    """Two lines that take the state of the step before are one story, of the line that carries it."""
    found = judge(
        workshop,
        """
        net = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 1))
        x = torch.randn(8, 2, requires_grad=True)
        for _ in range(6):
            torch.autograd.grad(net(x).sum(), x)
        optimizer = Adam(net.parameters(), lr=1e-3)
        for _ in range(14):
            slope, = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            x = x - 0.05 * slope  # here
            loss = net(torch.randn(8, 2)).mean() - net(x.detach()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
    )
    finding = found.must_be("graph-growth", "warning", ("x",))
    assert finding.facts[0].startswith("seen from step 6 to step 14")


OPENING = {
    "gamma of a norm": """
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                first, last = nn.Linear(6, 6), nn.BatchNorm1d(6)
                self.inner = nn.Sequential(first, nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), last)
                nn.init.zeros_(last.weight)

            def forward(self, x):
                return F.relu(x + self.inner(x))

        net = nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.Linear(6, 1))
    """,
    "B of an adapter": """
        class Adapter(nn.Module):
            def __init__(self):
                super().__init__()
                self.base = nn.Linear(6, 6).requires_grad_(False)
                self.A, self.B = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.zeros(2, 6))

            def forward(self, x):
                return self.base(x) + x @ self.A @ self.B

        net = nn.Sequential(nn.Linear(4, 6), Adapter(), nn.Tanh(), Adapter(), nn.Linear(6, 1))
    """,
}
WARM = """
{net}
optimizer = SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
warming = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-6 * step)
for _ in range(10):
    x, y = data(32)
    loss = F.mse_loss(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    warming.step()
"""


@pytest.mark.parametrize("net", OPENING.values(), ids=OPENING)
def test_branches_that_start_at_zero(net: str, workshop: Workshop) -> None:
    """What lies behind a factor that starts at zero gets more from step to step: nothing vanishes there."""
    assert judge(workshop, WARM.format(net=textwrap.dedent(net))).findings == ()


def test_a_chain_behind_a_layer_that_starts_at_zero(workshop: Workshop) -> None:
    """What a chain of layers loses is told, also where the last of them starts at zero."""
    net = """
        last = nn.Linear(6, 1)
        nn.init.zeros_(last.weight)
        chain = [layer for _ in range(12) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
        net = nn.Sequential(nn.Linear(4, 6), *chain, last)
    """
    found = judge(workshop, WARM.format(net=textwrap.dedent(net)).replace("1e-6", "1e-3"))
    assert [finding.rule for finding in found.findings] == ["vanishing-gradient"]


ONE_CLASS = {
    "cross entropy": "loss = F.cross_entropy(net(x), torch.zeros(8).long())  # here",
    "log softmax": "p = net(x).log_softmax(1)  # here\n    loss = F.nll_loss(p, torch.zeros(8).long())",
}


@pytest.mark.parametrize("line", ONE_CLASS.values(), ids=ONE_CLASS)
def test_softmax_over_one_class(line: str, workshop: Workshop) -> None:
    """A single output has nothing to choose between: told so, with what to use instead."""
    program = f"""
net = Net()
optimizer = SGD(net.parameters(), lr=0.1)
for _ in range(5):
    x, y = data()
    {line}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
    finding = judge(workshop, program).must_be("zero-gradient", "warning", NET)
    assert "a softmax over one class is 1" in finding.caret
    assert "binary_cross_entropy_with_logits" in finding.help[0].message


BOTH_WAYS = """
    reader, head = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.Linear(12, 1)
    optimizer = Adam([*reader.parameters(), *head.parameters()], lr=0.01)
    for _ in range(5):
        out, (h_n, _) = reader(torch.randn(8, 5, 4))
        {line}
        loss = head(last).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_last_place_of_both_directions(workshop: Workshop) -> None:
    """At the last place the reverse direction has only begun: the slice is the cause, and the last states the mend."""
    found = judge(workshop, BOTH_WAYS.format(line="last = out[:, -1, :]  # here"))
    finding = found.must_be("zero-gradient", "warning", ("reader.weight_hh_l0_reverse",))
    assert "h_n[-1]" in finding.help[0].message
    for line in ("last = torch.cat([h_n[-2], h_n[-1]], dim=1)", "last = out.mean(1)"):
        assert judge(workshop, BOTH_WAYS.format(line=line)).findings == ()


def test_zero_in_a_large_graph(workshop: Workshop) -> None:
    """Where a gradient is lost is found among many thousand nodes as well."""
    found = judge(
        workshop,
        """
        cell, head = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer = SGD([*cell.parameters(), *head.parameters()], lr=0.01)
        for _ in range(5):
            h = cell(data()[0])
            for _ in range(2_100):
                h = h * 0.5 + h * 0.5
            h = h.round()  # here
            loss = head(h).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
    )
    found.must_be("zero-gradient", "warning", ("cell.weight", "cell.bias"))


def test_torchscript_that_trains_where_nobody_sees_it(workshop: Workshop) -> None:
    """A scripted part that a thread trains has moved: what could not be seen is not judged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = judge(
            workshop,
            """
            import threading

            net = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 1)))
            optimizer = SGD(net.parameters(), lr=0.1)

            def work():
                for _ in range(3):
                    optimizer.zero_grad()
                    loss_of(net).backward()
                    optimizer.step()

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            """,
        )
    assert found.findings == ()


ROUTED = """
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
            self.head = nn.Linear(4, 1)

        def forward(self, x, chosen):
            return self.head(x + sum(self.experts[i](x) for i in chosen))

    net = Routed()
    optimizer = Adam(net.parameters(), lr=0.01)
    for chosen in {chosen}:
        x, y = data()
        loss = F.mse_loss(net(x, chosen), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_experts_that_were_not_chosen(workshop: Workshop) -> None:
    """Among twins that are used by turns, one whose turn did not come is worth a note; a forgotten one a warning."""
    (finding,) = judge(workshop, ROUTED.format(chosen="[(0, 1), (1, 2), (0, 2), (0, 1)]")).findings
    assert (finding.rule, finding.severity) == ("unused-parameter", "info")
    assert "experts.3.weight" in finding.facts[0]
    (finding,) = judge(workshop, ROUTED.format(chosen="[(0, 1, 2)] * 4")).findings
    assert (finding.rule, finding.severity) == ("unused-parameter", "warning")
