"""`gradscope fix`: try the mends that findings propose, and write those that help."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import click
import msgspec

from gradscope import __version__
from gradscope.graph.facts import Finding
from gradscope.graph.texts import encoded
from gradscope.reports.escaping import printable_json, shown
from gradscope.reports.report import Report
from gradscope.reports.text import finding_text, headline
from gradscope.rules import chosen
from gradscope.shells.commands.options import RULE_NAMES, rule_names
from gradscope.shells.commands.streams import colours, say, to_stream
from gradscope.shells.trials.files import Source, write
from gradscope.shells.trials.fixing import Fixing, Tried
from gradscope.shells.trials.runs import NotRun, Wanted, run

_STANDARD_ERROR = 2


class Fixed(msgspec.Struct, frozen=True):
    """What `--format json` gives: the findings with what came of their mends, what is left, and the whole change."""

    gradscope: str
    script: str
    argv: tuple[str, ...]
    findings: tuple[Finding, ...]
    left: tuple[Finding, ...]
    files: tuple[str, ...]
    diff: str
    applied: bool
    schema: str = "gradscope.fix/1"


@click.command("fix", context_settings={"allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, to be run as `python -m` does.")
@click.option("--apply", is_flag=True, help="Write the mends that help into the files.")
@click.option(
    "--rule",
    "rules",
    type=RULE_NAMES,
    multiple=True,
    callback=rule_names,
    metavar="RULE[,RULE]",
    help="Mend only these.",
)
@click.option(
    "--ignore",
    type=RULE_NAMES,
    multiple=True,
    callback=rule_names,
    metavar="RULE[,RULE]",
    help="Leave these rules out.",
)
@click.option("--steps", type=click.IntRange(min=1), help="End each run after this many optimizer steps.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds that one trial may take."
)
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="Format of the report.")
@click.argument("script", type=click.Path(readable=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    script: str,
    args: tuple[str, ...],
    *,
    module: bool,
    apply: bool,
    rules: tuple[str, ...],
    ignore: tuple[str, ...],
    steps: int | None,
    timeout: float,
    format_: str,
) -> int:
    """Run SCRIPT with ARGS, and try the mend of each finding by running it again.

    Each trial runs the whole script in a process of its own, on changed sources that are served from memory: the files
    stay as they are, unless --apply writes the mends that help. What else the script does (files, network) it does in
    each run. The exit code is 0 where nothing is left to mend, 1 where something is, 2 for misuse.
    """
    chosen((), (*rules, *ignore))
    folder = Path.cwd()
    wanted = Wanted(script, args, module, steps)
    say(f"{script} runs once as it is, and once more for each mend that is tried; its files stay as they are")
    try:
        first = run(wanted, output=_STANDARD_ERROR if format_ == "json" else None)
    except NotRun:
        return 2
    assert first.run is not None  # nothing limits the first run
    fixing = Fixing(wanted, Report.of(first.run, (), ignore), folder, timeout, (), ignore, say)
    before = fixing.report
    tried = fixing.all(rules)
    changed = fixing.changed
    if apply and changed:
        write(changed, fixing.seen, folder)
    left = fixing.report.at_least("warning")
    diff = "".join(_diff(file, fixing.seen[file], source) for file, source in changed.items())
    if format_ == "json":
        fixed = Fixed(
            __version__,
            script,
            args,
            tuple(each.finding for each in tried),
            left,
            tuple(changed),
            diff,
            apply and bool(changed),
        )
        to_stream(sys.stdout, printable_json(msgspec.json.format(encoded(fixed), indent=1).decode()) + "\n")
    else:
        to_stream(sys.stdout, _text(before, tried, left, tuple(changed), applied=apply))
    return int(bool(left))


def _text(
    before: Report, tried: list[Tried], left: tuple[Finding, ...], changed: tuple[str, ...], *, applied: bool
) -> str:
    colour = colours(sys.stdout)
    parts = [finding_text(each.finding, each.sources, colour=colour) for each in tried]
    if not before.at_least("warning"):
        parts.append(f"{headline(before.document)}\nnothing to mend")
        return "\n\n".join(parts) + "\n"
    helped = sum(each.helped for each in tried)
    said = f"gradscope: {helped} of {len(tried)} findings mended" if tried else "gradscope: nothing was tried"
    if left:
        said += f", {len(left)} left: {', '.join(finding.rule for finding in left)}"
    lines = [said]
    if changed:
        files = ", ".join(map(shown, changed))
        lines.append(f"wrote {files}" if applied else f"to write the mends that help into {files}, add --apply")
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _diff(file: str, before: Source, after: Source) -> str:
    lines = difflib.unified_diff(before.lines, after.lines, f"a/{file}", f"b/{file}", lineterm="")
    return "".join(f"{line}\n" for line in lines)
