"""The report as one HTML file: no network, everything escaped, the graph as data that the page lays out itself.

Findings, table and charts are plain HTML, so that they read and print without any script. The script and the style are
allowed by their hashes alone: nothing that a name smuggles in could run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from gradscope.graph.facts import Finding, Run
from gradscope.graph.naming import shape_text
from gradscope.reports.charts import chart
from gradscope.reports.document import Document, TensorRow, median_norm
from gradscope.reports.escaping import html_value, plain, plain_files
from gradscope.reports.frames import frame
from gradscope.reports.graphdata import graph_data
from gradscope.reports.table import columns, moved_text, received_text
from gradscope.reports.text import dry_lines, edit_lines, headline, ranks_lines

_WEB = Path(__file__).resolve().parent / "web"
_SCRIPTS = ("view.js", "layout.js", "canvas.js", "page.js")


def to_html(run: Run, findings: Sequence[Finding], report: Document) -> str:
    """The whole page."""
    data = graph_data(run, findings, report)
    style = (_WEB / "page.css").read_text(encoding="utf-8")
    body = "\n".join((_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{body}\n}})();\n'
    report, findings, sources = plain(report), [plain(finding) for finding in findings], plain_files(run.sources)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB),
        autoescape=True,
        finalize=html_value,
        keep_trailing_newline=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["frame"] = lambda finding: "\n".join(frame(finding, sources))
    environment.filters["diff"] = lambda help_: "\n".join(edit_lines(help_.edits, sources))
    environment.filters["cells"] = _cells
    return environment.get_template("page.html").render(
        script_hash=Markup(_hash(script)),
        style_hash=Markup(_hash(style)),
        version=report.gradscope,
        title=f"gradscope: {report.script or 'output'}",
        headline=headline(report),
        about=", ".join(_about(report)),
        findings=findings,
        columns=columns(_COLUMNS, dry=report.run.dry),
        rows=report.tensors,
        ranks=[*ranks_lines(report), *(dry_lines(report) if report.run.dry else ())],
        failures=report.failures,
        style=Markup(style),
        data=Markup(script_safe(data)),
        script=Markup(script),
    )


def _about(report: Document) -> Iterator[str]:
    yield f"gradscope {report.gradscope}"
    yield f"torch {report.torch}"
    if report.argv:
        yield "arguments: " + " ".join(report.argv)
    raised = report.run.exception
    if raised is not None:
        where = f" at {raised.file}:{raised.line}" if raised.file else ""
        yield f"raised {raised.type}: {raised.message.splitlines()[0] if raised.message else ''}{where}"


def script_safe(data: object) -> str:
    """JSON that can stand in a script element: no end tag, no comment, no line separator of JavaScript's."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate, which a name may hold, cannot be written as UTF-8.
    text = "".join(letter if not "\ud800" <= letter <= "\udfff" else f"\\u{ord(letter):04x}" for letter in text)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_COLUMNS = ("tensor", "shape", "role", "leaf", "requires", "got grad", "|grad|", "per step", "moved")


class _Cell(NamedTuple):
    """What a cell shows, and what it is sorted by."""

    shown: str | Markup
    key: str | float


def _cells(row: TensorRow) -> Iterator[_Cell]:
    norm = median_norm(row)
    by = f"by {row.grad_fn}" if row.grad_fn is not None else ""
    share = row.received.steps / row.received.of if row.received is not None and row.received.of else -1
    yield _Cell(row.name, row.name)
    yield _Cell(shape_text(row.shape), math.prod(row.shape))
    yield _Cell(row.role, row.role)
    yield _Cell("yes" if row.leaf else "no", int(row.leaf))
    yield _Cell("yes" if row.requires_grad else "no", int(row.requires_grad))
    yield _Cell(by or received_text(row), share)
    yield _Cell("-" if norm is None else f"{norm:.1e}", -1 if norm is None else norm)
    yield _Cell(Markup(chart(row.grad_norm)), len(row.grad_norm))
    yield _Cell("-" if by else moved_text(row), row.moved if row.moved is not None else -1)
