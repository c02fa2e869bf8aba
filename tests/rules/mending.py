"""What a program becomes by the mend that its first finding proposes."""

from __future__ import annotations

import difflib
import textwrap
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradscope.graph.facts import Finding, Run
from gradscope.graph.rewriting import applied
from gradscope.reports.report import Report
from tests.workshop import Workshop

TRAINING = """
import torch
from torch import nn
from torch.nn import functional as F

{before}

net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
for step in range(8):
    x, y = torch.rand(16, 4), torch.rand(16, 4)
    optimizer.zero_grad()
{body}
    optimizer.step()
"""


def training(body: str, before: str = "") -> str:
    """A training loop with this body, up to the backward."""
    return TRAINING.format(body=textwrap.indent(body, "    "), before=before)


class Mended(NamedTuple):
    """The first finding of a program; the lines that its first edits take away and put in; and what is found then."""

    finding: Finding
    less: list[str]
    more: list[str]
    then: list[str]


def loud(run: Run) -> list[Finding]:
    """The errors and warnings of a run."""
    report = Report.of(run)
    assert report.failures == ()
    return [finding for finding in report.findings if finding.severity != "info"]


def mended(workshop: Workshop, source: str, checks: Sequence[str] = ()) -> Mended:
    """Observe a program, apply the first edits of its first finding, observe it again: with grad mode on at first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some of these as well
        with torch.enable_grad():
            finding = loud(workshop.observe(source, checks=checks).run)[0]
        edits = next((help_.edits for help_ in finding.help if help_.edits), ())
        before = textwrap.dedent(source).lstrip("\n").split("\n")
        if not edits:
            return Mended(finding, [], [], [finding.rule])
        after = applied(edits, before)
        with torch.enable_grad():
            outcome = workshop.observe("\n".join(after), checks=checks)
    then = [finding.rule for finding in loud(outcome.run)]
    then += [repr(outcome.error)] if outcome.error is not None else []
    lines = list(difflib.ndiff([line.strip() for line in before], [line.strip() for line in after]))
    return Mended(finding, *([line[2:] for line in lines if line.startswith(sign)] for sign in "-+"), then)
