"""A rule's page: its docstring, taken apart into what, why, Bad and Good."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from gradscope.rules.engine import AnyRule


@dataclass(frozen=True, slots=True)
class Page:
    """What a rule's docstring says. `bad` and `good` are whole programs."""

    name: str
    what: str
    why: str
    bad: str
    good: str


def page_of(rule: AnyRule) -> Page:
    """The page of a rule."""
    text = rule.page
    words, _, examples = text.partition("\nBad:\n")
    bad, _, good = examples.partition("\nGood:\n")
    what, _, why = words.partition("\n\n")
    return Page(rule.name, what.strip(), why.strip(), _program(bad), _program(good))


def _program(text: str) -> str:
    return inspect.cleandoc("\n" + text).strip() + "\n"
