"""A run as a picture in the DOT language."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from gradscope.graph.facts import Finding, Run, Span
from gradscope.reports.folding import fold
from gradscope.reports.picture import Kind, Picture, Vertex, picture
from gradscope.reports.torchviz import to_torchviz

Style = Literal["gradscope", "torchviz"]

FONT = "DejaVu Sans,Verdana,sans-serif"
_LONGEST = 60
_LONGEST_NOTE = 200
_SMALL = '<FONT POINT-SIZE="9" COLOR="#202020">'


@dataclass(frozen=True, slots=True)
class _Look:
    shape: str
    fill: str
    style: str = "filled"
    legend: str = ""


# The hues are those of Okabe and Ito, lightened so that dark text reads well on all of them; no two share
# a lightness, so that the picture also works in grey, and the shapes tell the roles apart without colour.
_LOOKS: dict[Kind, _Look] = {
    "parameter": _Look("box", "#98d2f3"),
    "buffer": _Look("cylinder", "#b8e4d8"),
    "constant": _Look("ellipse", "#faf6bf"),
    "input": _Look("invhouse", "#eaa81c"),
    "operation": _Look("box", "#ffffff", "filled,rounded", "and result"),
    "intermediate": _Look("hexagon", "#f5e4ed"),
    "output": _Look("octagon", "#c86fa0"),
}
_EDGES = {
    "gradient": 'color="#1a1a1a" penwidth=1.4',
    "data": 'color="#8a8a8a" penwidth=0.8 style=dashed arrowsize=0.6',
    "cut": 'color="#c40000" fontcolor="#c40000" penwidth=3 style=dashed',
}
_MEANINGS = {
    "gradient": "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 2 + " carries a gradient",
    "data": "- - - carries none",
    "cut": '<FONT COLOR="#c40000"><B>- - -</B> the gradient is lost here</FONT>',
}


def to_dot(run: Run, style: Style = "gradscope", findings: Sequence[Finding] = ()) -> str:
    """The DOT text of a run's latest step that ran backward, or of the step in which `findings` saw a gradient cut.

    The `gradscope` style draws the operations that lead to what backward started from, with or without a
    gradient; the `torchviz` style draws the walked autograd graph as torchviz would.
    """
    if style == "torchviz":
        return to_torchviz(run)
    cuts = {operation for finding in findings for operation in finding.operations}
    return "\n".join(_lines(fold(picture(run, cuts)), run.script)) + "\n"


def _lines(drawn: Picture, script: str | None) -> Iterator[str]:
    yield "digraph gradscope {"
    yield '  graph [rankdir=TB ranksep=0.35 nodesep=0.3 bgcolor=white charset="utf-8"'
    yield f'    fontname="{FONT}" fontsize=9 labelloc=b labeljust=l];'
    if drawn.note:
        yield f"  label=<{_text(drawn.note, _LONGEST_NOTE)}>;"
    yield f'  node [fontname="{FONT}" fontsize=12 height=0.3 margin="0.12,0.05" color="#404040"];'
    yield f'  edge [fontname="{FONT}" fontsize=9 arrowsize=0.7];'
    for vertex in drawn.vertices:
        yield f"  {vertex.id} [{_box(vertex, _label(vertex, script))}];"
    operations = {vertex.id for vertex in drawn.vertices if vertex.kind == "operation"}
    for edge in drawn.edges:
        # Heavier arrows are drawn straighter: a chain of operations goes down, its tensors stand beside it.
        weight = " weight=8" if edge.tail in operations else ""
        line = f" label=<&#160;{_text(_place(edge.span, script))}>" if edge.span is not None else ""
        yield f"  {edge.tail} -> {edge.head} [{_EDGES[edge.kind]}{weight}{line}];"
    if drawn.vertices:
        yield from _legend(drawn)
    yield "}"


def _box(vertex: Vertex, label: str) -> str:
    look = _LOOKS[vertex.kind]
    fill = "#dddddd" if vertex.cut_off else look.fill
    style, width = (f"{look.style},dashed", 1.5) if vertex.frozen else (look.style, 1.0)
    # A group shows a second outline, as a pile of cards would.
    outline = " peripheries=2" if vertex.count > 1 and look.shape != "cylinder" else ""
    return f'shape={look.shape} style="{style}" fillcolor="{fill}" penwidth={width}{outline} label=<{label}>'


def _label(vertex: Vertex, script: str | None) -> str:
    small = [_text(line) for line in vertex.details]
    where = [_text(part) for part in (_where(vertex, script), vertex.module) if part]
    if vertex.kind != "operation":
        where = []
    if where:
        small.append(" &#183; ".join(where))
    return _stacked(_text(vertex.title), small)


def _stacked(title: str, small: Iterable[str]) -> str:
    # Rows of a table keep the distance between lines of two sizes; line breaks let them touch.
    rows = "".join(f'<TR><TD HEIGHT="12">{_SMALL}{line}</FONT></TD></TR>' for line in small)
    first = f'<TR><TD HEIGHT="17">{title}</TD></TR>'
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0">{first}{rows}</TABLE>'


def _where(vertex: Vertex, script: str | None) -> str | None:
    return _place(vertex.span, script) if vertex.span is not None else None


def _place(span: Span, script: str | None) -> str:
    if script is None or span.file == script:
        return f"line {span.line}"
    return f"{PurePath(span.file).name}:{span.line}"


def _legend(drawn: Picture) -> Iterator[str]:
    """A row with one box for each kind that occurs, below the picture, and what its arrows mean."""
    found = {(vertex.kind, vertex.frozen) for vertex in drawn.vertices}
    entries = [(kind, frozen) for kind in _LOOKS for frozen in (False, True) if (kind, frozen) in found]
    arrows = {edge.kind for edge in drawn.edges}
    meanings = "&#160;&#160;&#160;&#160;".join(_MEANINGS[kind] for kind in _MEANINGS if kind in arrows)
    yield "  subgraph cluster_legend {"
    yield f'    graph [rank=same style=dotted color="#8a8a8a" margin=6 label=<{meanings or " "}>];'
    yield '    node [fontsize=9 height=0.2 margin="0.08,0.03"];'
    if any(vertex.cut_off for vertex in drawn.vertices):
        grey = Vertex("", "operation", "", cut_off=True)
        yield f"    legend{len(entries)} [{_box(grey, 'behind the cut')}];"
    for place, (kind, frozen) in enumerate(entries):
        words = f"frozen {kind}" if frozen else f"{kind} {_LOOKS[kind].legend}".strip()
        yield f"    legend{place} [{_box(Vertex('', kind, '', frozen=frozen), words)}];"
    yield "  }"
    last = _last(drawn)
    # Unseen edges hold the legend below the picture instead of beside its first row.
    for place in range(len(entries)):
        yield f"  {last} -> legend{place} [style=invis];"


def _last(drawn: Picture) -> str:
    leading_on = {edge.tail for edge in drawn.edges}
    ends = [vertex.id for vertex in drawn.vertices if vertex.id not in leading_on]
    return ends[-1] if ends else drawn.vertices[-1].id


def _text(text: str, longest: int = _LONGEST) -> str:
    """Text from the user as Graphviz shows it letter by letter, shortened in the middle."""
    if len(text) > longest:
        text = f"{text[: longest // 2 - 2]}...{text[-longest // 2 + 2 :]}"
    shown = "".join(letter if letter.isprintable() else _spelled(letter) for letter in text)
    # Graphviz replaces `\N` and the like also in HTML-like labels.
    return html.escape(shown).replace("\\", "\\\\") or " "


def _spelled(letter: str) -> str:
    return ascii(letter)[1:-1]
