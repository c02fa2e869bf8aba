"""Transforms of `torch.func`: the data flow goes on through what they wrap."""

from __future__ import annotations

import pytest

from gradscope.reports.report import Report
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

w, shift = nn.Parameter(torch.rand(3)), nn.Parameter(torch.zeros(()))
optimizer = torch.optim.SGD([w, shift], lr=0.1)
x = torch.rand(5, 3)
for _ in range(3):
    out = {expression}
    loss = (out.sum() + shift).square()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

ENSEMBLE = """
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

models = [nn.Linear(3, 1) for _ in range(2)]
params, buffers = stack_module_state(models)
optimizer = torch.optim.SGD({held}, lr=0.1)
base = nn.Linear(3, 1, device="meta")
x = torch.rand(5, 3)
for _ in range(3):
    out = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(params, buffers, x)
    loss = out.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    "expression",
    [
        "vmap(torch.dot, in_dims=(0, None))(x, w{cut})",
        "vmap(lambda x: torch.dot(x, w{cut}))(x)",
        "vmap(lambda w: w.sin().sum())(w{cut}.expand(4, 3))",
        "grad(lambda w: (x @ w).sin().sum())(w{cut})",
        "vmap(grad(lambda w, x: torch.dot(w, x).sin()), in_dims=(None, 0))(w{cut}, x)",
    ],
)
def test_cuts_before_and_inside_a_transform_are_found(workshop: Workshop, expression: str) -> None:
    """The way from a parameter to the loss leads through a transform; a cut on it is told, and none is made up."""
    broken = workshop.run(PROGRAM.format(expression=expression.format(cut=".detach()")))
    (finding,) = Report.of(broken).findings
    assert (finding.rule, finding.tensors) == ("detach", ("w",))
    assert [tensor.name for tensor in broken.tensors if tensor.name in ("w", "x")].count("w") == 1
    assert Report.of(workshop.run(PROGRAM.format(expression=expression.format(cut="")))).findings == ()


def test_stacked_models_are_copies(workshop: Workshop) -> None:
    """An optimizer that holds the models of an ensemble, where the loss comes from their stacked copies."""
    held = "[p for model in models for p in model.parameters()]"
    report = Report.of(workshop.run(ENSEMBLE.format(held=held)))
    (finding,) = report.findings
    assert (finding.rule, finding.severity) == ("detach", "error")
    assert finding.tensors == ("models[0].weight", "models[0].bias", "models[1].weight", "models[1].bias")
    assert finding.help[0].message.startswith("`stack_module_state` leaves the history behind")
    assert Report.of(workshop.run(ENSEMBLE.format(held="params.values()"))).findings == ()


def test_transforms_compile_as_one_graph(workshop: Workshop) -> None:
    """Dynamo traces through what we put around torch's own functions."""
    run = workshop.run(
        """
        import torch
        from torch import nn
        from torch.func import vmap

        net = nn.Linear(3, 1)

        @torch.compile(backend="eager", fullgraph=True)
        def loss_of(x):
            return vmap(net)(x).square().mean()

        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            loss = loss_of(torch.rand(5, 3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    assert Report.of(run).findings == ()
