"""Handing a report over: to standard output or a file, with its picture, and as an exit status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TextIO

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Finding, Run, Severity
from gradscope.reports.dot import Style
from gradscope.reports.drawing import check_drawable
from gradscope.reports.report import ORDER, Report
from gradscope.rules import chosen
from gradscope.shells.commands.destinations import check_writable, format_of, replace_file, written
from gradscope.shells.commands.streams import Colour, colours, columns, say, to_stream


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was asked for, checked on making: raises GradscopeError before any work is done."""

    format_: str | None
    output: Path | None
    graph: Path | None
    depth: int | None
    opened: tuple[str, ...]
    style: Style
    every_row: bool
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    fail_on: Severity | Literal["never"]
    colour: Colour
    quiet: bool

    def __post_init__(self) -> None:
        chosen(self.select, self.ignore)
        if self.output is not None:
            check_writable(self.output)
        format_of(self.format_, self.output)
        if self.graph is not None:
            check_drawable(self.graph)
            check_writable(self.graph)
        elif self._is_of_the_graph():
            raise GradscopeError("--depth, --open and --style are of the picture: name its file with --graph")

    def _is_of_the_graph(self) -> bool:
        return self.depth is not None or bool(self.opened) or self.style != "gradscope"

    def anchored(self) -> Delivery:
        """The same with absolute paths, for when the working directory may change."""
        output, graph = (path.absolute() if path is not None else None for path in (self.output, self.graph))
        return replace(self, output=output, graph=graph)

    def deliver(self, run: Run, stream: TextIO | None, further: Callable[[Report], Report] | None = None) -> int:
        """Judge a run, do what is `further` to be done with its report, write and draw; see `hand_over`."""
        report = Report.of(run, self.select, self.ignore)
        return self.hand_over(further(report) if further is not None else report, stream)

    def hand_over(self, report: Report, stream: TextIO | None) -> int:
        """Write and draw a report; `stream` is standard output, None where that is closed.

        Each is tried, whatever becomes of the other. Returns 2 where one failed, which is told in a line each, else 1
        where there is a finding at the level of `--fail-on`, else 0.
        """
        failed = max(
            attempt("the report", lambda: self._write(report, stream)), attempt("the graph", lambda: self._draw(report))
        )
        return failed or int(any(map(self.is_failing, report.findings)))

    def is_failing(self, finding: Finding) -> bool:
        """Whether a finding is at the level of `--fail-on`."""
        return self.fail_on != "never" and ORDER.index(finding.severity) >= ORDER.index(self.fail_on)

    def _write(self, report: Report, stream: TextIO | None) -> int:
        format_ = format_of(self.format_, self.output)
        if self.output is not None:
            replace_file(self.output, written(report, format_, every_row=self.every_row).encode())
        else:
            terminal = stream is not None and not stream.closed and stream.isatty()
            unicode = terminal and stream is not None and (stream.encoding or "").lower().replace("-", "") == "utf8"
            colour, width = colours(stream, self.colour), columns(stream)
            text = written(report, format_, every_row=self.every_row, colour=colour, unicode=unicode, width=width)
            to_stream(stream, text)
        return 0

    def _draw(self, report: Report) -> int:
        if self.graph is not None:
            report.render(self.graph, self.style, depth=self.depth, open=self.opened)
            if not self.quiet:
                say(f"drew {self.graph}")
        return 0


def attempt(part: str, work: Callable[[], int]) -> int:
    """The exit status of one part of what a command hands over: 2 where it fails, which is told in a line."""
    try:
        return work()
    except GradscopeError as error:
        say(str(error))
    except Exception as error:
        say(f"{part} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return 2
