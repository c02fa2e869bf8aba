"""Compiled regions: run as without us, and recorded as one operation each."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope
from gradscope.graph.facts import Operation, Run
from tests.workshop import Workshop, named, operations

pytestmark = [
    # What Dynamo and its backends call of Python's and of torch's.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:torch._(dynamo|inductor|functorch)"),
]
BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: g++ is not there"),
    ),
]


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled yet, and what inductor writes goes away with the test."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Net(nn.Module):
    """Two layers that learn, and one that nothing is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A number for each row."""
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


def train(call: Callable[[torch.Tensor], torch.Tensor], net: nn.Module) -> list[torch.Tensor]:
    """Three steps; gives losses, gradients and values."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = call(torch.rand(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        seen += [loss.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
    return [*seen, *net.state_dict().values(), torch.get_rng_state()]


def regions(run: Run) -> list[Operation]:
    """The calls of compiled regions."""
    return [operation for operation in operations(run) if operation.name == "compiled"]


@pytest.mark.parametrize("form", ["module", "function"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_region_is_one_operation(backend: str, form: str) -> None:
    """The results are bit-identical; a region takes what it computes with and gives its result, with any backend."""

    def program(net: Net) -> list[torch.Tensor]:
        torch.compiler.reset()
        torch.manual_seed(1)
        compiled = torch.compile(net if form == "module" else lambda x: net(x), backend=backend)
        return train(compiled, net)

    net = Net()
    twin = copy.deepcopy(net)
    bare = program(twin)
    with gradscope.observe(model=net) as seen:
        observed = program(net)
    assert all(map(torch.equal, observed, bare))
    run = seen.report().run
    assert list(run.failures) == []
    assert len(regions(run)) == run.step_count == 3
    names = {tensor.id: tensor.name for tensor in run.tensors}
    holders = {value.id: value.tensor for value in run.values}
    for step, region in zip(run.steps[:3], regions(run), strict=True):
        inputs = {names[holders[value]] for value in region.inputs}
        assert inputs >= {"first.weight", "first.bias", "second.weight", "second.bias"}
        assert not inputs & {"idle.weight", "idle.bias"}
        after = step.operations[step.operations.index(region) + 1 :]
        assert [operation.name for operation in after[:2]] == ["Tensor.square", "Tensor.mean"]
        assert after[0].inputs == region.outputs
        assert not {"nn.functional.linear", "relu", "addmm"} & {operation.name for operation in step.operations}
    (finding,) = seen.report().findings
    assert (finding.rule, finding.tensors) == ("unused-parameter", ("idle.weight", "idle.bias"))
    received = {tensor.name: tensor.received.steps for tensor in run.tensors if tensor.received is not None}
    assert received == {"idle.weight": 0, "idle.bias": 0} | dict.fromkeys(
        ("first.weight", "first.bias", "second.weight", "second.bias"), 3
    )


def test_what_was_compiled_before_is_seen_too() -> None:
    """Also what was compiled in an earlier observation, and in none; between them nothing is recorded."""
    net = Net()
    compiled = torch.compile(net, backend="aot_eager")
    x = torch.rand(5, 4)
    bare = compiled(x)
    for _ in range(2):
        with gradscope.observe(model=net) as seen:
            assert torch.equal(compiled(x), bare)
        assert len(regions(seen.report().run)) == 1
        assert torch.equal(compiled(x), bare)
        assert len(regions(seen.report().run)) == 1


def test_a_cut_before_a_region_is_found(workshop: Workshop) -> None:
    """The path of the data leads through the region, with graph breaks and in-place changes on the way."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        first, second = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)

        @torch.compile(backend="eager")
        def head(x):
            y = torch.tanh(x)
            torch._dynamo.graph_break()
            return second(y)

        for _ in range(3):
            hidden = first(torch.rand(5, 4))
            loss = head(hidden.detach()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    (finding,) = gradscope.Report.of(run).findings
    assert finding.rule == "detach"
    assert finding.span is not None
    assert finding.span.line == 15
    assert len(regions(run)) == 2 * len(run.steps)
    received = named(run, "second.2.weight").received
    assert received is not None
    assert received.steps == 3


INSIDE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.scale, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def hidden(self, x):
            return torch.tanh(self.encoder(x))

        def forward(self, x):
            z = self.hidden(x)
            {line}
            return self.decoder(z + self.scale(x))

    torch.manual_seed(0)
    net = torch.compile(Net(), backend="{backend}")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.rand(5, 4)
        loss = net(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    ("line", "rule", "columns"),
    [
        ("z = z.detach()", "detach", (14, 23)),
        ("z = z.data * 2", "detach", (14, 19)),
        ("with torch.no_grad(): z = torch.relu(z) + 1", "no-grad", (35, 48)),
        ("z = nn.functional.one_hot(z.argmax(1), 4).float()", "non-differentiable-op", (36, 46)),
        ("z = z.topk(4)[1].float()", "non-differentiable-op", (14, 22)),
        ("z = z.detach() + z.detach()", "detach", (13, 36)),
    ],
)
def test_a_cut_inside_a_region_is_found(
    line: str, rule: str, columns: tuple[int, int], backend: str, workshop: Workshop
) -> None:
    """The graph that was compiled knows where the gradient of an argument ends, and the line that it comes from."""
    run = workshop.run(INSIDE.format(line=line, backend=backend))
    (finding,) = gradscope.Report.of(run).findings
    assert (finding.rule, finding.tensors) == (rule, ("encoder.weight", "encoder.bias"))
    assert finding.span is not None
    assert finding.span.line == 14
    source = "        " + line
    method = source[finding.span.column - 1 : finding.span.end_column - 1]  # type: ignore[operator]
    assert (method, finding.span.column) == (source[columns[0] - 1 : columns[1] - 1], columns[0])


@pytest.mark.parametrize(
    "line",
    [
        "z = z + (z.round() - z).detach()",
        "z = z * z.detach().norm()",
        "y = torch.zeros_like(z); y[:] = z; z = y + z.detach()",
        "y = z.detach().clone().add_(z); z = y",
        "with torch.no_grad(): s = z.mean()\n            z = z - s",
        "z = z + self.decoder(z).detach().argmax(1, keepdim=True)",
    ],
)
def test_innocent_regions(line: str, workshop: Workshop) -> None:
    """What is detached beside a way that carries the gradient is no cut."""
    run = workshop.run(INSIDE.format(line=line, backend="eager"))
    assert gradscope.Report.of(run).findings == ()
    received = named(run, "encoder.weight").received
    assert received is not None
    assert received.steps == 3


def test_dynamo_is_not_imported_for_us(workshop: Workshop) -> None:
    """A program that compiles nothing does not pay for the compiler."""
    workshop.write("import sys, torch\nw = torch.ones(2, requires_grad=True)\nw.sum().backward()\n"
                   "print('torch._dynamo' in sys.modules)\n")  # fmt: skip
    bare, seen = workshop.pair("script.py", options=["-o", "report.txt"])
    assert (bare.out, seen.out) == ("False\n", "False\n")
