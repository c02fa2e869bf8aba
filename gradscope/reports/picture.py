"""What a picture of a run shows: its vertices and edges, before anything is written as DOT.

The picture is the data flow of one step, read backwards from what backward started from. A run without
recorded operations shows the autograd nodes that were walked instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gradscope.graph.facts import Backward, Node, Operation, Run, Span, Step, Tensor
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.roles import Role, roles
from gradscope.reports.flow import Flow

Kind = Literal["operation", "group"] | Role
Arrival = Literal["some", "zero", "nonfinite", "none"]

_NAMED_RESULTS = 3


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradients of a tensor, or of several: the least and the largest median |grad|, and whether any arrived.

    `arrival` is the worst of them: `nonfinite`, `none`, `zero` (all that arrived were zero), `some`.
    """

    least: float | None
    largest: float | None
    arrival: Arrival
    steps: int = 0

    @classmethod
    def over(cls, several: Iterable[Gradient | None]) -> Gradient | None:
        """What holds of several tensors together; None where none of them was judged."""
        found = [one for one in several if one is not None]
        if not found:
            return None
        least = [one.least for one in found if one.least is not None]
        largest = [one.largest for one in found if one.largest is not None]
        worst = max((one.arrival for one in found), key=_WORSE.index)
        return cls(min(least, default=None), max(largest, default=None), worst, max(one.steps for one in found))


_WORSE: tuple[Arrival, ...] = ("some", "zero", "none", "nonfinite")


@dataclass(frozen=True, slots=True)
class Vertex:
    """One box of the picture: an operation, a tensor, or a closed group of them.

    `details` are small lines under the title. `frozen` marks a parameter that asks for no gradient, `cut_off` what lies
    behind a cut: no gradient comes back to it. `count` above 1 says that so many alike are drawn as one. `gradient`
    is that of a leaf which somebody trains, `saved` the bytes kept for backward where they were read, `elements` how
    many numbers a tensor holds. `cluster` is the id of the open group around the box, `module` the path of its module.
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
    gradient: Gradient | None = None
    saved: int | None = None
    elements: int = 0
    cluster: str | None = None


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
class Cluster:
    """An open group, drawn as a frame around its boxes and further frames; `parent` is the frame around it.

    `path` is that of the group, or of the first of `count` groups that are alike.
    """

    id: str
    path: str
    title: str
    detail: str = ""
    parent: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is drawn, with one line about it where there is something to say."""

    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    note: str | None = None
    clusters: tuple[Cluster, ...] = ()


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
    saved: dict[int | None, int] = {}
    for node in (node for backward in step.backwards for node in backward.nodes):
        if node.saved is not None:
            saved[node.operation] = saved.get(node.operation, 0) + node.saved
    vertices = [replace(_operation(flow, op, ends), saved=saved.get(op.id)) for op in operations]
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
    users: dict[str, list[str | None]] = {}
    modules = {f"o{op.id}": op.module or None for op in operations}
    for tail, head in edges:
        if head in modules:
            users.setdefault(tail, []).append(modules[head])
    for number in tensors:
        vertex = _tensor(flow.tensors[number], role)
        vertices.append(replace(vertex, module=_home(flow.tensors[number], users.get(vertex.id, ()), flow)))
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
    return Vertex(
        f"t{tensor.id}",
        kind,
        title,
        details,
        span=tensor.made,
        frozen=frozen,
        gradient=None if frozen else gradient_of(tensor),
        elements=math.prod(tensor.shape),
    )


def gradient_of(tensor: Tensor) -> Gradient | None:
    """What was confirmed of a tensor's gradient; None where nobody waited for one."""
    received = tensor.received
    if received is None or not received.of:
        return None
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    median = statistics.median(norms) if norms else None
    arrival: Arrival = "some"
    if not received.steps:
        arrival = "none"
    elif received.nonfinite:
        arrival = "nonfinite"
    elif received.zero == received.steps:
        arrival = "zero"
    return Gradient(median, median, arrival, received.of)


def _home(tensor: Tensor, users: Iterable[str | None], flow: Flow) -> str | None:
    """The module in whose frame a tensor stands.

    What a module holds stands where it is used, which is not where it is registered when one module reads the weights
    of another. What was made inside of a module, such as a mask, stands where it was made.
    """
    if tensor.registered:
        return common_module(users)
    return flow.made_in(tensor)


def common_module(modules: Iterable[str | None]) -> str | None:
    """The innermost module that holds all of these paths; None where one of them is outside of all modules."""
    common: list[str] | None = None
    for module in modules:
        parts = module.split(".") if module else []
        if common is None:
            common = parts
        length = next((i for i, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b), len(parts))
        common = common[:length]
    return ".".join(common or ()) or None


def _gradient_flow(run: Run, backward: Backward) -> Picture:
    role = roles(run)
    tensors = {tensor.id: tensor for tensor in run.tensors}
    made_by = {op.id: op for step in run.steps for op in step.operations}
    modules = _modules_of_nodes(run, backward, tensors, made_by)
    names: dict[int, str] = {}
    vertices: dict[str, Vertex] = {}
    # The walk goes against the data: read backwards, boxes come in the order in which they ran.
    for node in sorted(backward.nodes, key=lambda node: (node.sequence or 0, -node.id)):
        leaf = tensors.get(node.tensor) if node.tensor is not None else None
        vertex = replace(_tensor(leaf, role) if leaf else _node(node, made_by), module=modules.get(node.id))
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
    return Vertex(f"n{node.id}", "operation", node.name, (), span=op.span if op else None, saved=node.saved)


def _modules_of_nodes(
    run: Run, backward: Backward, tensors: Mapping[int, Tensor], made_by: Mapping[int, Operation]
) -> dict[int, str | None]:
    """The module of each node: of its operation or, where none was recorded, as far as the parameters tell.

    A node that takes a parameter runs in the module that holds it. In the order of the run, what lies between two
    such nodes belongs to the module around both.
    """
    types = {module.path: module.type for module in run.modules}
    known: dict[int, str | None] = {}
    for node in backward.nodes:
        leaf = tensors.get(node.tensor) if node.tensor is not None else None
        if leaf is not None and leaf.registered and leaf.name:
            known[node.id] = _owner(leaf, types)
        elif node.operation is not None and node.operation in made_by:
            known[node.id] = made_by[node.operation].module or None
    for node in backward.nodes:
        held = [known[below] for below, _ in node.edges if below in known and backward.nodes[below].tensor is not None]
        if held and node.id not in known:
            known[node.id] = common_module(held)
    order = sorted((n for n in backward.nodes if n.sequence is not None), key=lambda node: node.sequence or 0)
    inner = [node.id for node in order if node.tensor is None]
    waiting: list[int] = []
    before: str | None = None
    for number in inner:
        if number not in known:
            waiting.append(number)
            continue
        for between in waiting:
            known[between] = _between(before, known[number], types)
        before, waiting = known[number], []
    return known


_CONTAINERS = ("ModuleList", "ModuleDict", "Sequential")  # that compute nothing themselves


def _between(before: str | None, after: str | None, types: Mapping[str, str]) -> str | None:
    """The module around what runs between two others: in a list of blocks, the block that was running."""
    common = common_module((before, after))
    if before is None or common is None or types.get(common) not in _CONTAINERS:
        return common
    inner = ".".join(before.split(".")[: common.count(".") + 2])
    return inner if inner != before else common


def _owner(tensor: Tensor, paths: Collection[str]) -> str | None:
    """The path of the module that holds a registered tensor: its name may begin with the root's variable or not."""
    inside = (tensor.name or "").rpartition(".")[0]
    root = tensor.module or ""
    whole = ".".join(filter(None, (root, inside)))
    return (whole if whole in paths or inside not in paths else inside) or None
