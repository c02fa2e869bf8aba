"""`gradscope rules`: every rule, a line each."""

from __future__ import annotations

import sys

import click

from gradscope.rules import RULES
from gradscope.rules.pages import page_of
from gradscope.shells.commands.streams import to_stream


@click.command("rules")
def command() -> int:
    """List every rule with what it says, in the order of precedence."""
    pages = [page_of(rule) for rule in RULES]
    width = max(len(page.name) for page in pages)
    to_stream(sys.stdout, "".join(f"{page.name:<{width}}  {page.what}\n" for page in pages))
    return 0
