"""`gradscope explain`: run a script under observation and report."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from gradscope.errors import GradscopeError
from gradscope.shells.commands.delivery import Delivery
from gradscope.shells.commands.destinations import check_apart, check_writable, replace_file
from gradscope.shells.commands.options import report_options


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
) -> int:
    """Run SCRIPT with ARGS as Python would, and explain its gradients.

    The report follows the script's own output. The exit code is 0, or 1 where there is a finding at the level of
    --fail-on, or 2 for misuse, else the script's own.
    """
    if save is not None:
        check_writable(save)
    check_apart((None if module else Path(script), save, delivery.output, delivery.graph))
    try:
        from gradscope.probes.scripts import observe_program, program_of_module, program_of_script, show
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise GradscopeError("there is no torch in the environment of gradscope: install it there") from None
    from gradscope.graph.storage import encode
    from gradscope.probes.exchange import place_of
    from gradscope.reports.escaping import shown
    from gradscope.shells.live import Live
    from gradscope.shells.ranks import Ranks

    stream = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - stands in for a closed stream
    program = program_of_module(script, args) if module else program_of_script(script, args)
    # Files are named from where the user stands, and the script may go elsewhere.
    delivery, save = delivery.anchored(), save.absolute() if save is not None else None
    place = place_of(os.environ)
    ranks = Ranks(place) if place is not None else None
    if place is not None and place.rank:
        save = save.with_suffix(f".rank{place.rank}{save.suffix}") if save is not None else None
    live = Live(sys.stderr or open(os.devnull, "w", encoding="utf-8"), delivery.select, delivery.ignore)  # noqa: SIM115
    try:
        outcome = observe_program(
            program,
            steps,
            checks,
            live.step if place is None or place.rank == 0 else None,
            ranks.begin if ranks is not None else None,
        )
    finally:
        live.end()
    failed = 0
    try:
        if not stream.closed:
            stream.flush()
        if save is not None:
            replace_file(save, encode(outcome.run))
        failed = ranks.deliver(delivery, outcome, stream) if ranks else delivery.deliver(outcome.run, stream)
    except GradscopeError as error:
        click.echo(f"gradscope: {shown(str(error))}", err=True)
        failed = error.exit_code
    except BrokenPipeError:
        # Who reads the report has enough of it; nothing more can be said there, at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (OSError, ValueError) as error:
        click.echo(f"gradscope: cannot write the report to standard output: {error}; use -o FILE", err=True)
        failed = 2
    except Exception as error:
        click.echo(f"gradscope: the report failed: {shown(f'{type(error).__name__}: {error}')}", err=True)
    outcome.leave()
    status = show(outcome.error) if outcome.error is not None else outcome.status
    if ranks is not None:
        ranks.end()
    return failed or status
