"""The report as annotations of GitHub Actions."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Finding, Help, Run, Severity, Span
from gradscope.reports.report import Report
from tests.workshop import Workshop


def lines(*findings: Finding, failures: tuple[str, ...] = ()) -> list[str]:
    """The lines of the report on these findings."""
    return Report(Run("0", "2", "train.py"), findings, failures).to_github().splitlines()


@pytest.mark.parametrize(
    ("span", "place"),
    [
        (Span("a.py", 3, 5, 3, 9), "file=a.py,line=3,col=5,endColumn=9,"),
        (Span("a.py", 3, 5, 4, 9), "file=a.py,line=3,endLine=4,"),
        (Span("a.py", 3), "file=a.py,line=3,"),
        (Span("a,b:c%.py", 3), "file=a%2Cb%3Ac%25.py,line=3,"),
        (None, ""),
    ],
)
def test_places(span: Span | None, place: str) -> None:
    """Line and columns where there are some; no columns over several lines; commas, colons and % are escaped."""
    assert lines(Finding("detach", "error", "m", span))[0] == f"::error {place}title=gradscope detach::m"


@pytest.mark.parametrize(("severity", "command"), [("error", "error"), ("warning", "warning"), ("info", "notice")])
def test_levels(severity: Severity, command: str) -> None:
    """An info is a notice."""
    assert lines(Finding("detach", severity, "m", None))[0].startswith(f"::{command} ")


def test_a_finding_is_one_line() -> None:
    """Message, facts and help are one line that GitHub unfolds, in which % is escaped and colons are not."""
    finding = Finding("detach", "error", "100% of:\r\nw", None, facts=("a fact, told",), help=(Help("mend it"),))
    first, headline = lines(finding)
    assert first == "::error title=gradscope detach::100%25 of:\\r\\nw%0Aa fact, told%0Ahelp: mend it"
    assert headline == "gradscope: train.py, no backward, 1 finding"


def test_without_findings_the_headline_is_left() -> None:
    """No finding, no command; our own failures are told in the log."""
    assert lines() == ["gradscope: train.py, no backward, no findings"]
    assert lines(failures=("::rule failed",))[0] == "gradscope: \\x3a:rule failed"


def test_the_command_line_writes_it(workshop: Workshop) -> None:
    """`--format github` writes commands after the script's own output, and fails as other formats do."""
    workshop.write("import torch\nw = torch.ones(2, requires_grad=True)\nprint('mine')\nw.detach().sum().backward()\n")
    ended = workshop.gradscope("explain", "--format", "github", "script.py")
    assert ended.status == 1
    mine, command, headline = ended.out.splitlines()
    assert mine == "mine"
    assert command.startswith("::error file=script.py,line=4,col=2,")
    assert headline.startswith("gradscope: script.py")
