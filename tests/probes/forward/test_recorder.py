"""The data flow: what is written down of each operation."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.graph.facts import Operation, Run
from tests.workshop import Workshop, named, operations


def find(run: Run, name: str) -> Operation:
    """The only operation of a name."""
    (found,) = [operation for operation in operations(run) if operation.name == name]
    return found


def names_of(run: Run, values: tuple[int, ...]) -> list[str | None]:
    """The names of the tensors that hold these values."""
    tensors = {value.id: value.tensor for value in run.values}
    names = {tensor.id: tensor.name for tensor in run.tensors}
    return [names[tensors[value]] for value in values]


def text_at(source: str, operation: Operation) -> str:
    """The piece of source that an operation's span covers."""
    span = operation.span
    assert span is not None
    assert span.column is not None
    assert span.end_column is not None
    assert span.line == span.end_line
    return source.splitlines()[span.line - 1][span.column - 1 : span.end_column - 1]


def test_operations_have_inputs_outputs_and_exact_spans(workshop: Workshop) -> None:
    """Each operation knows what it took, what it gave, and the very expression that called it."""
    source = """
        import torch
        import torch.nn.functional as F
        w = torch.ones(3, 4, requires_grad=True)
        x = torch.rand(2, 3)
        y, z = torch.max(x @ w + 1, dim=1)
        größe = torch.tanh(y); loss = F.mse_loss(größe, target := torch.zeros(2))
        loss.backward()
    """
    run = workshop.run(source)
    written = (workshop.folder / "script.py").read_text(encoding="utf-8")
    expected = {
        "ones": ("torch.ones(3, 4, requires_grad=True)", [], ["w"]),
        "Tensor.matmul": ("x @ w", ["x", "w"], [None]),
        "Tensor.add": ("x @ w + 1", [None], [None]),
        "max": ("torch.max(x @ w + 1, dim=1)", [None], ["y", "z"]),
        "tanh": ("torch.tanh(y)", ["y"], ["größe"]),
        "zeros": ("torch.zeros(2)", [], ["target"]),
        "nn.functional.mse_loss": (
            "F.mse_loss(größe, target := torch.zeros(2))",
            ["größe", "target"],
            ["loss"],
        ),
    }
    found = {
        operation.name: (
            text_at(written, operation),
            names_of(run, operation.inputs),
            names_of(run, operation.outputs),
        )
        for operation in operations(run)
    }
    assert {name: found.get(name) for name in expected} == expected


def test_results_of_one_operation_are_inputs_of_the_next(workshop: Workshop) -> None:
    """The value that an operation gave is the value that the next one took."""
    run = workshop.run(
        "import torch\nw = torch.ones(2, requires_grad=True)\nloss = torch.exp(torch.sin(w)).sum()\nloss.backward()\n"
    )
    sin, exp, total = find(run, "sin"), find(run, "exp"), find(run, "Tensor.sum")
    assert sin.outputs == exp.inputs
    assert exp.outputs == total.inputs
    (backward,) = run.steps[0].backwards
    assert backward.roots == total.outputs


def test_grad_mode_is_that_of_the_call(workshop: Workshop) -> None:
    """Operations under `no_grad`, under a decorator and after `set_grad_enabled(False)` say that grad mode was off."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(2, requires_grad=True)
        a = torch.sin(w)
        with torch.no_grad():
            b = torch.cos(w)
            with torch.enable_grad():
                c = torch.tan(w)
        torch.set_grad_enabled(False)
        d = torch.exp(w)
        torch.set_grad_enabled(True)
        e = torch.no_grad()(torch.sinh)(w)
        """
    )
    modes = {name: find(run, name).grad_enabled for name in ("sin", "cos", "tan", "exp", "sinh")}
    assert modes == {"sin": True, "cos": False, "tan": True, "exp": False, "sinh": False}
    history = {value.id: value.history for value in run.values}
    assert {name: history[find(run, name).outputs[0]] for name in modes} == modes


def test_operations_know_their_module(workshop: Workshop) -> None:
    """An operation carries the path of the module in which it ran, and none outside of modules."""
    run = workshop.run(
        """
        import torch
        from torch import nn
        net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1)))
        torch.sin(net(torch.rand(4, 2))).sum().backward()
        """
    )
    modules = [(operation.name.rpartition(".")[2], operation.module) for operation in operations(run)]
    assert [pair for pair in modules if pair[0] in ("linear", "tanh", "sin")] == [
        ("linear", "net.0"),
        ("tanh", "net.1.0"),
        ("linear", "net.1.1"),
        ("sin", None),
    ]


def test_each_autograd_node_knows_its_operation(workshop: Workshop) -> None:
    """Every node of the walked graph but the leaves' names the operation whose call made it."""
    run = workshop.run(
        """
        import torch
        import torch.nn.functional as F
        w = torch.rand(4, 4, requires_grad=True)
        h = F.layer_norm(torch.relu(w @ w), (4,))
        a, b = h.unbind()[:2]
        loss = F.cross_entropy(h, torch.arange(4)) + (a * b).sum()
        loss.backward()
        """
    )
    names = {operation.id: operation.name for operation in operations(run)}
    made = [(node.name, names.get(node.operation or 0)) for node in run.steps[0].backwards[0].nodes]
    assert sorted(made) == sorted(
        [
            ("AddBackward0", "Tensor.add"),
            ("NllLossBackward0", "nn.functional.cross_entropy"),
            ("LogSoftmaxBackward0", "nn.functional.cross_entropy"),
            ("SumBackward0", "Tensor.sum"),
            ("MulBackward0", "Tensor.mul"),
            ("UnbindBackward0", "Tensor.unbind"),
            ("NativeLayerNormBackward0", "nn.functional.layer_norm"),
            ("ReluBackward0", "relu"),
            ("MmBackward0", "Tensor.matmul"),
            ("AccumulateGrad", None),
        ]
    )


def test_changes_in_place_give_new_values(workshop: Workshop) -> None:
    """`add_`, `+=` and item assignment each give their tensor a new value, and the tensor stays the same."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        x = torch.zeros(3)
        x.add_(w)
        x += 1
        x[0] = 5
        loss = x.sum()
        loss.backward()
        """
    )
    x = named(run, "x").id
    tensor_of = {value.id: value.tensor for value in run.values}
    values = [value for value in run.values if value.tensor == x]
    assert [value.history for value in values] == [False, True, True, True]
    chain = [operation for operation in operations(run) if x in {tensor_of[value] for value in operation.inputs}]
    assert [operation.name for operation in chain] == ["Tensor.add_", "Tensor.add_", "Tensor.__setitem__", "Tensor.sum"]
    for operation, value in zip(chain, values, strict=True):
        assert value.id in operation.inputs
    for operation, value in zip(chain, values[1:], strict=False):
        assert value.id in operation.outputs


@pytest.mark.parametrize(
    "write",
    ["x[1:].mul_(w[1:])", "x.view(-1)[0] = w[0]", "x.t().add_(w)", "x.data.add_(w.detach())", "x.detach().mul_(2)"],
)
def test_writes_through_views_reach_the_base(workshop: Workshop, write: str) -> None:
    """A write to a view, to `.data` or to a detached alias gives the tensor behind it a new value, from that line."""
    run = workshop.run(
        f"""
        import torch
        w = torch.ones(3, requires_grad=True)
        x = torch.ones(3) * 1
        {write}
        loss = (x * w).sum()
        loss.backward()
        """
    )
    x = named(run, "x").id
    first, second = [value.id for value in run.values if value.tensor == x]
    (used,) = [operation for operation in operations(run) if second in operation.inputs]
    assert used.span is not None
    assert used.span.line == 5
    (writer,) = [operation for operation in operations(run) if second in operation.outputs]
    assert writer.span is not None
    assert writer.span.line == 4
    assert first in writer.inputs


def test_identity_never_rests_on_a_reused_id() -> None:
    """Tensors that are made and dropped one after another at the same address are all told apart."""
    w = torch.ones(4, requires_grad=True)
    addresses = set()
    with gradscope.observe() as seen:
        for _ in range(300):
            made = torch.sin(w)
            addresses.add(id(made))
            total = torch.exp(made)
            del made
        total.sum().backward()
    assert len(addresses) < 100, "the addresses must have been reused for this test to mean something"
    run = seen.report().run
    sines = [operation for operation in operations(run) if operation.name == "sin"]
    exps = [operation for operation in operations(run) if operation.name == "exp"]
    assert len({operation.outputs for operation in sines}) == 300
    assert [operation.outputs for operation in sines] == [operation.inputs for operation in exps]
    tensors = {value.id: value.tensor for value in run.values}
    assert len({tensors[operation.outputs[0]] for operation in sines}) == 300


class _Note:
    """Something that only the graph holds."""


class _Noted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, note: _Note) -> torch.Tensor:
        ctx.note = note
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * 2, None


def test_nothing_is_kept_alive() -> None:
    """Tensors, modules, optimizers and graphs die as in a bare run: during the observation and after it."""
    gc.collect()
    gc.disable()
    try:
        with gradscope.observe() as seen:
            net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            data = torch.rand(2, 3)
            hidden = net(data)
            note = _Note()
            loss = _Noted.apply(hidden, note).sum()
            loss.backward()
            optimizer.step()
            watched = [weakref.ref(item) for item in (data, hidden, loss, note)]
            del data, hidden, loss, note
            assert [ref() for ref in watched] == [None] * 4
            seen.report()
            held = [weakref.ref(item) for item in (net, optimizer, net[0].weight, net[0].weight.grad)]
            optimizer_tensors = [weakref.ref(item) for item in net.parameters()]
            del net
            optimizer.zero_grad()
            late = weakref.ref(torch.rand(3))
            assert late() is None
        assert held[0]() is None
        assert held[3]() is None
        report = seen.report()
        del optimizer
        gc.collect()  # an optimizer is a cycle of its own
        assert [ref() for ref in (*held, *optimizer_tensors)] == [None] * 6
        assert report.tensors
    finally:
        gc.enable()


def test_the_record_does_not_grow_with_the_steps() -> None:
    """After 200 steps as many operations, values and tensors are kept as after 10."""

    def observed(steps: int) -> Run:
        net = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        with gradscope.observe(model=net, optimizer=optimizer) as seen:
            for _ in range(steps):
                optimizer.zero_grad()
                net(torch.rand(4, 3)).mean().backward()
                optimizer.step()
        return seen.report().run

    few, many = observed(10), observed(200)
    assert (few.step_count, many.step_count) == (10, 200)
    assert len(operations(few)) == len(operations(many)) > 0
    assert len(few.values) == len(many.values)
    assert len(few.tensors) == len(many.tensors)
    assert len(few.steps) == len(many.steps)
    assert [step.index for step in many.steps][:2] == [1, 2]
    assert many.steps[-1].index >= 200


def test_a_long_step_without_optimizer_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that lead to nothing alive are dropped from a step that never ends; what leads to an output stays."""
    monkeypatch.setattr("gradscope.probes.tape.SWEEP_AT", 500)
    monkeypatch.setattr("gradscope.probes.forward.recorder._MOST", 500)
    w = torch.ones(2, requires_grad=True)
    with gradscope.observe() as seen:
        kept = torch.exp(w)
        for _ in range(5_000):
            torch.sin(w)
        kept = torch.tan(kept)
    run = seen.report().run
    found = operations(run)
    assert len(found) <= 701
    assert [operation.name for operation in found if operation.name != "sin"] == ["exp", "tan"]


def test_questions_about_a_tensor_are_no_operations() -> None:
    """Reading a shape, a dtype or a device is not recorded; taking a number out is."""
    w = torch.ones(2, requires_grad=True)
    with gradscope.observe() as seen:
        _ = (w.shape, w.dtype, w.device, w.size(), w.dim(), w.requires_grad, w.is_leaf, len(w))
        w.sum().item()
    assert [operation.name for operation in operations(seen.report().run)] == ["Tensor.sum", "Tensor.item"]


def test_failed_operations_are_marked() -> None:
    """A call that raised is the last one and says so; the exception is torch's own."""
    w = torch.ones(2, 3, requires_grad=True)
    with gradscope.observe() as seen:  # noqa: SIM117 - the exception must not leave the block
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            torch.mm(w, w)
    (failed,) = operations(seen.report().run)
    assert (failed.name, failed.failed, failed.outputs) == ("mm", True, ())


def test_a_step_that_raises_ends_no_recording() -> None:
    """The recorder is off while torch's optimizers step; after one that raised it is on again at the next backward."""
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def stumble() -> None:
        weight.sum().backward()
        weight.grad = torch.ones(3).to_sparse()
        optimizer.param_groups[0]["lr"] = "fast"
        with pytest.raises(TypeError):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.zero_grad()

    before = torch._C._len_torch_function_stack()
    with gradscope.observe(optimizer=optimizer) as seen:
        stumble()
        weight.exp().sum().backward()
        optimizer.step()
        stumble()
    assert torch._C._len_torch_function_stack() == before
    assert "Tensor.exp" in {operation.name for operation in operations(seen.report().run)}
    with gradscope.observe(optimizer=optimizer):
        weight.sum().backward()
        optimizer.param_groups[0]["lr"] = "fast"
        with pytest.raises(TypeError):
            optimizer.step()
    assert torch._C._len_torch_function_stack() == before
