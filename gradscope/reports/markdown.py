"""The report as Markdown, as a comment on a pull request shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gradscope.graph.facts import Finding, Run
from gradscope.reports.document import Document
from gradscope.reports.text import changed_line, evidence, headline, table_text

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!])")
_NAMED = re.compile(r"@(?=\w)")
_CODE = re.compile(r"(`[^`]+`)")

_Sources = Mapping[str, Mapping[int, str]]


def markdown(run: Run, findings: Sequence[Finding], report: Document, *, every_row: bool = False) -> str:
    """A heading, each finding with its lines in a fence and its mend as a diff, and the table folded away."""
    parts = [f"### {_prose(' '.join(headline(report).split()))}"]
    for finding in findings:
        parts += _finding(finding, run.sources)
    table = table_text(report.tensors, every_row=every_row)
    if table:
        count = len(report.tensors)
        summary = f"{count} tensor" if count == 1 else f"{count} tensors"
        parts.append(f"<details><summary>{summary}</summary>\n\n{_fence(table)}\n\n</details>")
    parts += map(_prose, report.failures)
    return "\n\n".join(parts) + "\n"


def _finding(finding: Finding, sources: _Sources) -> list[str]:
    parts = [f"**{finding.severity}** `{finding.rule}`: {_prose(finding.message)}"]
    shown = evidence(finding, sources)
    if shown:
        parts.append(_fence("\n".join(shown)))
    for help_ in finding.help:
        parts.append(f"Help: {_prose(help_.message)}")
        changed = changed_line(help_.edit, sources) if help_.edit is not None else None
        if changed is not None:
            before, after = changed
            parts.append(_fence(f"-{before}" + (f"\n+{after}" if after.strip() else ""), "diff"))
    if finding.span is not None:
        more = f"More: `gradscope rule {finding.rule}`"
        if finding.allowed_at is not None:
            line = finding.allowed_at
            more = f"If this is on purpose, end line {line} with `# gradscope: allow[{finding.rule}]`. {more}"
        parts.append(more)
    return parts


def _fence(text: str, language: str = "text") -> str:
    """A block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _prose(text: str) -> str:
    """A sentence of ours, in which only what stands in backticks is code; nobody is called by an `@name` in it."""
    if text.count("`") % 2:
        return _plain(text)
    return "".join(part if part.startswith("`") else _plain(part) for part in _CODE.split(text))


def _plain(text: str) -> str:
    return _NAMED.sub("@<!-- -->", _SPECIAL.sub(r"\\\1", text.replace("\n", " ")))
