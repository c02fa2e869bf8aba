"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

_SHARED = (
    click.option(
        "--format", "format_", type=click.Choice(["text", "json"]), help="Format of the report  [default: text]."
    ),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path), help="Write the report there; the format follows the ending."
    ),
    click.option(
        "--graph", type=click.Path(path_type=Path), help="Also draw the graph: .png .svg .pdf .dot by its ending."
    ),
    click.option(
        "--style", type=click.Choice(["gradscope", "torchviz"]), default="gradscope", help="How the graph is drawn."
    ),
    click.option("--all", "every_row", is_flag=True, help="Show every tensor, also in a table of over 20 rows."),
    click.option(
        "--fail-on",
        type=click.Choice(["error", "warning", "info", "never"]),
        default="error",
        show_default=True,
        help="Exit with 1 if there is a finding of this severity or worse.",
    ),
)


def report_options(function: _F) -> _F:
    """The options of all commands that give a report."""
    for option in reversed(_SHARED):
        function = option(function)
    return function
