"""The findings as lines of `file:line:column: severity[rule] message`, which editors and `grep` understand."""

from __future__ import annotations

from gradscope.graph.facts import Finding
from gradscope.reports.document import Document
from gradscope.reports.escaping import plain


def concise(report: Document) -> str:
    """A line for each finding, the one to fix first at the top; nothing where there is none."""
    report = plain(report)
    return "".join(f"{_place(finding, report)}: {_said(finding)}\n" for finding in report.findings)


def _place(finding: Finding, report: Document) -> str:
    span = finding.span
    if span is None:
        return report.script or "output"
    return f"{span.file}:{span.line}" + (f":{span.column}" if span.column else "")


def _said(finding: Finding) -> str:
    return f"{finding.severity}[{finding.rule}] {finding.message}"
