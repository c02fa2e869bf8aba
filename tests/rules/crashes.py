"""Programs whose guilty line is marked `# here`, and what is told about them."""

from __future__ import annotations

import textwrap

from gradscope.graph.facts import Finding
from gradscope.graph.storage import decode, encode
from gradscope.reports.report import Report
from tests.workshop import Workshop

HEAD = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"


def findings(workshop: Workshop, body: str) -> tuple[Finding, ...]:
    """What a program draws; its kept run must draw the same."""
    outcome = workshop.observe(HEAD + textwrap.dedent(body))
    assert list(outcome.run.failures) == []
    report = Report.of(outcome.run)
    assert report.failures == ()
    assert Report.of(decode(encode(outcome.run))).findings == report.findings
    return report.findings


def must_be(workshop: Workshop, rule: str, body: str, severity: str = "error") -> Finding:
    """The one finding that a program draws: of this rule, at the marked line."""
    (found,) = findings(workshop, body)
    assert (found.rule, found.severity) == (rule, severity)
    assert found.span is not None
    lines = (workshop.folder / found.span.file).read_text(encoding="utf-8").splitlines()
    assert "# here" in lines[found.span.line - 1], f"told at line {found.span.line}: {lines[found.span.line - 1]}"
    return found
