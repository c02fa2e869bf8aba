"""The report as one HTML file: no network, everything escaped, the graph as data that the page lays out itself.

Findings, table and charts are plain HTML, so that they read and print without any script. The script and the style are
allowed by their hashes alone: nothing that a name smuggles in could run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gradscope.graph.facts import Finding, Run
from gradscope.graph.naming import shape_text
from gradscope.reports.charts import chart
from gradscope.reports.document import Document, TensorRow, median_norm
from gradscope.reports.escaping import html_text, plain, plain_files
from gradscope.reports.frames import frame
from gradscope.reports.graphdata import graph_data
from gradscope.reports.text import edit_lines, headline, moved_text, ranks_lines, received_text

_WEB = Path(__file__).resolve().parent / "web"
_SCRIPTS = ("view.js", "layout.js", "canvas.js", "page.js")


def to_html(run: Run, findings: Sequence[Finding], report: Document) -> str:
    """The whole page."""
    data = graph_data(run, findings, report)
    style = (_WEB / "page.css").read_text(encoding="utf-8")
    body = "\n".join((_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{body}\n}})();\n'
    about = [f"gradscope {report.gradscope}", f"torch {report.torch}"]
    if report.argv:
        about.append("arguments: " + " ".join(report.argv))
    raised = report.run.exception
    if raised is not None:
        where = f" at {raised.file}:{raised.line}" if raised.file else ""
        about.append(f"raised {raised.type}: {raised.message.splitlines()[0] if raised.message else ''}{where}")
    report, findings, sources = plain(report), [plain(finding) for finding in findings], plain_files(run.sources)
    parts = {
        "script_hash": _hash(script),
        "style_hash": _hash(style),
        "version": html_text(report.gradscope),
        "title": html_text(f"gradscope: {report.script or 'output'}"),
        "headline": html_text(headline(report)),
        "about": html_text(", ".join(about)),
        "findings": "\n".join(_finding(number, finding, sources) for number, finding in enumerate(findings))
        or '<p class="fine">No findings.</p>',
        "table": "\n".join(_table(report.tensors)) if report.tensors else "<p>No tensor has a name here.</p>",
        "failures": "".join(f'<p class="fine">{html_text(line)}</p>\n' for line in ranks_lines(report))
        + "".join(f'<p class="failure">{html_text(failure)}</p>\n' for failure in report.failures),
        "style": style,
        "data": script_safe(data),
        "script": script,
    }
    return _filled((_WEB / "page.html").read_text(encoding="utf-8"), parts)


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


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """Each `{name}` replaced; what is put in is not looked at again."""
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template)


def _finding(number: int, finding: Finding, sources: Mapping[str, Mapping[int, str]]) -> str:
    title = f'<span class="tag">{finding.severity}[{html_text(finding.rule)}]</span> {html_text(finding.message)}'
    lines = [f'<article class="finding {finding.severity}" id="finding-{number}">', f"<h2>{title}</h2>"]
    if finding.span is not None:
        lines.append(f"<pre>{html_text(chr(10).join(frame(finding, sources)))}</pre>")
    if finding.facts:
        lines.append("<ul>" + "".join(f"<li>{html_text(fact)}</li>" for fact in finding.facts) + "</ul>")
    for help_ in finding.help:
        lines.append(f"<p>help: {html_text(help_.message)}</p>")
        edit = edit_lines(help_.edits, sources)
        if edit:
            lines.append(f'<pre class="edit">{html_text(chr(10).join(edit))}</pre>')
        if help_.tried is not None:
            lines.append(f"<p>tried: {html_text(help_.tried.message)}</p>")
    more = f"more: gradscope rule {finding.rule}"
    if finding.allowed_at is not None:
        more = f"on purpose? end line {finding.allowed_at} with # gradscope: allow[{finding.rule}]; {more}"
    lines.append(f'<p class="quiet">{html_text(more)}</p>')
    lines.append(f'<button type="button" class="place" data-finding="{number}" hidden>Show in the graph</button>')
    return "\n".join([*lines, "</article>"])


_COLUMNS = ("tensor", "shape", "role", "leaf", "requires", "got grad", "|grad|", "per step", "moved")


def _table(rows: Sequence[TensorRow]) -> Iterator[str]:
    yield '<p id="sieve" hidden><label>Filter <input id="filter" type="search" autocomplete="off"></label>'
    yield f'<span id="counted" role="status">{len(rows):,} tensors</span></p>'
    yield '<div class="wide"><table><thead><tr>'
    yield "".join(f'<th scope="col">{html_text(name)}</th>' for name in _COLUMNS)
    yield "</tr></thead><tbody>"
    for number, row in enumerate(rows):
        yield _row(number, row)
    yield "</tbody></table></div>"


def _row(number: int, row: TensorRow) -> str:
    norm = median_norm(row)
    elements = 1
    for size in row.shape:
        elements *= size
    by = f"by {row.grad_fn}" if row.grad_fn is not None else ""
    moved = row.moved if row.moved is not None else -1
    share = row.received.steps / row.received.of if row.received is not None and row.received.of else -1
    cells = [
        (row.name, row.name, ""),
        (shape_text(row.shape), elements, ""),
        (row.role, row.role, ""),
        ("yes" if row.leaf else "no", int(row.leaf), ""),
        ("yes" if row.requires_grad else "no", int(row.requires_grad), ""),
        (by or received_text(row), share, ""),
        ("-" if norm is None else f"{norm:.1e}", -1 if norm is None else norm, ""),
        ("", len(row.grad_norm), chart(row.grad_norm)),
        ("-" if by else moved_text(row), moved, ""),
    ]
    marked = f' class="{"suffers" if row.finding else "well"}"'
    inner = "".join(
        f'<td data-key="{html_text(str(key))}">{drawn or html_text(said)}</td>' for said, key, drawn in cells
    )
    return f'<tr data-row="{number}"{marked}>{inner}</tr>'
