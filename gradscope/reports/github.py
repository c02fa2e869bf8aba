"""The report as workflow commands of GitHub Actions, which shows them as annotations of a pull request's lines."""

from __future__ import annotations

from gradscope.graph.facts import Finding
from gradscope.reports.document import Document
from gradscope.reports.escaping import command_data, command_property, plain
from gradscope.reports.text import headline

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def github(report: Document) -> str:
    """A line a finding, then the headline for who reads the log."""
    report = plain(report)
    return (
        "\n".join(
            [*map(_annotation, report.findings), *(f"gradscope: {line}" for line in report.failures), headline(report)]
        )
        + "\n"
    )


def _annotation(finding: Finding) -> str:
    place: dict[str, object] = {}
    location = finding.span
    if location is not None:
        place = {"file": location.file, "line": location.line}
        # GitHub refuses columns of what goes over several lines.
        if location.end_line not in (None, location.line):
            place["endLine"] = location.end_line
        elif location.column is not None:
            place["col"] = location.column
            if location.end_column is not None:
                place["endColumn"] = location.end_column
    place["title"] = f"gradscope {finding.rule}"
    properties = ",".join(f"{key}={command_property(str(value))}" for key, value in place.items())
    story = [finding.message, *finding.facts, *(f"help: {row.message}" for row in finding.help)]
    return f"::{_COMMANDS[finding.severity]} {properties}::{command_data(chr(10).join(story))}"
