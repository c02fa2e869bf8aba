"""The groups of a picture: what belongs together, as a tree from the whole picture down to its boxes.

Operations belong to their module, by its path; outside of modules to their function. What happens often at one line is
a group too, and so are many tensors of one role. A group of very many is parted, so that any can be opened.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

from gradscope.reports.boxes import Edge, Picture, Vertex

_OFTEN = 3  # operations of one name at one line that make a group
_MANY = 6  # tensors of one role
_FAN = 60  # things in one group; more are parted

Sort = Literal["whole", "module", "function", "line", "tensors", "part"]


@dataclass(slots=True)
class Group:
    """A box that can be opened.

    `path` is the name by which it is opened. `alike` is the same for two groups that hold the same operations, shapes
    and connections, and to whose parameters gradients came alike.
    """

    sort: Sort
    path: str
    title: str
    type: str | None = None
    children: list[Member] = field(default_factory=list)
    number: int = 0
    alike: int = 0

    def boxes(self) -> Iterator[Vertex]:
        """All boxes inside, in their order."""
        waiting: list[Member] = [self]
        while waiting:
            member = waiting.pop()
            if isinstance(member, Group):
                waiting += reversed(member.children)
            else:
                yield member

    def groups(self) -> Iterator[Group]:
        """The group itself and all inside of it, outer ones first."""
        waiting = [self]
        while waiting:
            group = waiting.pop()
            yield group
            waiting += reversed([child for child in group.children if isinstance(child, Group)])


Member: TypeAlias = "Group | Vertex"


def grouped(picture: Picture, types: Mapping[str, str], main: str | None = None) -> Group:
    """The tree of a picture. `types` are the classes of modules by path, `main` the script that was run."""
    whole = Group("whole", "", "")
    known: dict[tuple[str, str], Group] = {}
    for vertex in in_order(picture):
        _place(vertex, whole, known, types, main).children.append(vertex)
    _shorten(whole)
    for group in list(whole.groups()):
        group.children = list(_gathered(group))
    _mark_alike(whole, picture.edges)
    for group in list(whole.groups()):
        group.children = _parted(group)
    for number, group in enumerate(whole.groups()):
        group.number = number
    return whole


def same_row(one: Member, other: Member) -> bool:
    """Whether two members that follow each other may be drawn over each other."""
    return (
        isinstance(one, Group) and isinstance(other, Group) and one.sort == other.sort == "module"
    ) and one.alike == other.alike


def in_order(picture: Picture) -> list[Vertex]:
    """Boxes as they come into play: operations in the order of the run, a tensor before the first that takes it."""
    place = {v.id: 2 * i + 1 for i, v in enumerate(v for v in picture.vertices if v.kind == "operation")}
    last = 2 * len(place) + 2
    first: dict[str, int] = {}
    for edge in picture.edges:
        if edge.head in place and edge.tail not in place:
            first[edge.tail] = min(first.get(edge.tail, last), place[edge.head] - 1)
    # Sorting keeps the order of what stands at the same place.
    return sorted(picture.vertices, key=lambda vertex: place.get(vertex.id, first.get(vertex.id, last)))


def _place(
    vertex: Vertex,
    whole: Group,
    known: dict[tuple[str, str], Group],
    types: Mapping[str, str],
    main: str | None,
) -> Group:
    """The group that a box stands in, made where it is the first."""
    if vertex.module is None:
        function = vertex.span.function if vertex.span is not None and vertex.kind == "operation" else None
        if function is None or vertex.span is None or function == "<module>":
            return whole
        path = f"{function}()"
        key = vertex.span.file, path
        if key not in known:
            detail = None if vertex.span.file == main else vertex.span.file
            known[key] = Group("function", path, path, detail)
            whole.children.append(known[key])
        return known[key]
    group, path = whole, ""
    for name in vertex.module.split("."):
        path = f"{path}.{name}" if path else name
        key = "", path
        if key not in known:
            known[key] = Group("module", path, name, types.get(path))
            group.children.append(known[key])
        group = known[key]
    return group


def _shorten(whole: Group) -> None:
    """Take out groups that only stand around another one: `self` around `self.model`, no module itself."""
    for group in list(whole.groups()):
        for place, child in enumerate(group.children):
            while isinstance(child, Group) and child.type is None and len(child.children) == 1:
                only = child.children[0]
                if isinstance(only, Group):
                    only.title = f"{child.title}.{only.title}"
                elif child.sort == "module":
                    break
                child = only
            group.children[place] = child


def _gathered(group: Group) -> Iterator[Member]:
    """The members of a group, with what happens often at one line and many tensors of one role as groups."""
    alike: dict[Hashable, list[Vertex]] = {}
    for member in group.children:
        if isinstance(member, Vertex):
            alike.setdefault(_kin(member), []).append(member)
    made: set[Hashable] = set()
    for member in group.children:
        key = _kin(member) if isinstance(member, Vertex) else None
        boxes = alike[key] if key is not None else []
        operation = bool(boxes) and boxes[0].kind == "operation"
        if len(boxes) < (_OFTEN if operation else _MANY):
            yield member
        elif key not in made:
            made.add(key)
            first = boxes[0]
            line = f":{first.span.line}" if first.span is not None and operation else ""
            path = f"{group.path}/{first.title if operation else first.kind + 's'}{line}".lstrip("/")
            yield Group("line" if operation else "tensors", path, first.title, children=list(boxes))


def _kin(vertex: Vertex) -> Hashable:
    if vertex.kind == "operation":
        line = (vertex.span.file, vertex.span.line) if vertex.span is not None else None
        return (vertex.title, line, vertex.cut_off, vertex.refused)
    return (vertex.kind, vertex.frozen, vertex.cut_off, vertex.gradient.arrival if vertex.gradient else None)


def _parted(group: Group) -> list[Member]:
    """The members of a group, in parts of parts where they are very many. Members in a row count as one."""
    members = group.children
    rows = 1 + sum(not same_row(one, other) for one, other in pairwise(members))
    if rows <= _FAN:
        return members
    while len(members) > _FAN:
        size = min(_FAN, -(-len(members) // _FAN))
        members = [_part(members[start : start + size], group, start) for start in range(0, len(members), size)]
    return members


def _part(members: list[Member], group: Group, start: int) -> Member:
    if len(members) == 1:
        return members[0]
    path = f"{group.path}[{start}:{start + len(members)}]"
    return Group("part", path, f"{_ends(members[0])[0]} .. {_ends(members[-1])[1]}", children=members)


def _ends(member: Member) -> tuple[str, str]:
    """The titles of the first and the last member of a part."""
    first, _, last = member.title.partition(" .. ")
    return (first, last) if isinstance(member, Group) and member.sort == "part" else (member.title, member.title)


def _mark_alike(whole: Group, edges: Iterable[Edge]) -> None:
    """Number the groups by what they are like, from the innermost outwards."""
    into: dict[str, list[Edge]] = {}
    for edge in edges:
        into.setdefault(edge.head, []).append(edge)
    numbers: dict[Hashable, int] = {}
    for group in reversed(list(whole.groups())):
        inside = {box.id: place for place, box in enumerate(group.boxes())}
        # What comes from outside may carry a gradient or not: the first of many blocks takes the data themselves.
        wiring = tuple(
            tuple(
                sorted(
                    (inside[edge.tail], edge.kind) if edge.tail in inside else (-1, "cut" if edge.kind == "cut" else "")
                    for edge in into.get(box, ())
                )
            )
            for box in inside
        )
        members = tuple(child.alike if isinstance(child, Group) else _look(child) for child in group.children)
        key = (group.sort, group.type, members, wiring)
        group.alike = numbers.setdefault(key, len(numbers))


def _look(vertex: Vertex) -> Hashable:
    # The name of a parameter without its path, the shape of a result without its name.
    title = vertex.title.rpartition(".")[2]
    details = tuple(detail.rpartition(" ")[2] for detail in vertex.details)
    arrival = vertex.gradient.arrival if vertex.gradient else None
    return (vertex.kind, title, details, vertex.frozen, vertex.cut_off, vertex.refused, arrival)
