"""The report as Markdown, as a comment on a pull request shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from gradscope.graph.facts import Finding, Run
from gradscope.reports.diffs import changes
from gradscope.reports.document import Document
from gradscope.reports.escaping import code_span, fence, plain, plain_files, prose, shown
from gradscope.reports.table import table_text
from gradscope.reports.text import evidence, headline_parts

_Sources = Mapping[str, Mapping[int, str]]


def markdown(run: Run, findings: Sequence[Finding], report: Document, *, every_row: bool = False) -> str:
    """A heading, each finding with its lines in a fence and its mend as a diff, and the table folded away."""
    quotes = _quotes(run)
    report, sources = plain(report), plain_files(run.sources)
    parts = [f"### {', '.join(headline_parts(report, code_span))}"]
    for finding in findings:
        parts += _finding(plain(finding), sources, quotes)
    table = table_text(report, every_row=every_row)
    if table:
        count = len(report.tensors)
        summary = f"{count} tensor" if count == 1 else f"{count} tensors"
        parts.append(f"<details><summary>{summary}</summary>\n\n{fence(table)}\n\n</details>")
    parts += (f"gradscope: {prose(failure, quotes)}" for failure in report.failures)
    return "\n\n".join(parts) + "\n"


def _finding(finding: Finding, sources: _Sources, quotes: Set[str]) -> list[str]:
    parts = [f"**{finding.severity}** {code_span(finding.rule)}: {prose(finding.message, quotes)}"]
    lines = evidence(finding, sources)
    if lines:
        parts.append(fence("\n".join(lines)))
    for help_ in finding.help:
        parts.append(f"Help: {prose(help_.message, quotes)}")
        diff = [
            sign + shown(line, kept="\t")
            for change in changes(help_.edits, sources)
            for sign, code in (("-", change.before), ("+", change.after))
            for line in code
        ]
        if diff:
            parts.append(fence("\n".join(diff), "diff"))
        if help_.tried is not None:
            parts.append(f"Tried: {prose(help_.tried.message, quotes)}")
    if finding.span is not None:
        more = f"More: {code_span(f'gradscope rule {finding.rule}')}"
        if finding.allowed_at is not None:
            allow = code_span(f"# gradscope: allow[{finding.rule}]")
            more = f"If this is on purpose, end line {finding.allowed_at} with {allow}. {more}"
        parts.append(more)
    return parts


def _quotes(run: Run) -> set[str]:
    """The backticks that names and lines of a run hold, each with the letters beside it; mostly none.

    A sentence quotes names in backticks, and one that has such letters in it may quote a name that ends the quote.
    """
    return {
        text[max(0, place - 1) : place + 2]
        for text in set(_names(run))
        if "`" in text
        for place, letter in enumerate(text)
        if letter == "`"
    }


def _names(run: Run) -> Iterator[str]:
    yield run.script or ""
    yield from run.failures
    for tensor in run.tensors:
        yield from (tensor.name or "", tensor.module or "", tensor.grad_fn or "")
        yield from (span.file for span in (tensor.made, tensor.built) if span is not None)
    for module in run.modules:
        yield from (module.path, module.type)
    yield from (named.name for many in (run.optimizers, run.functions, run.losses) for named in many)
    for file, lines in run.sources.items():
        yield from (file, *lines.values())
    for step in run.steps:
        for operation in step.operations:
            yield from (operation.name, operation.module or "")
        for backward in step.backwards:
            yield from (node.name for node in backward.nodes)
    if run.crash is not None:
        yield from (run.crash.type, run.crash.message)
