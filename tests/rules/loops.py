"""Short training loops for rules on what a program computes."""

from __future__ import annotations

import textwrap
import warnings

from gradscope.graph.storage import decode, encode
from gradscope.reports.report import Report
from tests.workshop import Workshop

LOOP = """
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(0)
{before}
optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
for step in range(5):
{body}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def report_of(workshop: Workshop, before: str, body: str, checks: tuple[str, ...] = ()) -> Report:
    """The report on a loop that trains `net` on `loss`, read from the kept run."""
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    source = LOOP.format(before=textwrap.dedent(before).strip(), body=body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Report.of(decode(encode(workshop.run(source, checks=checks))))


def found(workshop: Workshop, before: str, body: str) -> list[tuple[str, bool]]:
    """The rules that a loop draws, with whether each points at the line marked `# here`."""
    findings = report_of(workshop, before, body).findings
    lines = (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()
    return [(f.rule, f.span is not None and "# here" in lines[f.span.line - 1]) for f in findings]
