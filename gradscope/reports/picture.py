"""What a picture of a run shows: its vertices and edges, before anything is written as DOT.

The picture is the data flow of one step, read backwards from what backward started from. A run without
recorded operations shows the autograd nodes that were walked instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gradscope.graph.facts import Backward, Node, Operation, Run, Span, Step, Tensor
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.roles import Role, roles
from gradscope.reports.flow import Flow

Kind = Literal["operation"] | Role

_NAMED_RESULTS = 3


@dataclass(frozen=True, slots=True)
class Vertex:
    """One box of the picture: an operation, a tensor, or (`count` above 1) a group of either.

    `details` are small lines under the title. `frozen` marks a parameter that asks for no gradient, `cut_off` what lies
    behind a cut: no gradient comes back to it.
    """

    id: str
    kind: Kind
    title: str
    details: tuple[str, ...] = ()
    module: str | None = None
    span: Span | None = None
    frozen: bool = False
    count: int = 1
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow in the direction of the data, from what makes a value to what uses it.

    At a `cut` the gradient is lost; `span` is the line that loses it.
    """

    tail: str
    head: str
    kind: Literal["gradient", "data", "cut"]
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is drawn, with one line about it where there is something to say."""

    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    note: str | None = None


def picture(run: Run, cuts: Collection[int] = ()) -> Picture:
    """The picture of a run's latest step that ran backward, unfolded whatever its size.

    `cuts` are the ids of operations at which findings say that a gradient is lost; with any, it is the step in which
    they were found that is drawn.
    """
    step = _step(run, cuts)
    drawn = _data_flow(run, step, cuts) if step is not None else None
    if drawn is not None and any(vertex.kind == "operation" for vertex in drawn.vertices):
        return drawn
    walked = walked_backward(run)
    if walked is not None:
        return _gradient_flow(run, walked)
    return drawn or Picture((), (), "nothing to draw: no operation was recorded")


def walked_backward(run: Run) -> Backward | None:
    """The latest backward whose autograd graph was walked."""
    for step in reversed(run.steps):
        for backward in reversed(step.backwards):
            if backward.nodes:
                return backward
    return None


def root_nodes(run: Run, backward: Backward) -> list[tuple[Tensor, int | None]]:
    """The tensors that a backward started from, each with the id of the node that made it.

    Facts do not tie a root to its node. The walk numbers the nodes of the roots first and in order, so
    the name of a root's `grad_fn` settles it.
    """
    tensors = {tensor.id: tensor for tensor in run.tensors}
    owners = {value.id: value.tensor for value in run.values}
    found = [tensors[owners[root]] for root in dict.fromkeys(backward.roots) if root in owners]
    nodes = backward.nodes
    if len(found) == 1:
        return [(found[0], 0 if nodes and nodes[0].tensor is None else None)]
    pairs: list[tuple[Tensor, int | None]] = []
    place = 0
    for tensor in found:
        if tensor.grad_fn is None:
            pairs.append((tensor, None))
        elif place < len(nodes) and nodes[place].name == tensor.grad_fn:
            pairs.append((tensor, place))
            place += 1
        elif place > 0 and nodes[place - 1].name == tensor.grad_fn:
            pairs.append((tensor, place - 1))
        else:
            pairs.append((tensor, None))
    return pairs


def _step(run: Run, cuts: Collection[int]) -> Step | None:
    for step in run.steps if cuts else ():
        if any(operation.id in cuts for operation in step.operations):
            return step
    for step in reversed(run.steps):
        if step.backwards:
            return step
    return next((step for step in reversed(run.steps) if step.operations), None)


def _data_flow(run: Run, step: Step, cuts: Collection[int]) -> Picture:
    losing = [op for op in step.operations if op.id in cuts]
    exits = [op for op in losing if not op.outputs]
    flow = Flow(run, step, losing)
    role = roles(run)
    operations, ends = [*flow.operations(), *exits], frozenset(flow.ends)
    vertices = [_operation(flow, op, ends) for op in operations]
    edges: dict[tuple[str, str], bool] = {}
    tensors: dict[int, None] = {}

    def connect(tail: str, head: str, history: bool) -> None:
        edges[tail, head] = edges.get((tail, head), False) or history

    def source(value: int) -> str | None:
        """The vertex that a value comes from; a tensor is drawn once however often it is used."""
        tensor = flow.tensor(value)
        maker = flow.followed(value)
        if tensor is None:
            return f"o{maker.id}" if maker else None
        if maker is not None and value not in ends:
            return f"o{maker.id}"
        tensors.setdefault(tensor.id)
        if maker is not None:
            connect(f"o{maker.id}", f"t{tensor.id}", flow.history(value))
        return f"t{tensor.id}"

    for op in operations:
        for value in op.inputs:
            tail = source(value)
            if tail is not None:
                connect(tail, f"o{op.id}", flow.history(value))
    for value in flow.ends:
        source(value)
    vertices.extend(_tensor(flow.tensors[number], role) for number in tensors)
    lines = {f"o{op.id}": op.span for op in operations if op.id in cuts}
    drawn = [
        replace(edge, kind="cut", span=lines[edge.head]) if edge.head in lines and edge.kind == "gradient" else edge
        for edge in _edges(edges)
    ]
    greyed = list(_greyed(vertices, drawn))
    behind = {vertex.id for vertex in greyed if vertex.cut_off}
    drawn = [replace(edge, kind="data") if edge.head in behind and edge.kind == "gradient" else edge for edge in drawn]
    return Picture(tuple(greyed), tuple(drawn))


def _greyed(vertices: list[Vertex], edges: list[Edge]) -> Iterator[Vertex]:
    """Mark what a gradient that starts at the ends cannot come back to, since every way there crosses a cut."""
    if not any(edge.kind == "cut" for edge in edges):
        yield from vertices
        return
    sources: dict[str, list[str]] = {}
    for edge in edges:
        if edge.kind != "cut":
            sources.setdefault(edge.head, []).append(edge.tail)
    inner = {edge.tail for edge in edges}
    waiting = [vertex.id for vertex in vertices if vertex.id not in inner]
    reached = set(waiting)
    while waiting:
        fresh = [tail for tail in sources.get(waiting.pop(), ()) if tail not in reached]
        reached.update(fresh)
        waiting.extend(fresh)
    for vertex in vertices:
        yield vertex if vertex.id in reached else replace(vertex, cut_off=True)


def _edges(edges: dict[tuple[str, str], bool]) -> Iterator[Edge]:
    for (tail, head), history in edges.items():
        yield Edge(tail, head, "gradient" if history else "data")


def _operation(flow: Flow, op: Operation, ends: frozenset[int]) -> Vertex:
    inner = [tensor for value in op.outputs if value not in ends and (tensor := flow.tensor(value))]
    details = [
        f"{tensor.name} {shape_text(tensor.shape)}" if tensor.name else shape_text(tensor.shape)
        for tensor in inner[:_NAMED_RESULTS]
    ]
    if len(inner) > _NAMED_RESULTS:
        details.append(f"and {len(inner) - _NAMED_RESULTS} more")
    title = short_name(op.name)
    return Vertex(f"o{op.id}", "operation", title, tuple(details), op.module or None, op.span)


def _tensor(tensor: Tensor, role: dict[int, Role]) -> Vertex:
    kind = role[tensor.id]
    shape = shape_text(tensor.shape)
    title, details = (tensor.name, (shape,)) if tensor.name else (shape, ())
    frozen = kind == "parameter" and not tensor.requires_grad
    module = (tensor.module or None) if tensor.registered else None
    return Vertex(f"t{tensor.id}", kind, title, details, module, frozen=frozen)


def _gradient_flow(run: Run, backward: Backward) -> Picture:
    role = roles(run)
    tensors = {tensor.id: tensor for tensor in run.tensors}
    made_by = {op.id: op for step in run.steps for op in step.operations}
    names: dict[int, str] = {}
    vertices: dict[str, Vertex] = {}
    for node in backward.nodes:
        leaf = tensors.get(node.tensor) if node.tensor is not None else None
        vertex = _tensor(leaf, role) if leaf else _node(node, made_by)
        names[node.id] = vertex.id
        vertices.setdefault(vertex.id, vertex)
    edges = {
        (names[below], names[node.id]): True for node in backward.nodes for below, _ in node.edges if below in names
    }
    for tensor, place in root_nodes(run, backward):
        vertex = _tensor(tensor, role)
        vertices.setdefault(vertex.id, vertex)
        if place is not None:
            edges[names[backward.nodes[place].id], vertex.id] = True
    note = None if backward.complete else "the walk stopped at its limit: this is a part of the graph"
    return Picture(tuple(vertices.values()), tuple(_edges(edges)), note)


def _node(node: Node, made_by: dict[int, Operation]) -> Vertex:
    op = made_by.get(node.operation) if node.operation is not None else None
    module, span = (op.module or None, op.span) if op else (None, None)
    return Vertex(f"n{node.id}", "operation", node.name, (), module, span)
