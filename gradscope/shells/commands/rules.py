"""`gradscope rules`: every rule, a line each."""

from __future__ import annotations

import click

from gradscope.rules import RULES
from gradscope.rules.pages import page_of


@click.command("rules")
def command() -> int:
    """List every rule with what it says, in the order of precedence."""
    pages = [page_of(rule) for rule in RULES]
    width = max(len(page.name) for page in pages)
    for page in pages:
        click.echo(f"{page.name:<{width}}  {page.what}")
    return 0
