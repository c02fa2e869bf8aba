"""Parameters that FSDP shards: counted by their shards, judged by what is computed with the whole."""

from __future__ import annotations

import textwrap

import pytest

from gradscope.reports.report import Report
from tests.workshop import Workshop, named

PROGRAM = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = torch.relu(self.body(x)){cut}
        return self.head(h)


def main():
    net = Net()
    mesh = init_device_mesh("cpu", (1,))
    {blocks}
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


main()
dist.destroy_process_group()
"""


def judged(workshop: Workshop, cut: str = "", blocks: str = "") -> Report:
    """The report on the program."""
    """The report on the program under FSDP."""
    source = textwrap.dedent(PROGRAM).format(cut=cut, blocks=blocks)
    return Report.of(workshop.run(source))


def test_shards_are_counted_under_the_users_names(workshop: Workshop) -> None:
    """Each parameter has one row: whole shape, gradients in every step, movement, and the line that made it."""
    report = judged(workshop)
    rows = {row.name: row for row in report.tensors if row.role == "parameter"}
    assert list(rows) == ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert report.findings == ()
    for row in rows.values():
        assert row.received is not None
        assert (row.received.steps, row.predicted, row.optimizer) == (3, True, "SGD")
        assert row.moved or row.from_zero
    assert rows["body.weight"].shape == (8, 4)
    made = rows["body.weight"].location
    assert made is not None
    assert "self.body" in (workshop.folder / "script.py").read_text().splitlines()[made.line - 1]


def test_a_cut_is_found_behind_fsdp(workshop: Workshop) -> None:
    """The way of the data from the gathered parameter to the loss is the shard's."""
    for blocks in ("", "fully_shard(net.body, mesh=mesh)"):
        report = judged(workshop, ".detach()", blocks)
        (finding,) = report.findings
        assert (finding.rule, finding.tensors) == ("detach", ("body.weight", "body.bias"))


def test_batched_gradients_are_not_measured(workshop: Workshop) -> None:
    """`is_grads_batched` runs one pass for many: what arrives stands for many gradients, in old transforms and new."""
    run = workshop.run(
        """
        import torch
        class Even(torch.autograd.Function):
            generate_vmap_rule = True
            @staticmethod
            def forward(x):
                return 2 * x
            @staticmethod
            def setup_context(ctx, inputs, output):
                pass
            @staticmethod
            def backward(ctx, gradient):
                return torch.full_like(gradient, 2)
        w = torch.ones(3, requires_grad=True)
        rows, = torch.autograd.grad(Even.apply(w).sqrt(), w, torch.eye(3), is_grads_batched=True)
        assert rows.shape == (3, 3)
        def outputs(v):
            return v * 2
        found = torch.autograd.functional.jacobian(outputs, w, vectorize=True)
        assert found.diag().tolist() == [2, 2, 2]
        torch.func.vmap(torch.func.grad(lambda v: Even.apply(v).sum()))(torch.eye(3))
        """
    )
    assert not named(run, "w").gradient_norms


def test_gradients_of_inference_tensors(workshop: Workshop) -> None:
    """Their changes are not counted, and torch refuses the question."""
    workshop.run(
        """
        import torch
        with torch.inference_mode():
            w = torch.ones(3, requires_grad=True)
            w.grad = torch.zeros(3)
            try:
                (w * 2).sum().backward()
            except RuntimeError:
                pass
        v = torch.ones(3, requires_grad=True)
        with torch.inference_mode():
            v.grad = torch.zeros(3)
        optimizer = torch.optim.SGD([v], lr=0.1)
        optimizer.step()
        optimizer.zero_grad()
        v.sum().backward()
        """
    )


def test_the_default_device_is_not_that_of_our_numbers(workshop: Workshop) -> None:
    """Steps and infinite values are looked at while the program makes its tensors elsewhere."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        half = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
        optimizer = torch.optim.SGD([w, half], lr=0.1)
        with torch.device("meta"):
            for _ in range(3):
                optimizer.zero_grad()
                ((w * 2).sqrt().sum() + half.sum()).backward()
                optimizer.step()
        torch.set_default_device("meta")
        try:
            (w.sum() / 0).backward()
            optimizer.step()
        finally:
            torch.set_default_device(None)
        """
    )
    assert named(run, "half").gradient_norms[0] == pytest.approx(3**0.5)


def test_code_of_a_wrapping_subclass_is_not_run_to_measure(workshop: Workshop) -> None:
    """A class of the program's computes itself what is done with its tensors: no norm is asked for."""
    run = workshop.run(
        """
        import torch
        from torch import nn
        from torch.utils import _pytree as pytree
        asked = []
        class Wrapped(torch.Tensor):
            @staticmethod
            def __new__(cls, inner):
                return torch.Tensor._make_wrapper_subclass(
                    cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad
                )
            def __init__(self, inner):
                self.inner = inner
            @classmethod
            def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
                asked.append(str(function))
                args, kwargs = pytree.tree_map_only(Wrapped, lambda w: w.inner, (args, kwargs or {}))
                return pytree.tree_map_only(torch.Tensor, Wrapped, function(*args, **kwargs))
        linear = nn.Linear(3, 3)
        linear.weight = nn.Parameter(Wrapped(linear.weight.detach()))
        optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, foreach=False)
        for _ in range(3):
            optimizer.zero_grad()
            linear(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
        assert not {name for name in asked if "norm" in name or "foreach" in name or "isfinite" in name}
        """
    )
    weight = named(run, "linear.weight")
    assert weight.received is not None
    assert weight.received.steps == 3
    assert not weight.gradient_norms
