"""A rule's page as text."""

from __future__ import annotations

import textwrap

from gradscope.rules.pages import Page


def page_text(page: Page) -> str:
    """What the rule says, why, and a Bad and a Good program."""
    return "\n\n".join(
        [
            page.name,
            page.what,
            page.why,
            "Bad:",
            textwrap.indent(page.bad.rstrip(), "    "),
            "Good:",
            textwrap.indent(page.good.rstrip(), "    "),
            f"To silence it on one line, end that line with `# gradscope: allow[{page.name}]`.",
        ]
    )
