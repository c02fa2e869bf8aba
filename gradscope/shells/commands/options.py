"""The options of all commands that give a report."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import click.shell_completion

from gradscope.shells.commands.delivery import Delivery
from gradscope.shells.commands.destinations import FORMATS


def rule_names(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """RULE[,RULE], given once or more often."""
    return tuple(name.strip() for text in value for name in text.split(",") if name.strip())


def once(_: click.Context, option: click.Parameter, value: tuple[Path, ...]) -> Path | None:
    """A file that may be named once: what is named first would be forgotten in silence."""
    if len(value) > 1:
        raise click.BadParameter(f"given {len(value)} times, and there is one report: name one file", param=option)
    return value[0] if value else None


class _RuleNames(click.ParamType[str]):
    """RULE[,RULE], which a shell can complete."""

    name = "rules"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The names of rules that begin so, behind what is named already."""
        from gradscope.rules import RULES

        before, comma, begun = incomplete.rpartition(",")
        return [
            click.shell_completion.CompletionItem(before + comma + rule.name)
            for rule in RULES
            if rule.name.startswith(begun)
        ]


RULE_NAMES = _RuleNames()

_OPTIONS = (
    click.option("--format", "format_", type=click.Choice(FORMATS), help="Format of the report  [default: text]."),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        multiple=True,
        callback=once,
        help="Write the report there; the format follows the ending.",
    ),
    click.option(
        "--graph", type=click.Path(path_type=Path), help="Also draw the graph: .png .svg .pdf .dot .html by its ending."
    ),
    click.option(
        "--depth", type=click.IntRange(min=1), help="How deep groups are open in the graph  [default: as fits a page]."
    ),
    click.option(
        "--open",
        "opened",
        multiple=True,
        metavar="PATH",
        help="Open this group of the graph too: a module's path, * for any; can be repeated.",
    ),
    click.option(
        "--style", type=click.Choice(["gradscope", "torchviz"]), default="gradscope", help="How the graph is drawn."
    ),
    click.option("--all", "every_row", is_flag=True, help="Show every tensor, also in a table of over 20 rows."),
    click.option(
        "--select",
        type=RULE_NAMES,
        multiple=True,
        callback=rule_names,
        metavar="RULE[,RULE]",
        help="Apply these rules only.",
    ),
    click.option(
        "--ignore",
        type=RULE_NAMES,
        multiple=True,
        callback=rule_names,
        metavar="RULE[,RULE]",
        help="Leave these rules out.",
    ),
    click.option(
        "--fail-on",
        type=click.Choice(["error", "warning", "info", "never"]),
        default="error",
        show_default=True,
        help="Exit with 1 if there is a finding of this severity or worse.",
    ),
    click.option(
        "--color",
        "colour",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Colour the text on standard output; `auto` heeds NO_COLOR and FORCE_COLOR.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="The report and nothing else: no findings while the script runs."),
)


def report_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command these options; it gets what was asked for, checked, as its argument `delivery`."""

    @functools.wraps(command)
    def with_delivery(**given: Any) -> int:
        wanted = {field: given.pop(field) for field in Delivery.__dataclass_fields__}
        return command(delivery=Delivery(**wanted), **given)

    wrapped: Callable[..., int] = with_delivery
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
