"""A run as a picture in the DOT language."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from gradscope.graph.facts import Finding, Run
from gradscope.reports.boxes import Cluster, Edge, Gradient, Kind, Picture, Vertex
from gradscope.reports.escaping import dot_label
from gradscope.reports.folding import Wish, fold
from gradscope.reports.labels import gradient_words, place_words, saved_words
from gradscope.reports.picture import picture
from gradscope.reports.torchviz import to_torchviz

Style = Literal["gradscope", "torchviz"]
STYLES: tuple[str, ...] = get_args(Style)

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
    "group": _Look("folder", "#e3e8f2", "filled", "of operations, closed"),
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


def to_dot(
    run: Run, style: Style = "gradscope", findings: Sequence[Finding] = (), wish: Wish | None = None, limit: int = 300
) -> str:
    """The DOT text of a run's latest step that ran backward, or of the step in which `findings` saw a gradient cut.

    The `gradscope` style draws the operations that lead to what backward started from, with or without a
    gradient, opened as wished and folded to at most `limit` boxes; the `torchviz` style draws the walked autograd
    graph as torchviz would.
    """
    if style == "torchviz":
        return to_torchviz(run)
    cuts = {operation for finding in findings for operation in finding.operations}
    return "\n".join(_lines(fold(picture(run, cuts), run, wish, limit), run.script)) + "\n"


def _lines(drawn: Picture, script: str | None) -> Iterator[str]:
    yield "digraph gradscope {"
    yield '  graph [rankdir=TB ranksep=0.35 nodesep=0.3 bgcolor=white charset="utf-8"'
    yield f'    fontname="{FONT}" fontsize=9 labelloc=b labeljust=l];'
    if drawn.note:
        yield f"  label=<{_text(drawn.note, _LONGEST_NOTE)}>;"
    yield f'  node [fontname="{FONT}" fontsize=12 height=0.3 margin="0.12,0.05" color="#404040"];'
    yield f'  edge [fontname="{FONT}" fontsize=9 arrowsize=0.7];'
    scale = _Scale.of(drawn)
    yield from _framed(drawn, None, script, scale)
    vertices = {vertex.id: vertex for vertex in drawn.vertices}
    for edge in drawn.edges:
        yield f"  {edge.tail} -> {edge.head} [{_arrow(edge, vertices[edge.tail], script, scale)}];"
    if drawn.vertices:
        yield from _legend(drawn, scale)
    yield "}"


def _framed(drawn: Picture, frame: Cluster | None, script: str | None, scale: _Scale | None) -> Iterator[str]:
    """The boxes directly inside a frame, then the frames in it. As deep as modules are nested."""
    inside, path = (frame.id, frame.path) if frame is not None else (None, None)
    for vertex in drawn.vertices:
        if vertex.cluster == inside:
            yield f"  {vertex.id} [{_box(vertex, _label(vertex, script, path), scale)}];"
    for cluster in drawn.clusters:
        if cluster.parent == inside:
            yield f"  subgraph cluster_{cluster.id} {{"
            yield f"    graph [{_frame(cluster)}];"
            yield from _framed(drawn, cluster, script, scale)
            yield "  }"


def _frame(cluster: Cluster) -> str:
    detail = _text(cluster.detail)
    small = f'<BR ALIGN="LEFT"/><FONT POINT-SIZE="9">{detail}</FONT><BR ALIGN="LEFT"/>' if cluster.detail else ""
    # A pile is drawn with a thick frame.
    pen = 2.5 if cluster.count > 1 else 1
    return (
        f'label=<{_text(cluster.title)}{small}> labelloc=t labeljust=l fontsize=11 style="rounded,filled" '
        f'fillcolor="#80809014" color="#8088a0" penwidth={pen} margin=10 class="frame"'
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """From |grad| to the thickness of a line, in points, on a logarithmic scale."""

    least: float
    largest: float

    @classmethod
    def of(cls, drawn: Picture) -> _Scale | None:
        gradients = [vertex.gradient for vertex in drawn.vertices if vertex.gradient is not None]
        norms = [norm for g in gradients for norm in (g.least, g.largest) if norm]
        if not norms or max(norms) == min(norms):
            return None
        # Over three decades at least: what differs by a few per cent shall not look thick and thin.
        return cls(min(*norms, max(norms) / 1000), max(norms))

    def width(self, gradient: Gradient) -> float:
        if not gradient.largest:
            return _THIN
        share = math.log(gradient.largest / self.least) / math.log(self.largest / self.least)
        return round(_THIN + share * (_THICK - _THIN), 2)


_THIN, _THICK = 0.7, 3.2


def _arrow(edge: Edge, tail: Vertex, script: str | None, scale: _Scale | None) -> str:
    style = _EDGES[edge.kind]
    if edge.kind == "gradient" and scale is not None and tail.gradient is not None and tail.kind in _LEAVES:
        style = f'color="#1a1a1a" penwidth={scale.width(tail.gradient)}'
    # Heavier arrows are drawn straighter: a chain of operations goes down, its tensors stand beside it.
    weight = " weight=8" if tail.kind in ("operation", "group") else ""
    line = f" label=<&#160;{_text(place_words(edge.span, script))}>" if edge.span is not None else ""
    return f'{style}{weight}{line} class="{edge.kind}"'


_LEAVES = ("parameter", "input")


def _box(vertex: Vertex, label: str, scale: _Scale | None = None) -> str:
    look = _LOOKS[vertex.kind]
    fill = "#dddddd" if vertex.cut_off or (vertex.kind == "group" and vertex.frozen) else look.fill
    style, width = (f"{look.style},dashed", 1.5) if vertex.frozen else (look.style, 1.0)
    colour = ""
    if vertex.refused:
        fill, colour, width = "#ffd0cc", ' color="#c40000"', 3.0
    elif vertex.gradient is not None:
        if vertex.gradient.arrival != "some":
            colour, width = ' color="#c40000"', 2.0
        elif scale is not None:
            width = scale.width(vertex.gradient)
    # A group shows a second outline, as a pile of cards would.
    outline = " peripheries=2" if vertex.count > 1 and look.shape not in ("cylinder", "folder") else ""
    if vertex.kind == "group":
        outline = ' margin="0.14,0.08"'
    name = "refused" if vertex.refused else "cutoff" if vertex.cut_off else vertex.kind
    return (
        f'shape={look.shape} style="{style}" fillcolor="{fill}" penwidth={width}{colour}{outline} '
        f'class="{name}" label=<{label}>'
    )


def _label(vertex: Vertex, script: str | None, frame: str | None = None) -> str:
    small = [_text(line) for line in vertex.details]
    if vertex.kind in ("operation", "group"):
        module = vertex.module
        if module is not None and frame:
            # The frame says the rest.
            module = module.removeprefix(frame).removeprefix(".")
        parts = (place_words(vertex.span, script) if vertex.span else None, module)
        where = [_text(part) for part in parts if part]
        if where:
            small.append(" &#183; ".join(where))
    small += [_text(words) for words in (gradient_words(vertex.gradient), saved_words(vertex.saved)) if words]
    title = _text(vertex.title)
    if vertex.count > 1 and not title.startswith(f"{vertex.count:,} "):
        title = f"{title} &#160;x{vertex.count:,}"
    return _stacked(title, small)


def _stacked(title: str, small: Iterable[str]) -> str:
    # Rows of a table keep the distance between lines of two sizes; line breaks let them touch.
    rows = "".join(f'<TR><TD HEIGHT="12">{_SMALL}{line}</FONT></TD></TR>' for line in small)
    first = f'<TR><TD HEIGHT="17">{title}</TD></TR>'
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0">{first}{rows}</TABLE>'


def _legend(drawn: Picture, scale: _Scale | None) -> Iterator[str]:
    """A row with one box for each kind that occurs, below the picture, and what its arrows mean."""
    found = {(vertex.kind, vertex.frozen) for vertex in drawn.vertices}
    entries = [(kind, frozen) for kind in _LOOKS for frozen in (False, True) if (kind, frozen) in found]
    arrows = {edge.kind for edge in drawn.edges}
    words = [_MEANINGS[kind] for kind in _MEANINGS if kind in arrows]
    if scale is not None:
        words.append(f"thicker: larger |grad|, up to {scale.largest:.1e}")
    meanings = "&#160;&#160;&#160;&#160;".join(words)
    yield "  subgraph cluster_legend {"
    yield f'    graph [rank=same style=dotted color="#8a8a8a" margin=6 label=<{meanings or " "}>];'
    yield '    node [fontsize=9 height=0.2 margin="0.08,0.03"];'
    if any(vertex.cut_off for vertex in drawn.vertices):
        grey = Vertex("", "operation", "", cut_off=True)
        yield f"    legend{len(entries)} [{_box(grey, 'behind the cut')}];"
    if any(vertex.refused for vertex in drawn.vertices):
        red = Vertex("", "operation", "", refused=True)
        yield f"    legend{len(entries) + 1} [{_box(red, 'torch raised here')}];"
    for place, (kind, frozen) in enumerate(entries):
        meaning = f"frozen {kind}" if frozen else f"{kind} {_LOOKS[kind].legend}".strip()
        yield f"    legend{place} [{_box(Vertex('', kind, '', frozen=frozen), meaning)}];"
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
    return dot_label(text)
