"""`gradscope show`: every report again from a kept run, without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gradscope.errors import GradscopeError
from gradscope.graph.storage import RunUnreadable, load
from gradscope.shells.commands.delivery import Delivery
from gradscope.shells.commands.destinations import check_apart
from gradscope.shells.commands.options import report_options


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@report_options
def command(run: Path, delivery: Delivery) -> int:
    """Report again on the run that `gradscope explain --save RUN` kept."""
    check_apart((run, delivery.output, delivery.graph))
    kept = load(run)
    try:
        return delivery.deliver(kept, sys.stdout)
    except GradscopeError:
        raise
    except Exception as error:
        raise RunUnreadable(f"{run} is damaged: no report can be made of it ({type(error).__name__})") from None
