"""`gradscope explain`: run a script under observation and report."""

from __future__ import annotations

import linecache
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
from gradscope.shells.commands.streams import say, to_stream
from gradscope.shells.trials.fixing import Fixing, with_first_tried
from gradscope.shells.trials.runs import Wanted

_MISUSE = 2  # what a script ends with that was given what it does not know


@click.command("explain", context_settings={"allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, to be run as `python -m` does.")
@click.option("--steps", type=click.IntRange(min=1), help="End the script after this many optimizer steps.")
@click.option("--save", type=click.Path(path_type=Path), help="Keep the observed run, for `gradscope show`.")
@click.option(
    "--check",
    "checks",
    type=click.Choice(["batch", "functions"]),
    multiple=True,
    help="Also check whether one sample's output depends on others, or whether custom backwards are right by value.",
)
@click.option(
    "--try", "try_", is_flag=True, help="Try the mend of the first finding: the script runs again, its files unchanged."
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds that a trial may take."
)
@click.option("--dry", is_flag=True, help="Run with fake tensors: no values, no GPU, any size.")
@click.option("--until-finding", is_flag=True, help="End the script at the first finding at the level of --fail-on.")
@click.option("--no-progress", is_flag=True, help="Never tell how far a run has come that is silent for long.")
@report_options
@click.argument("script", type=click.Path(readable=False))
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
    until_finding: bool,
    no_progress: bool,
) -> int:
    """Run SCRIPT with ARGS as Python would, and explain its gradients.

    The report follows the script's own output. The exit code is the script's own where that is not 0, else 2 for misuse
    or a file that could not be written, 1 where there is a finding at the level of --fail-on, or 0.
    """
    if until_finding and delivery.fail_on == "never":
        raise GradscopeError("--until-finding needs a level to end at: give --fail-on error, warning or info")
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
    from gradscope.shells.lines import Lines
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
    lines = Lines(sys.stderr or open(os.devnull, "w", encoding="utf-8"), stream)  # noqa: SIM115
    live = Live(
        None if delivery.quiet else lines,
        delivery.select,
        delivery.ignore,
        progress=not no_progress and sys.stderr is not None and sys.stderr.isatty(),
        until=delivery.is_failing if until_finding else None,
    )
    folder = Path.cwd()

    def tried(report: Report) -> Report:
        say("the script runs again for each mend that is tried; its files stay as they are")
        return with_first_tried(report, Fixing(wanted, report, folder, timeout, delivery.select, delivery.ignore, say))

    with lines:
        outcome = observe_program(
            program,
            steps,
            checks,
            live.step if place is None or place.rank == 0 else None,
            ranks.begin if ranks is not None else None,
            dry=dry,
        )
        flushed = _flushed(stream)
    if not flushed:
        stream = None  # Python tries again at its end, and complains as it would without us
    elif delivery.output is None and stream is not None and not lines.at_beginning(stream):
        to_stream(stream, "\n")  # the script has left its last line open
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
    if not delivery.quiet:
        _hint_at_misplaced_options(program.file, args, status)
    return status if status & 0xFF else failed  # of 256, Python makes 0 as well


def _hint_at_misplaced_options(file: str, args: tuple[str, ...], status: int) -> None:
    """Tell of options of ours behind the script's name, where the script has no use for them."""
    ours = {name for option in command.params for name in option.opts if name.startswith("--")}
    misplaced = [arg for arg in args if arg.partition("=")[0] in ours]
    if not misplaced:
        return
    source = "".join(linecache.getlines(file))
    reads = any(word in source for word in ("argv", "argparse", *(name.strip("-") for name in misplaced)))
    if status == _MISUSE or not reads:
        say(f"{misplaced[0]} went to the script, as all that follows its name: options of gradscope stand before it")


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
