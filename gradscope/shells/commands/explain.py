"""`gradscope explain`: run a script under observation and report."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import click

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Run
from gradscope.graph.storage import encode
from gradscope.reports.report import Report
from gradscope.shells.commands.delivery import Delivery, attempt
from gradscope.shells.commands.destinations import check_apart, check_writable, replace_file
from gradscope.shells.commands.options import report_options
from gradscope.shells.commands.streams import say
from gradscope.shells.trials.fixing import Fixing, with_first_tried
from gradscope.shells.trials.runs import Wanted


@click.command("explain", context_settings={"allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, to be run as `python -m` does.")
@click.option("--steps", type=click.IntRange(min=1), help="End the script after this many optimizer steps.")
@click.option("--save", type=click.Path(path_type=Path), help="Keep the observed run, for `gradscope show`.")
@click.option(
    "--check",
    "checks",
    type=click.Choice(["batch"]),
    multiple=True,
    help="Also check whether one sample's output depends on others.",
)
@click.option(
    "--try", "try_", is_flag=True, help="Try the mend of the first finding: the script runs again, its files unchanged."
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds that a trial may take."
)
@click.option("--dry", is_flag=True, help="Run with fake tensors: no values, no GPU, any size.")
@report_options
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    script: str,
    args: tuple[str, ...],
    module: bool,
    steps: int | None,
    save: Path | None,
    checks: tuple[str, ...],
    delivery: Delivery,
    *,
    try_: bool,
    timeout: float,
    dry: bool,
) -> int:
    """Run SCRIPT with ARGS as Python would, and explain its gradients.

    The report follows the script's own output. The exit code is the script's own where that is not 0, else 2 for misuse
    or a file that could not be written, 1 where there is a finding at the level of --fail-on, or 0.
    """
    if save is not None:
        check_writable(save)
    check_apart((None if module else Path(script), save, delivery.output, delivery.graph))
    try:
        from gradscope.probes.program.scripts import observe_program, program_of_module, program_of_script, show
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise GradscopeError("there is no torch in the environment of gradscope: install it there") from None
    from gradscope.probes.program.exchange import place_of
    from gradscope.shells.live import Live
    from gradscope.shells.ranks import Ranks

    stream = sys.stdout  # the script may put another one there
    program = program_of_module(script, args) if module else program_of_script(script, args)
    check_apart((Path(program.file), save, delivery.output, delivery.graph))
    # Files are named from where the user stands, and the script may go elsewhere.
    delivery, save = delivery.anchored(), save.absolute() if save is not None else None
    place = place_of(os.environ)
    ranks = Ranks(place) if place is not None else None
    if try_ and ranks is not None:
        raise GradscopeError("a mend is tried in one process: start the script without a launcher, or leave out --try")
    wanted = Wanted(script, args, module, steps, checks)
    if place is not None and place.rank:
        save = save.with_suffix(f".rank{place.rank}{save.suffix}") if save is not None else None
    live = Live(sys.stderr or open(os.devnull, "w", encoding="utf-8"), delivery.select, delivery.ignore)  # noqa: SIM115
    folder = Path.cwd()

    def tried(report: Report) -> Report:
        say("the script runs again for each mend that is tried; its files stay as they are")
        return with_first_tried(report, Fixing(wanted, report, folder, timeout, delivery.select, delivery.ignore, say))

    try:
        outcome = observe_program(
            program,
            steps,
            checks,
            live.step if place is None or place.rank == 0 else None,
            ranks.begin if ranks is not None else None,
            dry=dry,
        )
    finally:
        live.end()
    if not _flushed(stream):
        stream = None  # Python tries again at its end, and complains as it would without us
    if outcome.lost is not None:
        say(f"the report failed: {outcome.lost}")
        failed = 2
    else:
        kept = attempt("keeping the run", lambda: _keep(outcome.run, save))
        reported = attempt(
            "the report",
            lambda: (
                ranks.deliver(delivery, outcome, stream)
                if ranks
                else delivery.deliver(outcome.run, stream, tried if try_ else None)
            ),
        )
        failed = max(kept, reported)
    outcome.leave()
    status = show(outcome.error) if outcome.error is not None else outcome.status
    if ranks is not None:
        ranks.end()
    return status if status & 0xFF else failed  # of 256, Python makes 0 as well


def _flushed(stream: TextIO | None) -> bool:
    """Whether all that the script has written is where it goes; what it has closed itself is none of ours."""
    if sys.stdout is not stream:
        with suppress(Exception):  # it may be anything
            sys.stdout.flush()
    try:
        if stream is not None and not stream.closed:
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _keep(run: Run, save: Path | None) -> int:
    if save is not None:
        replace_file(save, encode(run))
    return 0
