"""`gradscope rule NAME`: one rule's page."""

from __future__ import annotations

import sys

import click

from gradscope.reports.page import page_text
from gradscope.rules import rule_named
from gradscope.rules.pages import page_of
from gradscope.shells.commands.options import RULE_NAMES
from gradscope.shells.commands.streams import to_stream


@click.command("rule")
@click.argument("name", type=RULE_NAMES)
def command(name: str) -> int:
    """Show the page of the rule NAME: what it finds, why, a program that has it and one that has not."""
    to_stream(sys.stdout, page_text(page_of(rule_named(name))) + "\n")
    return 0
