"""Units that start alike and stay alike."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Finding
from gradscope.reports.report import Report
from tests.workshop import Workshop

LOOP = """
    import copy
    import torch
    from torch import nn

    torch.manual_seed(0)
    hidden, last = nn.Linear(6, 8), nn.Linear(8, 3)
    {start}
    optimizer = torch.optim.Adam([*hidden.parameters(), *last.parameters()], lr=0.01)
    for _ in range(8):
        x = torch.randn(32, 6)
        out = last(torch.tanh(hidden(x)))
        loss = nn.functional.cross_entropy(out, x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def told(workshop: Workshop, start: str) -> list[Finding]:
    """The findings of a program that ends well."""
    return list(Report.of(workshop.run(LOOP.format(start=start))).findings)


def test_layer_widened_by_copies_stays_as_narrow_as_it_was(workshop: Workshop) -> None:
    """Copies of units with equal outgoing weights get equal gradients for ever."""
    start = (
        "with torch.no_grad():\n"
        "        hidden.weight[4:] = hidden.weight[:4]; hidden.bias[4:] = hidden.bias[:4]; "
        "last.weight[:, 4:] = last.weight[:, :4]"
    )
    (finding,) = told(workshop, start)
    assert finding.rule == "identical-units"
    assert finding.tensors == ("hidden.weight", "hidden.bias", "last.weight")
    assert finding.span is not None
    assert finding.span.line == 8


def test_experts_that_are_copies_with_equal_gates_stay_one(workshop: Workshop) -> None:
    """Rows of a tensor of three dimensions are units as well."""
    source = """
        import torch
        from torch import nn

        torch.manual_seed(0)
        experts = nn.Parameter(torch.randn(1, 6, 2).repeat(4, 1, 1))
        gate = nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.SGD([experts, gate], lr=0.05)
        for _ in range(8):
            x = torch.randn(32, 6)
            out = (gate.softmax(0)[:, None, None] * torch.einsum("nd,edo->eno", x, experts)).sum(0)
            loss = (out - x[:, :2].sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    (finding,) = Report.of(workshop.run(source)).findings
    assert finding.rule == "identical-units"
    assert "experts" in finding.tensors
    assert finding.span is not None
    assert finding.span.line == 5


@pytest.mark.parametrize(
    "start",
    [
        "nn.init.zeros_(last.weight)",
        "nn.init.constant_(hidden.weight, 0.1)",
        "nn.init.constant_(last.weight, 0.1)",
        "nn.init.zeros_(last.weight); nn.init.zeros_(last.bias); nn.init.ones_(hidden.bias)",
    ],
)
def test_rows_that_part_draw_nothing(workshop: Workshop, start: str) -> None:
    """A last layer at zero and a first layer of one constant are told apart by what comes after or before."""
    assert told(workshop, start) == []


def test_low_rank_factor_at_zero_draws_nothing(workshop: Workshop) -> None:
    """B of an adapter starts at zero, and its rows part in the first step."""
    source = """
        import torch
        from torch import nn

        torch.manual_seed(0)
        base = nn.Linear(6, 6).requires_grad_(False)
        down, up = nn.Parameter(0.1 * torch.randn(2, 6)), nn.Parameter(torch.zeros(6, 2))
        optimizer = torch.optim.Adam([down, up], lr=0.01)
        for _ in range(8):
            x = torch.randn(32, 6)
            out = base(x) + x @ down.T @ up.T
            loss = (out - x.flip(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    assert Report.of(workshop.run(source)).findings == ()
