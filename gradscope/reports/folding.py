"""Makes a picture small enough to read: closes groups, and draws groups that are alike over each other.

A group that is closed is one box. Groups in a row that are alike (`12 x Block`) are drawn as one of them: opened, the
frame shows what each of them holds, and figures are those of all. What is asked for by name stands apart from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

from gradscope.graph.facts import Run
from gradscope.graph.naming import amount
from gradscope.reports.boxes import Cluster, Edge, Gradient, Picture, Vertex
from gradscope.reports.groups import Group, Member, grouped, same_row

WHOLE = 40  # boxes that are all shown
COMFORTABLE = 30  # boxes on a page, when some have to be closed
_LIMIT = 300  # boxes that are laid out in any case
_EDGES_PER_BOX = 6
_LEVELS = ("whole", "module", "function")  # what opens with the depth; other groups open by name alone
_CUTS = 8  # that are opened for
_STRENGTH = {"data": 0, "gradient": 1, "cut": 2}  # of two arrows between the same boxes, the stronger is drawn


@dataclass(frozen=True, slots=True)
class Wish:
    """How far a picture shall be opened.

    `depth` 1 shows modules and functions closed, 2 what is directly inside of them, and so on; None opens as deep as
    leaves the picture readable. `open` are paths of groups to open besides, `*` matching anything; a path in a row of
    groups that are alike takes that group out of the row.
    """

    depth: int | None = None
    open: tuple[str, ...] = ()


def fold(picture: Picture, run: Run, wish: Wish | None = None, limit: int = _LIMIT) -> Picture:
    """The picture opened as wished, and folded further where that gives more than `limit` boxes."""
    wish = wish or Wish()
    whole = tree(picture, run)
    asked = _asked(whole, wish.open)
    for pattern in wish.open:
        if not _asked(whole, (pattern,)):
            said = f"no group is called {pattern}"
            picture = replace(picture, note=f"{picture.note}; {said}" if picture.note else said)
    shown = _around_cuts(whole, picture)
    deepest = _depth(whole)
    if wish.depth is None and is_small(picture) and _fits(picture, limit):
        return picture
    first = deepest if wish.depth is None else min(wish.depth, deepest)
    most = min(COMFORTABLE, limit) if wish.depth is None else limit
    for depth in range(first, 0, -1):
        if _count([whole], 0, _Opening(depth, asked, shown)) <= most:
            drawn = _drawn(picture, whole, _Opening(depth, asked, shown))
            if _fits(drawn, limit):
                return _noted(picture, drawn, depth, deepest, wish)
    # Not even what was asked for fits: without it, and then everything in one box, which always does.
    for opening in (_Opening(1, asked), _Opening(1), _Opening(0)):
        drawn = _drawn(picture, whole, opening)
        if _fits(drawn, limit):
            break
    return _noted(picture, drawn, opening.depth, deepest, wish)


def tree(picture: Picture, run: Run) -> Group:
    """The groups of a run's picture."""
    return grouped(picture, {module.path: module.type for module in run.modules}, run.script)


def is_small(picture: Picture) -> bool:
    """Whether a picture is shown whole, with no group closed."""
    return _fits(picture, WHOLE)


def opened_by_default(whole: Group, picture: Picture) -> tuple[int, frozenset[int]]:
    """The depth that is readable on one page, and the numbers of groups opened besides since they hold a cut."""
    shown = _around_cuts(whole, picture)
    for depth in range(_depth(whole), 1, -1):
        if _count([whole], 0, _Opening(depth, shown=shown)) <= COMFORTABLE:
            return depth, shown
    return 1, shown


def _fits(picture: Picture, limit: int) -> bool:
    return len(picture.vertices) <= limit and len(picture.edges) <= _EDGES_PER_BOX * limit


@dataclass(frozen=True, slots=True)
class _Opening:
    """Which groups are open: those above a depth, those `asked` for, which stand apart, and those `shown` for a cut."""

    depth: int
    asked: frozenset[int] = frozenset()
    shown: frozenset[int] = frozenset()

    def opens(self, group: Group, depth: int) -> bool:
        if group.number in self.asked or group.number in self.shown:
            return True
        return depth < self.depth and group.sort in _LEVELS

    def rows(self, children: Sequence[Member]) -> Iterator[range]:
        """The places of children that are drawn over each other."""
        start = 0
        for place in range(1, len(children) + 1):
            if place == len(children) or not self._alike(children[start], children[place]):
                yield range(start, place)
                start = place

    def _alike(self, one: Member, other: Member) -> bool:
        if not isinstance(one, Group) or not isinstance(other, Group) or not same_row(one, other):
            return False
        return one.number not in self.asked and other.number not in self.asked


def _asked(whole: Group, patterns: Sequence[str]) -> frozenset[int]:
    """The groups that match a pattern, and those around them."""
    return _with_those_around(
        whole, lambda group: bool(group.path) and any(fnmatchcase(group.path, pattern) for pattern in patterns)
    )


def _around_cuts(whole: Group, picture: Picture) -> frozenset[int]:
    """The groups that both ends of a cut lie in, or an operation that was refused: closed, they would hide it."""
    cuts = [edge for edge in picture.edges if edge.kind == "cut"][:_CUTS]
    refused = [vertex.id for vertex in picture.vertices if vertex.refused]
    if not cuts and not refused:
        return frozenset()
    trails: dict[str, tuple[int, ...]] = {}
    waiting: list[tuple[Member, tuple[int, ...]]] = [(whole, ())]
    while waiting:
        member, trail = waiting.pop()
        if isinstance(member, Group):
            waiting += [(child, (*trail, member.number)) for child in member.children]
        else:
            trails[member.id] = trail
    found = {number for box in refused for number in trails[box]}
    for edge in cuts:
        for one, other in zip(trails[edge.tail], trails[edge.head], strict=False):
            if one == other:
                found.add(one)
    return frozenset(found)


def _with_those_around(whole: Group, wanted: Callable[[Group], bool]) -> frozenset[int]:
    found: set[int] = set()
    waiting: list[tuple[Group, tuple[int, ...]]] = [(whole, ())]
    while waiting:
        group, trail = waiting.pop()
        trail = (*trail, group.number)
        if wanted(group):
            found.update(trail)
        waiting += [(child, trail) for child in group.children if isinstance(child, Group)]
    return frozenset(found)


def _depth(whole: Group) -> int:
    """How many levels can be opened."""
    deepest, waiting = 0, [(whole, 1)]
    while waiting:
        group, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = (child for child in group.children if isinstance(child, Group))
        waiting += [(child, depth + 1) for child in inner if child.sort in _LEVELS]
    return deepest


def _count(copies: Sequence[Member], depth: int, opening: _Opening) -> int:
    """How many boxes are seen of these copies of one member."""
    first = copies[0]
    if not isinstance(first, Group) or not opening.opens(first, depth):
        return 1
    return sum(_count([first.children[row[0]]], depth + 1, opening) for row in opening.rows(first.children))


_Trail: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(slots=True)
class _Drawing:
    """What is seen: boxes, frames, and for each box of the picture where it went.

    `places` gives the box that stands for it, and which of the copies in each frame around it is meant.
    """

    opening: _Opening
    vertices: list[Vertex] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    places: dict[str, tuple[int, _Trail]] = field(default_factory=dict)
    closed: dict[int, Group] = field(default_factory=dict)

    def show(self, copies: Sequence[Member], row: int, depth: int, frame: str | None, trails: Sequence[_Trail]) -> None:
        """Draw copies of one member over each other, of which the first `row` follow each other.

        `trails` tell for each in which copies of the frames it lies.
        """
        first = copies[0]
        if not isinstance(first, Group):
            boxes = [copy for copy in copies if isinstance(copy, Vertex)]
            self._add(_over(boxes, frame), [[box] for box in boxes], trails)
            return
        groups = [copy for copy in copies if isinstance(copy, Group)]
        if not self.opening.opens(first, depth):
            self.closed[len(self.vertices)] = first
            members = [list(group.boxes()) for group in groups]
            self._add(_closed(groups, members, row, frame), members, trails)
            return
        rows = list(self.opening.rows(first.children))
        if first.sort != "whole" and (row > 1 or _worth_a_frame(first, len(rows))):
            cluster = Cluster(f"g{first.number}", first.path, *_words(groups[:row]), frame, row)
            frame = cluster.id
            self.clusters.append(cluster)
            if len(groups) > 1:
                trails = [(*trail, (frame, place)) for place, trail in enumerate(trails)]
        for places in rows:
            pairs = [(group.children[p], trail) for group, trail in zip(groups, trails, strict=True) for p in places]
            self.show([member for member, _ in pairs], len(places), depth + 1, frame, [trail for _, trail in pairs])

    def _add(self, vertex: Vertex, members: Sequence[Sequence[Vertex]], trails: Sequence[_Trail]) -> None:
        for boxes, trail in zip(members, trails, strict=True):
            for box in boxes:
                self.places[box.id] = len(self.vertices), trail
        self.vertices.append(vertex)


def _worth_a_frame(group: Group, rows: int) -> bool:
    """Whether a frame says more than the one in it: not around a list of blocks alone, nor around one operation."""
    inner = [child for child in group.children if isinstance(child, Group)]
    operations = [child for child in group.children if isinstance(child, Vertex) and child.kind == "operation"]
    return (rows > 1 and bool(inner)) or len(operations) > 1


def _drawn(picture: Picture, whole: Group, opening: _Opening) -> Picture:
    drawing = _Drawing(opening)
    drawing.show([whole], 1, 0, None, [()])
    edges: dict[tuple[int, int], Edge] = {}
    results: dict[int, set[tuple[str, ...]]] = {}
    boxes = {vertex.id: vertex for vertex in picture.vertices}
    for edge in picture.edges:
        (tail, tail_trail), (head, head_trail) = drawing.places[edge.tail], drawing.places[edge.head]
        if tail == head:
            continue
        # From one copy into the next: over each other, that would be an arrow backwards.
        if any(a != b and a[0] == b[0] for a, b in zip(tail_trail, head_trail, strict=False)):
            continue
        if tail in drawing.closed and boxes[edge.tail].kind == "operation":
            results.setdefault(tail, set()).add(boxes[edge.tail].details)
        known = edges.get((tail, head))
        if known is None or _STRENGTH[edge.kind] > _STRENGTH[known.kind]:
            edges[tail, head] = edge
    vertices = drawing.vertices
    for place, group in drawing.closed.items():
        shapes = {detail.rpartition(" ")[2] for details in results.get(place, ()) for detail in details}
        if len(shapes) == 1 and group.sort in ("module", "function", "part"):
            vertices[place] = replace(vertices[place], details=(*vertices[place].details, f"gives {shapes.pop()}"))
    arrows = tuple(Edge(vertices[a].id, vertices[b].id, edge.kind, edge.span) for (a, b), edge in edges.items())
    return Picture(tuple(vertices), arrows, picture.note, tuple(drawing.clusters))


def _over(boxes: Sequence[Vertex], frame: str | None) -> Vertex:
    """One box that stands for several at the same place of groups that are alike."""
    first = boxes[0]
    if len(boxes) == 1:
        return replace(first, cluster=frame)
    tensor = first.kind != "operation"
    lines = {(box.span.file, box.span.line) if box.span else None for box in boxes}
    return replace(
        first,
        span=first.span if len(lines) == 1 else None,
        title=f"*.{first.title.rpartition('.')[2]}" if tensor and first.details else first.title,
        details=first.details if tensor else tuple(detail.rpartition(" ")[2] for detail in first.details),
        gradient=Gradient.over(box.gradient for box in boxes),
        saved=_sum(box.saved for box in boxes),
        cluster=frame,
    )


def _closed(groups: Sequence[Group], members: Sequence[Sequence[Vertex]], row: int, frame: str | None) -> Vertex:
    """The box of a closed group; words are those of one of its copies, figures those of all."""
    group, boxes = groups[0], [box for copy in members for box in copy]
    first = boxes[0]
    plain = group.sort in ("line", "tensors")
    title, detail = _words(groups[:row])
    details = _common_details(boxes) if plain else (detail, _contents(members[0]))
    parameters = [box for box in boxes if box.kind == "parameter"]
    return Vertex(
        f"g{group.number}",
        first.kind if plain else "group",
        title,
        tuple(filter(None, details)),
        span=first.span if group.sort == "line" else None,
        module=first.module if group.sort == "line" else None,
        frozen=bool(parameters) and all(box.frozen for box in parameters),
        count=len(members[0]) if plain else row,
        cut_off=all(box.cut_off for box in boxes),
        refused=any(box.refused for box in boxes),
        gradient=Gradient.over(box.gradient for box in boxes if box.kind in ("parameter", "input")),
        saved=_sum(box.saved for box in boxes),
        elements=sum(box.elements for box in parameters),
        cluster=frame,
    )


def _words(groups: Sequence[Group]) -> tuple[str, str]:
    """The title of a group, or of several in a row that are alike, and what is said beside it."""
    group, last = groups[0], groups[-1]
    if group.sort in ("line", "tensors"):
        boxes = list(group.boxes())
        return (f"{len(boxes):,} x {group.title}" if group.sort == "line" else f"{len(boxes):,} {boxes[0].kind}s"), ""
    if group.sort == "part":
        return group.title, f"{sum(1 for _ in group.boxes()):,} in a row"
    if len(groups) > 1:
        return (f"{len(groups):,} x {group.type}" if group.type else f"{len(groups):,} alike"), _range(
            group.path, last.path
        )
    if group.sort == "function":
        return group.title, group.type or ""
    return (f"{group.title}: {group.type}" if group.type else group.title), ""


def _range(first: str, last: str) -> str:
    """As in `model.blocks.0 .. 11`."""
    start, end = first.split("."), last.split(".")
    same = next((i for i, (a, b) in enumerate(zip(start, end, strict=False)) if a != b), 0)
    return f"{first} .. {'.'.join(end[same:])}"


def _contents(boxes: Sequence[Vertex]) -> str:
    """`12 operations, 4 parameters (7.09M, frozen)`."""
    operations = [box for box in boxes if box.kind == "operation"]
    parameters = [box for box in boxes if box.kind == "parameter"]
    names = list(dict.fromkeys(box.title for box in operations))
    parts = []
    if len(names) == 1:
        parts.append(names[0] if len(operations) == 1 else f"{len(operations):,} x {names[0]}")
    elif operations:
        parts.append(f"{len(operations):,} operations")
    if parameters:
        frozen = sum(box.frozen for box in parameters)
        ice = "" if not frozen else ", frozen" if frozen == len(parameters) else f", {frozen} frozen"
        kept = "parameter" if len(parameters) == 1 else "parameters"
        parts.append(f"{len(parameters):,} {kept} ({amount(sum(box.elements for box in parameters))}{ice})")
    return ", ".join(parts)


def _common_details(boxes: Sequence[Vertex]) -> tuple[str, ...]:
    return boxes[0].details if len({box.details for box in boxes}) == 1 else ()


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


def _noted(picture: Picture, drawn: Picture, depth: int, deepest: int, wish: Wish) -> Picture:
    """The picture with a line that says what is folded, and how to see more."""
    before, after = len(picture.vertices), len(drawn.vertices)
    parts = [picture.note] if picture.note else []
    if after < before:
        said = f"{before:,} boxes folded into {after:,}"
        if wish.depth is not None and depth < min(wish.depth, deepest):
            said += f"; depth {wish.depth} would be too many to lay out, this is {depth}"
        elif depth < deepest:
            said += f", opened to depth {depth} of {deepest}: --depth {depth + 1} or --open PATH shows more"
        parts.append(said)
    return replace(drawn, note="; ".join(parts) or None)
