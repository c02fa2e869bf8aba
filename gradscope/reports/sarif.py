"""The report as SARIF 2.1.0, which code scanning services and editors read."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any
from urllib.parse import quote

import msgspec

from gradscope.graph.facts import Edit, Finding, Help, Span
from gradscope.graph.texts import encoded
from gradscope.reports.document import Document
from gradscope.reports.escaping import plain, printable_json, sarif_message
from gradscope.rules import rule_named
from gradscope.rules.pages import page_of

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")

_Json = dict[str, Any]


def sarif(report: Document) -> str:
    """A SARIF log with one run: a result a finding, with its labels as related locations and its edits as fixes.

    Files below the folder of the run are relative to `%SRCROOT%`. A finding without a line of its own is laid to the
    script's file, since services show no result without a place. Places and edits hold the true texts, messages what
    is shown of them.
    """
    names = list(dict.fromkeys(finding.rule for finding in report.findings))
    driver = {"name": "gradscope", "version": report.gradscope, "rules": [_rule(name) for name in names]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(report)],
        "results": [_result(finding, names.index(finding.rule), report.script) for finding in report.findings],
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return printable_json(msgspec.json.format(encoded(log), indent=1).decode()) + "\n"


def _rule(name: str) -> _Json:
    page = page_of(rule_named(name))
    fenced = [f"{word}:\n\n```python\n{code}```" for word, code in (("Bad", page.bad), ("Good", page.good))]
    return {
        "id": name,
        "shortDescription": {"text": page.what},
        "fullDescription": {"text": page.why or page.what},
        "help": {
            "text": f"{page.what}\n\n{page.why}\n\nMore: gradscope rule {name}",
            "markdown": "\n\n".join([page.what, page.why, *fenced]),
        },
    }


def _invocation(report: Document) -> _Json:
    """Our own parts that failed are told as notifications; a script that raised was observed all the same."""
    told = [{"level": "warning", "message": _message(line)} for line in report.failures]
    return {"executionSuccessful": True, **({"toolExecutionNotifications": told} if told else {})}


def _result(finding: Finding, index: int, script: str | None) -> _Json:
    result: _Json = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": _message(finding.message, *finding.facts, *(row.message for row in finding.help)),
        "partialFingerprints": {"finding/v1": _fingerprint(finding)},
    }
    if finding.span is not None:
        result["locations"] = [{"physicalLocation": _physical(finding.span)}]
    elif script is not None and script.endswith(".py"):
        result["locations"] = [{"physicalLocation": {"artifactLocation": _artifact(script)}}]
    if finding.labels:
        result["relatedLocations"] = [
            {"id": number, "physicalLocation": _physical(label.span), "message": _message(label.message)}
            for number, label in enumerate(finding.labels, 1)
        ]
    fixes = [_fix(help_) for help_ in finding.help if help_.edits and all(map(_is_exact, help_.edits))]
    if fixes:
        result["fixes"] = fixes
    return result


def _message(*lines: str) -> _Json:
    return {"text": sarif_message("\n".join(plain(lines)))}


def _fingerprint(finding: Finding) -> str:
    """The same for a finding that only moved to another line."""
    parts = [finding.rule, finding.span.file if finding.span is not None else "", *finding.tensors]
    return hashlib.sha256("\0".join(parts).encode(errors="backslashreplace")).hexdigest()[:32]


def _physical(location: Span) -> _Json:
    return {"artifactLocation": _artifact(location.file), "region": _region(location)}


def _region(location: Span) -> _Json:
    region = {
        "startLine": location.line,
        "startColumn": location.column,
        "endLine": location.end_line,
        "endColumn": location.end_column,
    }
    return {key: number for key, number in region.items() if number is not None}


def _artifact(file: str) -> _Json:
    if _DRIVE.match(file):
        return {"uri": "file:///" + quote(file.replace("\\", "/"), safe="/:", errors="backslashreplace")}
    path = quote(file.replace(os.sep, "/"), errors="backslashreplace")
    return {"uri": f"file://{path}"} if path.startswith("/") else {"uri": path, "uriBaseId": "%SRCROOT%"}


def _is_exact(edit: Edit) -> bool:
    return edit.span.column is not None and edit.span.end_column is not None


def _fix(help_: Help) -> _Json:
    replaced: dict[str, list[_Json]] = {}
    for edit in help_.edits:
        replacement = {"deletedRegion": _region(edit.span), "insertedContent": {"text": edit.text}}
        replaced.setdefault(edit.span.file, []).append(replacement)
    changes = [{"artifactLocation": _artifact(file), "replacements": found} for file, found in replaced.items()]
    return {"description": _message(help_.message), "artifactChanges": changes}
