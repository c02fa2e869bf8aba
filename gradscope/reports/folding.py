"""Makes a large picture small enough to lay out: boxes that belong together become one box."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from gradscope.reports.picture import Edge, Picture, Vertex

_EDGES_PER_VERTEX = 6
_DEEPEST = 8
_STRENGTH = {"data": 0, "gradient": 1, "cut": 2}  # of two arrows between the same boxes, the stronger is drawn

Key = Callable[[Vertex], Hashable]


def fold(picture: Picture, limit: int = 300) -> Picture:
    """The picture with at most `limit` vertices, folded no more than that takes.

    Operations fold by module, and outside of modules by name and line; tensors fold by role and module.
    """
    if _fits(len(picture.vertices), len(picture.edges), limit):
        return picture
    for key in _keys():
        groups: dict[str, Hashable] = {vertex.id: key(vertex) for vertex in picture.vertices}
        if len(set(groups.values())) > limit:
            continue
        edges = _edges(picture, groups)
        if _fits(0, len(edges), limit):
            return _folded(picture, groups, edges)
    groups = {vertex.id: (vertex.kind, vertex.frozen) for vertex in picture.vertices}
    return _folded(picture, groups, _edges(picture, groups))


def _fits(vertices: int, edges: int, limit: int) -> bool:
    return vertices <= limit and edges <= _EDGES_PER_VERTEX * limit


def _keys() -> Iterator[Key]:
    """Ways to group, from the finest to the coarsest."""
    for tensors in (_name, partial(_place, depth=_DEEPEST)):
        yield partial(_either, operations=lambda vertex: vertex.id, tensors=tensors)
    for depth in range(_DEEPEST, 0, -1):
        place = partial(_place, depth=depth)
        for tensors in (_name, place):
            yield partial(_either, operations=place, tensors=tensors)
    yield partial(_either, operations=_name, tensors=_kind)


def _either(vertex: Vertex, operations: Key, tensors: Key) -> Hashable:
    return operations(vertex) if vertex.kind == "operation" else tensors(vertex)


def _kind(vertex: Vertex) -> tuple[Hashable, ...]:
    # What a backward started from stays in sight: there are few, and the picture is read from them.
    return (vertex.kind, vertex.frozen, vertex.id if vertex.kind == "output" else None)


def _name(vertex: Vertex) -> Hashable:
    return (*_kind(vertex), vertex.title if _named(vertex) else None)


def _named(vertex: Vertex) -> bool:
    # A tensor without a name has its shape for a title, and no details.
    return vertex.kind == "operation" or bool(vertex.details)


def _place(vertex: Vertex, depth: int) -> Hashable:
    if vertex.module is not None:
        return (*_kind(vertex), "module", tuple(vertex.module.split(".")[:depth]))
    if vertex.kind != "operation":
        return _kind(vertex)
    line = (vertex.span.file, vertex.span.line) if vertex.span else None
    return (*_kind(vertex), vertex.title, line)


def _edges(picture: Picture, groups: Mapping[str, Hashable]) -> dict[tuple[Hashable, Hashable], Edge]:
    edges: dict[tuple[Hashable, Hashable], Edge] = {}
    for edge in picture.edges:
        pair = groups[edge.tail], groups[edge.head]
        if pair[0] == pair[1]:
            continue
        if pair not in edges or _STRENGTH[edge.kind] > _STRENGTH[edges[pair].kind]:
            edges[pair] = edge
    return edges


def _folded(
    picture: Picture,
    groups: Mapping[str, Hashable],
    edges: Mapping[tuple[Hashable, Hashable], Edge],
) -> Picture:
    members: dict[Hashable, list[Vertex]] = {}
    for vertex in picture.vertices:
        members.setdefault(groups[vertex.id], []).append(vertex)
    boxes = {key: _box(group) for key, group in members.items()}
    arrows = tuple(Edge(boxes[a].id, boxes[b].id, edge.kind, edge.span) for (a, b), edge in edges.items())
    note = _note(picture, boxes)
    return Picture(tuple(boxes.values()), arrows, f"{picture.note}; {note}" if picture.note else note)


def _note(picture: Picture, boxes: Mapping[Hashable, Vertex]) -> str:
    parts = []
    for word, wanted in (("operations", True), ("tensors", False)):
        before = sum((vertex.kind == "operation") is wanted for vertex in picture.vertices)
        after = sum((vertex.kind == "operation") is wanted for vertex in boxes.values())
        if after < before:
            parts.append(f"{before:,} {word} in {after:,} groups")
    return "folded: " + ", ".join(parts)


def _box(group: list[Vertex]) -> Vertex:
    first = group[0]
    if len(group) == 1:
        return first
    what = "operations" if first.kind == "operation" else f"{first.kind}s"
    counted = f"{len(group):,} {what}"
    titles = {vertex.title for vertex in group}
    module = _common_module(group)
    lines = {(vertex.span.file, vertex.span.line) if vertex.span else None for vertex in group}
    if len(titles) == 1 and _named(first):
        title, details = f"{len(group):,} x {first.title}", _common_details(group)
    elif module is not None:
        title, details = module, (counted,)
    else:
        title, details = counted, ()
    return replace(
        first,
        title=title,
        details=details,
        module=module if title != module else None,
        span=first.span if len(lines) == 1 else None,
        count=len(group),
    )


def _common_details(group: list[Vertex]) -> tuple[str, ...]:
    return group[0].details if len({vertex.details for vertex in group}) == 1 else ()


def _common_module(group: list[Vertex]) -> str | None:
    common = group[0].module
    if common is None:
        return None
    parts = common.split(".")
    for vertex in group:
        other = (vertex.module or "").split(".")
        length = 0
        while length < min(len(parts), len(other)) and parts[length] == other[length]:
            length += 1
        parts = parts[:length]
    return ".".join(parts) or None
