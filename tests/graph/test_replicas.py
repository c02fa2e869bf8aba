"""Under DistributedDataParallel: forwards that it refuses, explained; here with a single process of its own."""

from __future__ import annotations

import textwrap

import pytest

from gradscope.graph.facts import Finding
from gradscope.reports.report import Report
from tests.workshop import Workshop

HEAD = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.extra = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x, step):
        h = torch.relu(self.body(x))
        {forward}
        return self.head(h)

net = DistributedDataParallel(Net(){options})
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
try:
    for step in range(5):
        optimizer.zero_grad()
        net(torch.randn(16, 4), step).square().mean().backward()
        optimizer.step()
finally:
    dist.destroy_process_group()
"""


def judged(workshop: Workshop, forward: str, options: str = "", steps: int | None = None) -> tuple[Report, str | None]:
    """The report, and the name of what was raised."""
    source = HEAD + NET.format(forward=forward, options=options)
    outcome = workshop.observe(textwrap.dedent(source), steps=steps)
    assert list(outcome.run.failures) == []
    return Report.of(outcome.run), type(outcome.error).__name__ if outcome.error is not None else None


def line_of(workshop: Workshop, finding: Finding) -> str:
    """The line that a finding points at."""
    """The line of the program that a finding points at."""
    assert finding.span is not None
    return (workshop.folder / "script.py").read_text().splitlines()[finding.span.line - 1].strip()


@pytest.mark.parametrize(
    ("forward", "rule", "line", "tensors"),
    [
        ("pass", "unused-parameter", "self.extra = nn.Linear(8, 8)", {"extra.weight", "extra.bias"}),
        (
            "h = self.extra(h) if step != 2 else h",
            "unused-parameter",
            "self.extra = nn.Linear(8, 8)",
            {"extra.weight", "extra.bias"},
        ),
        (
            "h = self.extra(h).detach()",
            "detach",
            "h = self.extra(h).detach()",
            {"body.weight", "body.bias", "extra.weight", "extra.bias"},
        ),
        (
            "h = self.extra(h) if step != 2 else self.extra(h).detach()",
            "detach",
            "h = self.extra(h) if step != 2 else self.extra(h).detach()",
            {"body.weight", "body.bias", "extra.weight", "extra.bias"},
        ),
    ],
)
def test_a_refused_forward_is_explained(
    forward: str, rule: str, line: str, tensors: set[str], workshop: Workshop
) -> None:
    """The finding names what no backward reached, by the user's names, with the cause and the line that was refused."""
    report, raised = judged(workshop, forward)
    assert raised == "RuntimeError"
    (finding,) = report.findings
    assert (finding.rule, finding.severity, set(finding.tensors)) == (rule, "error", tensors)
    assert line_of(workshop, finding) == line
    assert any("raises RuntimeError here, in the next forward" in label.message for label in finding.labels)


def test_it_is_told_before_ddp_does(workshop: Workshop) -> None:
    """After one step nothing is raised yet: the finding says what is going to be."""
    report, raised = judged(workshop, "pass", steps=1)
    assert raised is None
    (finding,) = report.findings
    assert finding.rule == "unused-parameter"
    assert any("raises in the next forward" in fact for fact in finding.facts)


def test_with_unused_parameters_allowed_ddp_is_not_announced(workshop: Workshop) -> None:
    """With `find_unused_parameters` DDP raises nothing, and what is skipped in one step is no finding."""
    report, raised = judged(workshop, "pass", ", find_unused_parameters=True")
    assert raised is None
    (finding,) = report.findings
    assert not any("raises in the next forward" in fact for fact in finding.facts)
    skipped, raised = judged(workshop, "h = self.extra(h) if step != 2 else h", ", find_unused_parameters=True")
    assert (raised, skipped.findings) == (None, ())
