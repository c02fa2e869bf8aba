"""Handing a report over: to standard output or a file, with its picture, and as an exit status."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from gradscope.graph.facts import Run
from gradscope.reports.dot import Style
from gradscope.reports.drawing import check_drawable
from gradscope.reports.escaping import shown
from gradscope.reports.report import Report
from gradscope.rules import chosen
from gradscope.shells.commands.destinations import check_writable, format_of, replace_file, written


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
    fail_on: str

    def __post_init__(self) -> None:
        chosen(self.select, self.ignore)
        if self.output is not None:
            check_writable(self.output)
        format_of(self.format_, self.output)
        if self.graph is not None:
            check_drawable(self.graph)

    def anchored(self) -> Delivery:
        """The same with absolute paths, for when the working directory may change."""
        output, graph = (path.absolute() if path is not None else None for path in (self.output, self.graph))
        return replace(self, output=output, graph=graph)

    def deliver(self, run: Run, stream: TextIO) -> int:
        """Judge a run, write and draw; return 1 where there is a finding at the level of `--fail-on`, else 0."""
        return self.hand_over(Report.of(run, self.select, self.ignore), stream)

    def hand_over(self, report: Report, stream: TextIO) -> int:
        """Write and draw a report; return 1 where there is a finding at the level of `--fail-on`, else 0."""
        format_ = format_of(self.format_, self.output)
        if self.output is not None:
            replace_file(self.output, written(report, format_, every_row=self.every_row).encode())
        else:
            colour = stream.isatty() and "NO_COLOR" not in os.environ
            unicode = stream.isatty() and (stream.encoding or "").lower().replace("-", "") == "utf8"
            stream.write(written(report, format_, every_row=self.every_row, colour=colour, unicode=unicode))
            stream.flush()
        if self.graph is not None:
            report.render(self.graph, self.style, depth=self.depth, open=self.opened)
            print(f"gradscope: drew {shown(str(self.graph))}", file=sys.stderr)
        if self.fail_on == "never":
            return 0
        return int(bool(report.at_least(self.fail_on)))  # type: ignore[arg-type]
