"""The picture of a run as data for the page: boxes, groups and arrows as numbers into a table of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradscope.graph.facts import Finding, Run
from gradscope.reports.boxes import Picture, Vertex
from gradscope.reports.document import Document
from gradscope.reports.escaping import plain, shown
from gradscope.reports.folding import is_small, opened_by_default, tree
from gradscope.reports.groups import Group
from gradscope.reports.labels import gradient_words, saved_words
from gradscope.reports.picture import picture

KINDS = ("operation", "group", "parameter", "buffer", "constant", "input", "intermediate", "output")
_PLACES = 50  # of one finding that are shown in the graph


class _Texts:
    """Texts by number, as they are shown: of 100,000 operations, most say the same."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}
        self._known: dict[tuple[str, ...], int] = {}

    def __call__(self, *lines: str) -> int:
        number = self._known.get(lines)
        if number is None:
            text = "\n".join(map(shown, lines))
            number = self._known[lines] = self.numbers.setdefault(text, len(self.numbers))
        return number


def graph_data(run: Run, findings: Sequence[Finding], report: Document) -> dict[str, Any]:
    """What the page needs to draw the graph.

    `boxes` are columns with one entry a box, in the order of the run; an entry of `lines` is a file and a line, and
    `sources` has the text of those lines and of no others. `tree` nests groups as [sort, path, title, type, alike,
    members], where a member that is a number is a box. `arrows` are tail, head, kind and line, one after another.
    """
    drawn = picture(run, {operation for finding in findings for operation in finding.operations})
    whole = tree(drawn, run)
    order = {box.id: place for place, box in enumerate(whole.boxes())}
    vertices = sorted(drawn.vertices, key=lambda vertex: order[vertex.id])
    texts = _Texts()
    rows = {(row.name, row.role): place for place, row in reversed(list(enumerate(report.tensors)))}
    small = is_small(drawn)
    depth, shown = opened_by_default(whole, drawn)
    lines: dict[str, dict[int, str]] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("kind", "title", "details", "module", "file", "line")}
    columns.update({name: [] for name in ("flags", "gradient", "worst", "norm", "saved", "elements", "row")})
    for vertex in vertices:
        _write(vertex, columns, texts, rows)
        if vertex.span is not None:
            text = run.sources.get(vertex.span.file, {}).get(vertex.span.line)
            if text is not None:
                lines.setdefault(vertex.span.file, {})[vertex.span.line] = text.strip()
    arrows: list[int] = []
    for edge in drawn.edges:
        kind = ("data", "gradient", "cut").index(edge.kind)
        arrows += (order[edge.tail], order[edge.head], kind, edge.span.line if edge.span is not None else 0)
    # Groups come in the order of their numbers: what is opened at first can be told by number.
    return {
        "kinds": KINDS,
        "boxes": columns,
        "tree": _nested(whole, order, texts),
        "arrows": arrows,
        "opened": {"small": small, "depth": depth, "groups": sorted(shown)},
        "findings": [_places(finding, drawn, order) for finding in findings],
        "sources": plain(lines),
        "script": plain(run.script),
        "note": plain(drawn.note),
        "texts": list(texts.numbers),
    }


def _write(vertex: Vertex, columns: dict[str, list[Any]], texts: _Texts, rows: dict[tuple[str, Any], int]) -> None:
    span, gradient = vertex.span, vertex.gradient
    columns["kind"].append(KINDS.index(vertex.kind))
    columns["title"].append(texts(vertex.title))
    columns["details"].append(texts(*vertex.details))
    columns["module"].append(texts(vertex.module or ""))
    columns["file"].append(texts(span.file if span is not None else ""))
    columns["line"].append(span.line if span is not None else 0)
    columns["flags"].append(vertex.frozen + 2 * vertex.cut_off + 4 * vertex.refused)
    columns["gradient"].append(texts(gradient_words(gradient) or ""))
    columns["worst"].append(("some", "zero", "none", "nonfinite").index(gradient.arrival) if gradient else -1)
    columns["norm"].append(gradient.largest if gradient is not None else None)
    columns["saved"].append(texts(saved_words(vertex.saved) or ""))
    columns["elements"].append(vertex.elements)
    # A picture shows roles by the same words as the table.
    columns["row"].append(rows.get((vertex.title, vertex.kind), -1))


def _nested(whole: Group, order: dict[str, int], texts: _Texts) -> list[Any]:
    def written(group: Group) -> list[Any]:
        return [group.sort, texts(group.path), texts(group.title), texts(group.type or ""), group.alike, []]

    top = written(whole)
    waiting: list[tuple[Group, list[Any]]] = [(whole, top)]
    while waiting:
        group, entry = waiting.pop()
        for child in group.children:
            if isinstance(child, Group):
                inner = written(child)
                entry[5].append(inner)
                waiting.append((child, inner))
            else:
                entry[5].append(order[child.id])
    return top


def _places(finding: Finding, drawn: Picture, order: dict[str, int]) -> list[int]:
    """The boxes that a finding speaks of: where it cuts, else the tensors that suffer."""
    cut = [order[f"o{number}"] for number in finding.operations if f"o{number}" in order]
    if cut:
        return cut[:_PLACES]
    names = set(finding.tensors)
    found = [order[vertex.id] for vertex in drawn.vertices if vertex.kind != "operation" and vertex.title in names]
    if not found and finding.span is not None:
        place = (finding.span.file, finding.span.line)
        found = [order[v.id] for v in drawn.vertices if v.span is not None and (v.span.file, v.span.line) == place]
    return found[:_PLACES]
