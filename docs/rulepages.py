"""What the site makes of docstrings: a page for each rule with an index, and code blocks in the reference."""

from __future__ import annotations

from pathlib import Path

from gradscope.rules import RULES
from gradscope.rules.pages import Page, page_of

_ORDER = """\
# The rules

The order is the precedence: where two rules explain the same trouble, the first one speaks. A cause silences its
symptoms. `gradscope rules` gives this list, `gradscope rule NAME` one page of it.
"""


def write(folder: Path) -> None:
    """Write the index and a page for each rule. Pages of rules that are gone are removed."""
    pages = [page_of(rule) for rule in RULES]
    files = {f"{page.name}.md": _page(page) for page in pages} | {"index.md": _index(pages)}
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")  # what has not changed keeps its time, and is not built again


def _index(pages: list[Page]) -> str:
    table = ["| rule | what it finds |", "| --- | --- |"]
    table += [f"| [{page.name}]({page.name}.md) | {_in_table(page.what)} |" for page in pages]
    tree = ["```{toctree}", ":hidden:", "", *(page.name for page in pages), "```"]
    return "\n".join([_ORDER, *table, "", *tree, ""])


def _in_table(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def _page(page: Page) -> str:
    return f"""\
# {page.name}

{page.what}

{page.why}

## Bad

```python
{page.bad.rstrip()}
```

## Good

```python
{page.good.rstrip()}
```

## To silence it

End the line that it points at with `# gradscope: allow[{page.name}]`, or run with `--ignore {page.name}`.
"""


def mark_code(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Say in reStructuredText what docstrings here say by four spaces (code) and by bars (a norm)."""
    marked: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("    ") and not before.strip() and not _in_block(marked):
            marked += [".. code-block:: python", ""]
        marked.append(line if line.startswith("    ") else _with_bars(line))
    lines[:] = marked


def _with_bars(line: str) -> str:
    """`|grad|` in words is no substitution."""
    parts = line.split("`")
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


def _in_block(lines: list[str]) -> bool:
    """Whether the last line that is not empty is code already."""
    return next((line.startswith("    ") for line in reversed(lines) if line.strip()), False)
