"""`gradscope diff`: what a change did to a program, from two kept runs or JSON reports."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from gradscope.graph.storage import RunUnreadable, checked, contents
from gradscope.graph.texts import encoded
from gradscope.reports.difference import difference, difference_text
from gradscope.reports.document import SCHEMA, Document
from gradscope.reports.escaping import printable_json
from gradscope.reports.report import ORDER, Report
from gradscope.shells.commands.streams import to_stream


@click.command("diff")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to write."
)
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 if there is a new finding of this severity or worse.",
)
def command(before: Path, after: Path, format_: str, fail_on: str) -> int:
    """Compare AFTER with BEFORE: findings that are gone or new, tensors that learn now or no longer.

    Both are runs that `gradscope explain --save` kept, or reports that `--format json` wrote.
    """
    found = difference(_document(before), _document(after))
    if format_ == "json":
        told = printable_json(msgspec.json.format(encoded(found), indent=1).decode()) + "\n"
    else:
        told = difference_text(found, str(before), str(after))
    to_stream(sys.stdout, told)
    if fail_on == "never":
        return 0
    level = next(place for place, severity in enumerate(ORDER) if severity == fail_on)
    return int(any(ORDER.index(row.severity) >= level for row in found.new))


def _document(path: Path) -> Document:
    """The report in a file, or on the run that is in it. Raises RunUnreadable."""
    data = contents(path)
    try:
        report = msgspec.json.decode(data, type=Document)
        if report.schema == SCHEMA:
            return report
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        run = checked(data, str(path))
    except RunUnreadable as error:
        raise RunUnreadable(f"{error} (or a report: `gradscope explain --format json -o {path.name} SCRIPT`)") from None
    return Report.of(run).document
