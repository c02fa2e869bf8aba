"""`gradscope show`: every report again from a kept run, without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gradscope.graph.storage import load
from gradscope.reports.dot import Style
from gradscope.reports.report import Report
from gradscope.shells.commands.delivery import Delivery
from gradscope.shells.commands.options import report_options


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@report_options
def command(
    run: Path, format_: str | None, output: Path | None, graph: Path | None, style: Style, every_row: bool, fail_on: str
) -> int:
    """Report again on the run that `gradscope explain --save RUN` kept."""
    delivery = Delivery(format_, output, graph, style, every_row, fail_on)
    return delivery.deliver(Report.of(load(run)), sys.stdout)
