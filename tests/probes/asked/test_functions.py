"""Backwards that are wrong by value, asked for by `--check functions`; and those that are meant as they are."""

from __future__ import annotations

import textwrap

import pytest

from gradscope.reports.report import Report
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn

class Fn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, s):
        ctx.save_for_backward(x, s)
        return FORWARD

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return BACKWARD

torch.manual_seed(0)
net, scale = nn.Linear(4, 3), nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))
optimizer = torch.optim.SGD([*net.parameters(), scale], lr=0.01)
for _ in range(3):
    out = Fn.apply(net(torch.rand(8, 4)), scale)
    loss = (out - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item(), torch.rand(1).item())
"""
WRONG = {
    "unscaled": ("x * s", "g, (g * x).sum(0)"),
    "sign": ("x / s", "g / s, (g * x / s.square()).sum(0)"),
    "power": ("x.exp() * s", "g * s, (g * x.exp()).sum(0)"),
}
RIGHT = {
    "product": ("x * s", "g * s, (g * x).sum(0)"),
    "kinked": ("x.relu() * s", "g * s * (x > 0), (g * x.relu()).sum(0)"),
    "straight through": ("x.round() + 0 * s", "g, 0 * s"),
    "spikes": ("(x > 0).to(x) + 0 * s", "g / (1 + x.abs()).square(), 0 * s"),
    "reversed": ("x.clone()", "-0.1 * g, 0 * s"),
    "drawn": ("x * torch.rand_like(x) * s", "None, None"),
}


def _program(pair: tuple[str, str]) -> str:
    return textwrap.dedent(PROGRAM).replace("FORWARD", pair[0]).replace("BACKWARD", pair[1])


@pytest.mark.parametrize("case", WRONG)
def test_wrong_by_value(workshop: Workshop, case: str) -> None:
    """Told at the return, with all that is trained on it, and only where it was asked for."""
    program = _program(WRONG[case])
    run = workshop.run(program, checks=["functions"])
    (found,) = Report.of(run).findings
    assert (found.rule, found.severity) == ("custom-function", "error")
    assert found.span is not None
    assert program.lstrip().splitlines()[found.span.line - 1].lstrip().startswith("return g")
    assert {"weight", "bias"} <= {name.rpartition(".")[2] for name in found.tensors}
    assert Report.of(workshop.run(program)).findings == ()


@pytest.mark.parametrize("case", [case for case in RIGHT if case != "drawn"])
def test_right_or_meant(workshop: Workshop, case: str) -> None:
    """Kinks, straight-through estimators, surrogates and reversed gradients are no mistakes."""
    run = workshop.run(_program(RIGHT[case]), checks=["functions"])
    assert [found.rule for found in Report.of(run).findings if found.severity == "error"] == []


def test_the_run_stays_as_it_is(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """The same losses and the same random numbers, also where `forward` draws some."""
    for pair in (RIGHT["product"], RIGHT["drawn"]):
        workshop.run(_program(pair))
        bare = capsys.readouterr().out
        workshop.run(_program(pair), checks=["functions"])
        assert capsys.readouterr().out == bare
