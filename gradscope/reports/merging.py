"""Reports of the ranks of one run as one: what all of them found, what some did, and who did not report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from gradscope.graph.facts import Ending, Finding, Span
from gradscope.graph.texts import encoded
from gradscope.reports.document import Document, Raised, RankRow, TensorRow
from gradscope.rules.engine import WEIGHT

_AROUND = 40  # lines of the source that travel with a finding: its loop and its function may lie above it


class RankReport(msgspec.Struct, frozen=True):
    """What one rank has to report: findings with the lines that they cite, and its tensors without their series."""

    rank: int
    ended: Ending
    exception: Raised | None
    findings: tuple[Finding, ...]
    sources: dict[str, dict[int, str]]
    tensors: tuple[TensorRow, ...]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Others:
    """The other ranks of a run: `world` counts all, and those missing among `reports` did not report."""

    world: int
    reports: tuple[RankReport, ...]


def rank_report(
    rank: int, document: Document, findings: Sequence[Finding], sources: Mapping[str, Mapping[int, str]]
) -> bytes:
    """One rank's report as bytes. Its size grows with the tensors that have a name and with nothing else."""
    small = tuple(msgspec.structs.replace(row, grad_norm=(), updates=()) for row in document.tensors if row.received)
    cited = _cited(findings, sources)
    return encoded(
        RankReport(rank, document.run.ended, document.run.exception, tuple(findings), cited, small, document.failures)
    )


def read_rank(data: bytes) -> RankReport:
    """The report in these bytes. Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=RankReport)


def _cited(findings: Sequence[Finding], sources: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, str]]:
    kept: dict[str, dict[int, str]] = defaultdict(dict)
    for finding in findings:
        for span in _spans(finding):
            lines = sources.get(span.file, {})
            for number in range(span.line - _AROUND, (span.end_line or span.line) + 4):
                if number in lines:
                    kept[span.file][number] = lines[number]
    return dict(kept)


def _spans(finding: Finding) -> list[Span]:
    edits = [edit.span for help_ in finding.help for edit in help_.edits]
    own = [finding.span] if finding.span is not None else []
    return [*own, *(label.span for label in finding.labels), *edits]


def merged_findings(findings: Sequence[Finding], others: Others) -> tuple[Finding, ...]:
    """The findings of rank 0 and of the others, each once; one that some ranks lack says on which it is.

    Two are the same if the rule is and they point at the same line, or at none and name the same tensors.
    """
    found: dict[object, tuple[Finding, list[int]]] = {_identity(finding): (finding, [0]) for finding in findings}
    for report in others.reports:
        for finding in report.findings:
            ranks = found.setdefault(_identity(finding), (finding, []))[1]
            if report.rank not in ranks:
                ranks.append(report.rank)
    reported = 1 + len(others.reports)
    whole = [
        replace(finding, ranks=tuple(ranks), facts=(*finding.facts, f"found {ranks_text(ranks, others.world)}"))
        if len(ranks) < reported
        else replace(finding, ranks=tuple(ranks))
        for finding, ranks in found.values()
    ]
    return tuple(sorted(whole, key=lambda finding: WEIGHT[finding.severity]))


def _identity(finding: Finding) -> object:
    if finding.span is None:
        return finding.rule, finding.tensors
    return finding.rule, finding.span.file, finding.span.line


def merged_sources(sources: Mapping[str, Mapping[int, str]], others: Others) -> dict[str, dict[int, str]]:
    """The lines that the findings of all ranks cite."""
    whole: dict[str, dict[int, str]] = {file: dict(lines) for file, lines in sources.items()}
    for report in others.reports:
        for file, lines in report.sources.items():
            whole[file] = {**lines, **whole.get(file, {})}
    return whole


def merged(document: Document, others: Others) -> Document:
    """The report of rank 0, in which each parameter says on which ranks the backward of that rank reached it.

    A rank that raised in its first step cannot tell: then nothing is said of what it alone lacks.
    """
    rows: dict[int, dict[str, TensorRow]] = {0: {row.name: row for row in document.tensors}}
    rows |= {report.rank: {row.name: row for row in report.tensors} for report in others.reports}
    tensors = tuple(
        msgspec.structs.replace(row, ranks=_reached(row.name, rows))
        if row.role == "parameter" and row.requires_grad and all(_counted(of, row.name) for of in rows.values())
        else row
        for row in document.tensors
    )
    run = document.run
    reports = {report.rank: report for report in others.reports}
    ranks = [RankRow(0, True, run.ended, run.exception)]
    for rank in range(1, others.world):
        report = reports.get(rank)
        known = (True, report.ended, report.exception) if report is not None else (False, None, None)
        ranks.append(RankRow(rank, *known))
    failures = [f"rank {report.rank}: {line}" for report in others.reports for line in report.failures]
    return msgspec.structs.replace(
        document, tensors=tensors, ranks=tuple(ranks), failures=(*document.failures, *failures)
    )


def _counted(rows: Mapping[str, TensorRow], name: str) -> bool:
    row = rows.get(name)
    return row is not None and row.received is not None


def _reached(name: str, rows: Mapping[int, Mapping[str, TensorRow]]) -> tuple[int, ...]:
    """The ranks whose own backward reaches a tensor: DDP puts the average into `.grad` of all ranks."""
    return tuple(
        rank
        for rank, of in sorted(rows.items())
        if (row := of.get(name)) is not None
        and row.received is not None
        and row.received.steps > 0
        and row.predicted is not False
    )


def divided(document: Document) -> dict[tuple[int, ...], list[TensorRow]]:
    """The tensors that some of the ranks that reported reach and others do not, by the ranks that do."""
    reported = tuple(row.rank for row in document.ranks if row.reported)
    groups: dict[tuple[int, ...], list[TensorRow]] = defaultdict(list)
    for row in document.tensors:
        if row.ranks and row.ranks != reported:
            groups[row.ranks].append(row)
    return dict(groups)


def ranks_text(ranks: Sequence[int], world: int, where: str = "on") -> str:
    """`on rank 1 of 2`, `on ranks 0, 2 and 3 of 8`."""
    if len(ranks) == 1:
        return f"{where} rank {ranks[0]} of {world}"
    shown = [str(rank) for rank in ranks[:8]]
    rest = len(ranks) - len(shown)
    last = f"{rest} more" if rest else shown.pop()
    return f"{where} ranks {', '.join(shown)} and {last} of {world}"
