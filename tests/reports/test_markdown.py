"""The report as Markdown."""

from __future__ import annotations

import re
from typing import Any

from gradscope.graph.facts import Edit, Finding, Help, Run, Span
from gradscope.reports.report import Report
from tests.runs import Book
from tests.workshop import Workshop

SOURCES = {"train.py": {3: "    z = w.detach()", 4: "    y = z"}}
SPAN = Span("train.py", 3, 10, 3, 19)


def page(*findings: Finding, run: Run | None = None, failures: tuple[str, ...] = (), **options: Any) -> str:
    """The report on these findings."""
    return Report(run or Run("0", "2", "train.py", sources=SOURCES), findings, failures).to_markdown(**options)


def test_a_finding_has_its_lines_and_its_mend_in_fences() -> None:
    """The message stands in prose, the code with its caret and the facts in a fence, the mend as a diff."""
    text = page(
        Finding(
            "detach",
            "error",
            "`w` never learns",
            SPAN,
            caret="cut here",
            facts=("path: w -> z",),
            help=(Help("leave it out", (Edit(Span("train.py", 3, 10, 3, 19), ""),)), Help("or do not")),
        )
    )
    assert "**error** `detach`: `w` never learns\n\n```text\n  --> train.py:3:10\n" in text
    assert "    z = w.detach()\n  |          ^^^^^^^^^ cut here" in text
    assert "   = path: w -> z\n```" in text
    assert "```diff\n-    z = w.detach()\n+    z = w\n```" in text
    assert "Help: or do not\n" in text
    assert "end line 3 with `# gradscope: allow[detach]`" in text


def test_a_line_that_goes_leaves_nothing() -> None:
    """The diff of an edit that takes a line away has no second line."""
    text = page(Finding("detach", "error", "m", SPAN, help=(Help("drop", (Edit(Span("train.py", 3, 1, 4, 1), ""),)),)))
    assert "```diff\n-    z = w.detach()\n```" in text


def test_what_markdown_would_read_is_escaped() -> None:
    """Code in backticks stays as it is, marks that we use ourselves are escaped, and all else is code."""
    text = page(Finding("detach", "error", "`a_b*` and |grad| -> __c__", None), failures=("a `tick",))
    assert r"`a_b*` and \|grad\| -\> \_\_c\_\_" in text
    assert "``a `tick``" in text
    text = page(Finding("detach", "error", "`@deco` and @someone", None))
    assert ": `` `@deco` and @someone ``\n" in text


def test_fences_are_longer_than_what_they_hold() -> None:
    """Backticks in the user's lines do not end the fence."""
    run = Run("0", "2", "train.py", sources={"train.py": {3: "z = '````'"}})
    text = page(Finding("detach", "error", "m", Span("train.py", 3, 1, 3, 2)), run=run)
    fences = re.findall(r"^(`{3,})", text, flags=re.MULTILINE)
    assert fences == ["`````", "`````"]


def test_the_table_is_folded_away() -> None:
    """The table is a collapsed block that tells how many tensors there are; `every_row` shows all of them."""
    book = Book()
    total = book.leaf("x", (2,))
    for layer in range(30):
        total = book.op("mul", total, book.leaf(f"layers.{layer}.weight", (2,), True, nn_parameter=True))
    book.step(book.op("sum", total, result="loss", shape=()))
    text, whole = page(run=book.run()), page(run=book.run(), every_row=True)
    assert text.startswith("### gradscope: `train.py`, ")
    assert "<details><summary>32 tensors</summary>\n\n```text\ntensor " in text
    assert text.endswith("```\n\n</details>\n")
    assert "layers.7.weight" not in text
    assert "layers.7.weight" in whole
    assert "<details>" not in page()


def test_explain_and_show_write_markdown(workshop: Workshop) -> None:
    """The ending chooses the format, and `show` writes the same page."""
    workshop.write("import torch\nw = torch.ones(2, requires_grad=True)\n(w * w).sum().backward()\n")
    assert workshop.gradscope("explain", "--save", "run.json", "-o", "x.md", "script.py").status == 0
    text = (workshop.folder / "x.md").read_text()
    assert text.startswith("### gradscope: `script.py`, ")
    assert workshop.gradscope("show", "--format", "markdown", "run.json").out == text
