"""The report as text: findings with their code, then the table. ASCII, 88 columns, colour only where asked for."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from gradscope.graph.facts import Edit, Finding, Run
from gradscope.graph.naming import shape_text
from gradscope.reports.cells import Wrapper, cells, left, right, shortened
from gradscope.reports.diffs import changes
from gradscope.reports.document import Document, StandInRow, TensorRow, median_norm
from gradscope.reports.escaping import plain, plain_files
from gradscope.reports.frames import WIDTH, excerpt, frame, paint
from gradscope.reports.merging import divided, ranks_text
from gradscope.rules.words import listed

ROWS = 20
_NAME = 32
_SHORTEST = 16
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
) -> str:
    """The whole report; `every_row` shows each tensor, where otherwise rows fold by module over 20.

    It is ASCII, but for the user's names and, with `unicode`, the small charts.
    """
    report = plain(report)
    parts = [finding_text(finding, run.sources, colour=colour) for finding in findings]
    parts.append(headline(report))
    ranks = ranks_lines(report)
    if ranks:
        parts.append("\n".join(ranks))
    if report.run.dry:
        parts.append("\n".join(dry_lines(report)))
    table = table_text(report.tensors, every_row=every_row, unicode=unicode, dry=report.run.dry)
    if table:
        parts.append(table)
    parts += _not_asked(report)
    parts += report.failures
    return "\n\n".join(parts) + "\n"


def _not_asked(report: Document) -> Iterator[str]:
    """A line for each thing that rules need and that was not observed."""
    for need, count in Counter(rule.needs for rule in report.not_asked).items():
        yield f"not asked: {_count(count, 'rule')} that need {need}, which were not recorded"


def headline(report: Document) -> str:
    """One line on a plain report: the script, how far it ran, how the loss went, how many findings."""
    # A long line is broken between its parts and never inside one.
    unbroken = ", ".join(part.replace(" ", _UNBROKEN) for part in headline_parts(report))
    return _HEADLINE.fill(unbroken).replace(_UNBROKEN, " ")


def headline_parts(report: Document, name: Callable[[str], str] = str) -> list[str]:
    """What the headline says, with the user's words as `name` writes them."""
    run = report.run
    parts = [_count(run.steps, "step")]
    processes = [_count(len(report.ranks), "rank")] if report.ranks else []
    if run.dry:
        processes.append("dry")
    if run.ended in ("steps", "interrupt") and run.dry_ended is None:
        parts[0] += " (ended by --steps)" if run.ended == "steps" else " (interrupted)"
    if run.exception is not None:
        parts.append(f"raised {name(run.exception.type)}")
    if run.backwards and not run.steps:
        parts[0] = f"{_count(run.backwards, 'backward')}, no step"
    if run.backwards == 0:
        parts = ["no backward", *parts[1:]]
    for loss in report.losses[:2]:
        called = name(loss.name) if loss.name.removeprefix("scaled ").isidentifier() else "loss"
        parts.append(f"{called} {_number(loss.first)} -> {_number(loss.last)}")
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


_COLUMNS = ("tensor", "shape", "role", "leaf", "requires", "got grad", "|grad|", "moved")
_COURSE = 6
_FLAT = math.log(4)  # a course within a factor of 4 is drawn as nearly flat
_BLOCKS = "\N{LOWER ONE EIGHTH BLOCK}\u2582\u2583\u2584\u2585\u2586\u2587\N{FULL BLOCK}"
_LETTERS = "_.:-=+*#"


def table_text(rows: Sequence[TensorRow], *, every_row: bool = False, unicode: bool = False, dry: bool = False) -> str:
    """The table of the tensors of a plain report.

    A non-leaf has no gradient to count: there the row names the `grad_fn` that made it.
    Of a `dry` run it tells where a gradient would arrive.
    Where there is room, rows end with the course of |grad| over the steps, on a logarithmic scale.
    """
    if not rows:
        return ""
    folded = list(rows) if every_row or len(rows) <= ROWS else fold(rows)
    written = [_cells(row) if isinstance(row, TensorRow) else row for row in folded]
    courses = [_course(row, unicode) if isinstance(row, TensorRow) else "" for row in folded]
    with_course = any(courses) and _total(_fitted(written, WIDTH - _COURSE - 2)) <= WIDTH - _COURSE - 2
    written = _fitted(written, WIDTH - _COURSE - 2 if with_course else WIDTH)
    # A row of fewer cells ends with a text that runs over the columns which are left.
    widths = _widths(written)
    lines = []
    for row, course in zip([columns(_COLUMNS, dry=dry), *written], ["course", *courses], strict=True):
        whole = len(row) == len(_COLUMNS)
        padded = [
            (right if place in _NUMBERS and whole else left)(cell, widths[place]) for place, cell in enumerate(row)
        ]
        if with_course and whole:
            padded.append(course)
        lines.append("  ".join(padded).rstrip())
    hidden = len(rows) - sum(isinstance(row, TensorRow) for row in folded)
    if hidden:
        lines.append(f"({hidden} tensors are folded by module; --all shows each)")
    return "\n".join(lines)


def columns(names: tuple[str, ...], *, dry: bool) -> tuple[str, ...]:
    """The heads of columns, those of a dry run where it is one."""
    return tuple("predicted" if dry and name == "got grad" else name for name in names)


_Cells = tuple[str, ...]
_NUMBERS = frozenset({5, 6, 7})


def _widths(rows: list[_Cells]) -> list[int]:
    """The width of each column; a text that runs over several widens none."""
    whole = [row if len(row) == len(_COLUMNS) else row[:-1] for row in [_COLUMNS, *rows]]
    return [max(cells(row[place]) for row in whole if len(row) > place) for place in range(len(_COLUMNS))]


def _total(rows: list[_Cells]) -> int:
    widths = _widths(rows)
    return sum(widths) + 2 * (len(widths) - 1)


def _fitted(rows: list[_Cells], width: int) -> list[_Cells]:
    """The rows with their names shortened as far as it takes to keep to a width."""
    widest = _widths(rows)
    room = max(_SHORTEST, widest[0] - (_total(rows) - width))
    return [(shortened(row[0], min(_NAME, room)), *row[1:]) for row in rows]


def _cells(row: TensorRow) -> _Cells:
    kind = (
        row.name,
        shape_text(row.shape),
        row.role,
        "yes" if row.leaf else "no",
        "yes" if row.requires_grad else "no",
    )
    if row.grad_fn is not None:
        return (*kind, f"by {row.grad_fn}")
    return (*kind, received_text(row), _norm(median_norm(row)), moved_text(row))


def received_text(row: TensorRow) -> str:
    """In how many steps a gradient arrived: `20/20`; `z20/20`: all were zero, `20/20 z3`: 3 were; `!`: not finite.

    Where nothing was counted it says what was predicted, if anything was.
    """
    if row.received is None:
        return "-" if row.predicted is None or row.role != "parameter" else "yes" if row.predicted else "no"
    counted = {"z": row.received.zero, "!": row.received.nonfinite}
    before = "".join(mark for mark, count in counted.items() if count and count == row.received.steps)
    behind = "".join(f" {mark}{count}" for mark, count in counted.items() if 0 < count < row.received.steps)
    return f"{before}{row.received.steps}/{row.received.of}{behind}"


def _course(row: TensorRow, unicode: bool) -> str:
    """The norms of a gradient over the steps as a few characters; `!` for one that was not finite, " " for zero."""
    norms = row.grad_norm
    if len(norms) < 3:
        return ""
    marks = _BLOCKS if unicode else _LETTERS
    places = min(_COURSE, len(norms))
    chunks = [norms[len(norms) * place // places : len(norms) * (place + 1) // places] for place in range(places)]
    means = [None if None in chunk else statistics.fmean(norm or 0.0 for norm in chunk) for chunk in chunks]
    logs = [math.log(mean) for mean in means if mean]
    middle = (min(logs, default=0.0) + max(logs, default=0.0)) / 2
    span = max(max(logs, default=0.0) - min(logs, default=0.0), _FLAT)
    scale = len(marks) - 1
    return "".join(
        "!" if mean is None else " " if mean == 0 else marks[round(((math.log(mean) - middle) / span + 0.5) * scale)]
        for mean in means
    )


def _norm(norm: float | None) -> str:
    return "-" if norm is None else f"{norm:.1e}"


def moved_text(row: TensorRow) -> str:
    """How far a parameter moved: `18.5%`, `from 0`, `no`, `frozen`."""
    if row.role != "parameter":
        return "-"
    if not row.requires_grad:
        return "frozen" if not row.moved else f"{row.moved:.1%}"
    if row.from_zero:
        return "from 0"
    if row.moved is None:
        return "-"
    return "no" if row.moved == 0 else f"{row.moved:.1%}"


def fold(rows: Sequence[TensorRow]) -> list[TensorRow | _Cells]:
    """Rows of one module and role become one, at the depth that leaves at most `ROWS` of them."""
    deepest = max(row.name.count(".") for row in rows)
    for depth in range(deepest, -1, -1):
        groups: dict[tuple[str, str], list[TensorRow]] = {}
        for row in rows:
            path = row.name.split(".")
            key = ".".join(path[:depth]) if row.role in ("parameter", "buffer") and len(path) > depth else row.name
            groups.setdefault((key, row.role), []).append(row)
        if len(groups) <= ROWS or depth == 0:
            return [group[0] if len(group) == 1 else _folded(key, group) for (key, _), group in groups.items()]
    return list(rows)


def _folded(path: str, rows: Sequence[TensorRow]) -> _Cells:
    counts = [row.received.steps > 0 if row.received else row.predicted for row in rows]
    counts = [told for told in counts if told is not None]
    reached = sum(map(bool, counts))
    norms = [norm for norm in map(median_norm, rows) if norm is not None]
    moving = [row for row in rows if row.moved or row.from_zero]
    measured = any(row.moved is not None or row.from_zero for row in rows if row.role == "parameter")
    trainable = sum(row.requires_grad for row in rows)
    return (
        f"{path}.*" if path else "*",
        f"{len(rows)} tensors",
        rows[0].role,
        "yes" if all(row.leaf for row in rows) else "no",
        "yes" if trainable == len(rows) else "no" if not trainable else f"{trainable} of {len(rows)}",
        f"{reached} of {len(rows)}" if counts else "-",
        _norm(sorted(norms)[len(norms) // 2]) if norms else "-",
        f"{len(moving)} of {len(rows)}" if measured else "-",
    )
