"""`gradscope show`: every report again from a kept run, without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gradscope.graph.storage import load
from gradscope.shells.commands.delivery import Delivery
from gradscope.shells.commands.destinations import check_apart
from gradscope.shells.commands.options import report_options


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@report_options
def command(run: Path, delivery: Delivery) -> int:
    """Report again on the run that `gradscope explain --save RUN` kept."""
    check_apart((run, delivery.output, delivery.graph))
    return delivery.deliver(load(run), sys.stdout)
