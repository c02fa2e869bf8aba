"""The report as text: findings with their code, then the table. ASCII, 88 columns, colour only where asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from gradscope.graph.facts import Edit, Finding, Run
from gradscope.reports.cells import Wrapper
from gradscope.reports.diffs import changes
from gradscope.reports.document import Document, LossRow, StandInRow
from gradscope.reports.escaping import plain, plain_files
from gradscope.reports.frames import WIDTH, excerpt, frame, paint
from gradscope.reports.merging import divided, ranks_text
from gradscope.reports.table import BLOCKS, table_text
from gradscope.rules.words import listed

_CHART = 10  # places of the loss's chart
_UNBROKEN = "\0"  # a blank at which no line is broken; what is plain holds none
_HELP = Wrapper(WIDTH, initial_indent="help: ", subsequent_indent="      ")
_HEADLINE = Wrapper(WIDTH, subsequent_indent="  ")
_TRIED = Wrapper(WIDTH, initial_indent="tried: ", subsequent_indent="       ")
_TITLE = Wrapper(WIDTH, subsequent_indent="  ")
_FACTS = Wrapper(WIDTH, initial_indent="   = ", subsequent_indent="     ")


def text(
    run: Run,
    findings: Sequence[Finding],
    report: Document,
    *,
    every_row: bool = False,
    colour: bool = False,
    unicode: bool = False,
    width: int = WIDTH,
) -> str:
    """The whole report; `every_row` shows each tensor, where otherwise rows fold by module over 20.

    It is ASCII, but for the user's names and, with `unicode`, the small charts. The table takes `width` columns.
    """
    report = plain(report)
    parts = [finding_text(finding, run.sources, colour=colour) for finding in findings]
    parts.append(headline(report, unicode=unicode))
    ranks = ranks_lines(report)
    if ranks:
        parts.append("\n".join(ranks))
    if report.run.dry:
        parts.append("\n".join(dry_lines(report)))
    table = table_text(report, every_row=every_row, unicode=unicode, width=width)
    if table:
        parts.append(table)
    parts += _not_asked(report)
    parts += report.failures
    return "\n\n".join(parts) + "\n"


def _not_asked(report: Document) -> Iterator[str]:
    """A line for each thing that rules need and that was not observed."""
    for need, count in Counter(rule.needs for rule in report.not_asked).items():
        yield f"not asked: {_count(count, 'rule')} that need {need}, which were not recorded"


def headline(report: Document, *, unicode: bool = False) -> str:
    """One line on a plain report: the script, how far it ran, how the loss went, how many findings."""
    # A long line is broken between its parts and never inside one.
    unbroken = ", ".join(part.replace(" ", _UNBROKEN) for part in headline_parts(report, unicode=unicode))
    return _HEADLINE.fill(unbroken).replace(_UNBROKEN, " ")


_ENDED = {"steps": " (ended by --steps)", "finding": " (ended by --until-finding)", "interrupt": " (interrupted)"}


def headline_parts(report: Document, name: Callable[[str], str] = str, *, unicode: bool = False) -> list[str]:
    """What the headline says, with the user's words as `name` writes them, and with `unicode` a chart of the loss."""
    run = report.run
    parts = [_count(run.steps, "step")]
    processes = [_count(len(report.ranks), "rank")] if report.ranks else []
    if run.backwards and not run.steps:
        parts[0] = f"{_count(run.backwards, 'backward')}, no step"
    if run.backwards == 0:
        parts[0] = "no backward"
    if run.dry:
        processes.append("dry")
    if run.dry_ended is None:
        parts[0] += _ENDED.get(run.ended, "")
    if run.exception is not None:
        parts.append(f"raised {name(run.exception.type)}")
        if run.backwards == 0:
            del parts[0]  # it may have been backward that raised
    for loss in report.losses[:2]:
        called = name(loss.name) if loss.name.removeprefix("scaled ").isidentifier() else "loss"
        parts.append(f"{called} {_went(loss)}{_chart(loss) if unicode else ''}")
    loud = [finding for finding in report.findings if finding.severity != "info"]
    parts.append(_count(len(report.findings), "finding") if loud or report.findings else "no findings")
    return [f"gradscope: {name(report.script or 'output')}", *processes, *parts]


def dry_lines(report: Document) -> list[str]:
    """What a dry run was, why it ended, and what stood in for what."""
    run = report.run
    ended = f"; it was ended when {run.dry_ended}" if run.dry_ended is not None else ""
    lines = _HEADLINE.wrap(f"dry run: tensors were fake, no value was computed{ended}")
    stood: dict[tuple[str, str], list[StandInRow]] = {}
    for row in run.stand_ins:
        stood.setdefault((row.what, row.instead), []).append(row)
    for (what, instead), rows in stood.items():
        places = [f"{row.location.file}:{row.location.line}" for row in rows if row.location is not None]
        at = f" ({listed(places, 3)})" if places else ""
        lines += _HEADLINE.wrap(f"stood in for {what}, {_count(sum(row.count for row in rows), 'time')}: {instead}{at}")
    if run.exception is not None:
        lines += _HEADLINE.wrap(
            f"what stopped it: {run.exception.type}, which a run with values may not raise where one was stood in for"
        )
    return lines


def ranks_lines(report: Document) -> list[str]:
    """Where the ranks of a plain report differ: in how they ended, and in which tensors their own backward reaches."""
    lines = []
    world = len(report.ranks)
    silent = [row.rank for row in report.ranks if not row.reported]
    if silent:
        lines += _HEADLINE.wrap(f"no report came {ranks_text(silent, world, 'from')}: what it found is missing here")
    for row in report.ranks[1:]:
        if row.exception is not None:
            place = f" at {row.exception.file}:{row.exception.line}" if row.exception.file is not None else ""
            lines += _HEADLINE.wrap(f"rank {row.rank} raised {row.exception.type}{place}")
    for ranks, rows in divided(report).items():
        others = [row.rank for row in report.ranks if row.reported and row.rank not in ranks]
        places = dict.fromkeys(f"{row.location.file}:{row.location.line}" for row in rows if row.location is not None)
        made = f" (made at {listed(list(places), 3)})" if places else ""
        lines += _HEADLINE.wrap(
            f"reached by backward {ranks_text(ranks, world)} and not {ranks_text(others, world)}: "
            f"{listed([row.name for row in rows])}{made}"
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _went(loss: LossRow) -> str:
    """From where to where the loss went; where it is not finite to the end, since when."""
    if loss.steps == 1 and loss.first == loss.last:
        return _number(loss.last)
    finite = [place for place, value in enumerate(loss.series) if value is not None]
    since = ""
    if loss.last is None and finite:
        step = (finite[-1] + 1) * loss.stride + 1
        since = f" since {'about ' if loss.stride > 1 else ''}step {step:,}"
    return f"{_number(loss.first)} -> {_number(loss.last)}{since}"


def _chart(loss: LossRow) -> str:
    """The loss over the steps as a few blocks, on a linear scale; `!` for a part of them that was not finite."""
    if len(loss.series) < 3:
        return ""
    places = min(_CHART, len(loss.series))
    size = len(loss.series)
    parts = [loss.series[size * place // places : size * (place + 1) // places] for place in range(places)]
    means = [None if None in part else sum(value or 0.0 for value in part) / len(part) for part in parts]
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return " " + "".join("!" if mean is None else BLOCKS[round((mean - low) * scale)] for mean in means)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def finding_text(finding: Finding, sources: Mapping[str, Mapping[int, str]], *, colour: bool = False) -> str:
    """One finding in full."""
    finding, sources = plain(finding), plain_files(sources)
    title = paint(f"{finding.severity}[{finding.rule}]", finding.severity, colour)
    lines = _TITLE.wrap(f"{finding.severity}[{finding.rule}]: {finding.message}")
    lines[0] = title + lines[0].removeprefix(f"{finding.severity}[{finding.rule}]")
    lines += evidence(finding, sources, colour=colour)
    for help_ in finding.help:
        lines += _HELP.wrap(help_.message)
        lines += edit_lines(help_.edits, sources)
        if help_.tried is not None:
            lines += _TRIED.wrap(help_.tried.message)
    if finding.allowed_at is not None:
        lines.append(
            f"help: if this is on purpose, end line {finding.allowed_at} with `# gradscope: allow[{finding.rule}]`"
        )
    lines.append(f"   = more: gradscope rule {finding.rule}")
    return "\n".join(lines)


def evidence(finding: Finding, sources: Mapping[str, Mapping[int, str]], *, colour: bool = False) -> list[str]:
    """The lines of code that a plain finding is about, then its facts."""
    lines = frame(finding, sources, colour) if finding.span is not None else []
    for fact in finding.facts:
        lines += _FACTS.wrap(fact)
    return lines


def edit_lines(edits: Sequence[Edit], sources: Mapping[str, Mapping[int, str]]) -> list[str]:
    """The edits of one mend as a diff; empty where a line of it was not kept."""
    found = changes(edits, sources)
    if not found:
        return []
    gutter = max(len(str(change.first + len(change.before))) for change in found)
    lines = [f"{'':{gutter}} |"]
    for number, change in enumerate(found):
        if number:
            lines.append("...")
        if len({edit.span.file for edit in edits}) > 1:
            lines.append(f"{'':{gutter}} {change.file}")
        for sign, code in (("-", change.before), ("+", change.after)):
            for line, text in enumerate(code, change.first):
                lines.append(f"{line:>{gutter}} {sign} {excerpt(text, change.column).text}".rstrip())
    return [*lines, f"{'':{gutter}} |"]
