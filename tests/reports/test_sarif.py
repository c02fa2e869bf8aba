"""The report as SARIF."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace

from gradscope.graph.facts import Edit, Finding, Help, Label, Run, Severity, Span
from gradscope.reports.report import Report
from gradscope.rules import RULES
from tests.workshop import Workshop

SCHEMA = Path(__file__).parents[1] / "schemas" / "sarif-2.1.0-rtm.4.json"


@cache
def validator() -> jsonschema.Draft4Validator:
    """Checks against the schema of SARIF 2.1.0."""
    return jsonschema.Draft4Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def log_of(*findings: Finding, run: Run | None = None, failures: tuple[str, ...] = ()) -> dict[str, Any]:
    """The one run of the log about these findings, after it has been validated."""
    log = json.loads(Report(run or Run("0", "2", "train.py"), findings, failures).to_sarif())
    validator().validate(log)
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    found: dict[str, Any] = log["runs"][0]
    return found


def test_a_finding_is_a_result() -> None:
    """Place, labels, edits, facts and the rule's page are where SARIF wants them; no line or column changes."""
    span = Span("pkg/train.py", 3, 5, 3, 14)
    finding = Finding(
        "detach",
        "error",
        "`w` never learns",
        span,
        tensors=("w",),
        labels=(Label(Span("pkg/loss.py", 9), "used here"),),
        facts=("cut off: w",),
        help=(
            Help("leave it out", (Edit(span, ""),)),
            Help("or not"),
            Help("no columns", (Edit(Span("a.py", 1), "x"),)),
        ),
    )
    log = log_of(finding)
    result = log["results"][0]
    assert (result["ruleId"], result["level"]) == ("detach", "error")
    assert result["message"]["text"].splitlines() == [
        "`w` never learns",
        "cut off: w",
        "leave it out",
        "or not",
        "no columns",
    ]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "pkg/train.py", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 3, "startColumn": 5, "endLine": 3, "endColumn": 14}
    related = result["relatedLocations"][0]
    assert related["physicalLocation"]["region"] == {"startLine": 9}
    assert related["message"] == {"text": "used here"}
    (fix,) = result["fixes"]
    assert fix["artifactChanges"][0]["replacements"][0]["insertedContent"] == {"text": ""}
    rule = log["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert rule["id"] == "detach"
    assert "```python" in rule["help"]["markdown"]


@pytest.mark.parametrize(("severity", "level"), [("error", "error"), ("warning", "warning"), ("info", "note")])
def test_levels(severity: Severity, level: str) -> None:
    """An info is a note."""
    assert log_of(Finding("detach", severity, "m", None))["results"][0]["level"] == level


def test_every_rule_has_a_description() -> None:
    """Each rule that has a finding is described once, and the results point at it."""
    names = [rule.name for rule in RULES]
    log = log_of(*(Finding(name, "warning", "m", Span("a.py", 1)) for name in [*names, *names]))
    rules = log["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == names
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in log["results"])
    assert all(rule["shortDescription"]["text"] for rule in rules)


@pytest.mark.parametrize(
    ("file", "artifact"),
    [
        ("a b/tr%in#1.py", {"uri": "a%20b/tr%25in%231.py", "uriBaseId": "%SRCROOT%"}),
        ("/opt/x y.py", {"uri": "file:///opt/x%20y.py"}),
        ("C:\\code\\train.py", {"uri": "file:///C:/code/train.py"}),
        ("n\u00e4her.py", {"uri": "n%C3%A4her.py", "uriBaseId": "%SRCROOT%"}),
    ],
)
def test_files_are_uris(file: str, artifact: dict[str, str]) -> None:
    """Names of files are quoted; absolute ones stand alone."""
    result = log_of(Finding("detach", "error", "m", Span(file, 1)))["results"][0]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == artifact


def test_a_finding_without_a_line_lies_in_the_script() -> None:
    """Services show no result without a place: it is the script, if that is a file."""
    finding = Finding("never-stepped", "warning", "m", None)
    (place,) = log_of(finding)["results"][0]["locations"]
    assert place["physicalLocation"] == {"artifactLocation": {"uri": "train.py", "uriBaseId": "%SRCROOT%"}}
    for script in (None, "package.train"):
        assert "locations" not in log_of(finding, run=Run("0", "2", script))["results"][0]


def test_a_finding_that_moved_keeps_its_fingerprint() -> None:
    """The fingerprint holds when the line changes, and differs by rule, file and tensors."""
    finding = Finding("detach", "error", "m", Span("a.py", 3), tensors=("w",))
    moved = replace(finding, span=Span("a.py", 30), message="another")
    others = [
        replace(finding, rule="no-grad"),
        replace(finding, tensors=("v",)),
        replace(finding, span=Span("b.py", 3)),
        replace(finding, span=None),
    ]
    prints = [result["partialFingerprints"]["finding/v1"] for result in log_of(finding, moved, *others)["results"]]
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == 5


def test_our_own_failures_are_notifications() -> None:
    """What of ours has failed is told, and there is no result for it."""
    log = log_of(failures=("rule detach failed: KeyError: 3",))
    assert log["results"] == []
    assert log["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"].startswith("rule detach failed")


def test_explain_and_show_write_sarif(workshop: Workshop) -> None:
    """The ending chooses the format, `show` writes the same log, and that of a real run validates."""
    workshop.write(
        """
        import torch
        encoder, decoder = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            decoder(encoder(torch.rand(4, 3)).detach()).sum().backward()
            optimizer.step()
        """
    )
    assert workshop.gradscope("explain", "--save", "run.json", "-o", "x.sarif", "script.py").status == 1
    log = json.loads((workshop.folder / "x.sarif").read_text())
    validator().validate(log)
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == ["detach"]
    assert json.loads(workshop.gradscope("show", "--format", "sarif", "run.json").out) == log
    assert workshop.gradscope("show", "-o", "x.sarif.json", "run.json").status == 1
    assert json.loads((workshop.folder / "x.sarif.json").read_text()) == log
