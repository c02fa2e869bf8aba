"""The picture of a run.

It is the data flow of one step, read backwards from what backward started from. A run without
recorded operations shows the autograd nodes that were walked instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from gradscope.graph.facts import Operation, Run, Step, Tensor
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.roles import roles
from gradscope.reports.boxes import Edge, Picture, Vertex, arrows, common_module, tensor_box
from gradscope.reports.flow import Flow
from gradscope.reports.walked import gradient_flow, walked_backward

_NAMED_RESULTS = 3


def picture(run: Run, cuts: Collection[int] = ()) -> Picture:
    """The picture of a run's latest step that ran backward, unfolded whatever its size.

    `cuts` are the ids of operations at which findings say that a gradient is lost; with any, it is the step in which
    they were found that is drawn. Where the script ended with a call that torch refused, it is what leads to that.
    """
    refused = run.crash.call.operation if run.crash is not None and run.crash.call is not None else None
    step = _step(run, cuts if refused is None else [refused])
    drawn = _data_flow(run, step, cuts, refused) if step is not None else None
    if drawn is not None and any(vertex.kind == "operation" for vertex in drawn.vertices):
        return drawn
    walked = walked_backward(run)
    if walked is not None:
        return gradient_flow(run, walked)
    return drawn or Picture((), (), "nothing to draw: no operation was recorded")


def _step(run: Run, cuts: Collection[int]) -> Step | None:
    for step in run.steps if cuts else ():
        if any(operation.id in cuts for operation in step.operations):
            return step
    for step in reversed(run.steps):
        if step.backwards:
            return step
    return next((step for step in reversed(run.steps) if step.operations), None)


def _data_flow(run: Run, step: Step, cuts: Collection[int], refused: int | None) -> Picture:
    losing = [op for op in step.operations if op.id in cuts or op.id == refused]
    exits = [op for op in losing if not op.outputs]
    flow = Flow(run, step, losing)
    role = roles(run)
    operations, ends = [*flow.operations(), *exits], frozenset(flow.ends)
    saved = _saved(run, step)
    vertices = [
        replace(_operation(flow, op, ends), saved=saved.get(op.id), refused=op.id == refused) for op in operations
    ]
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
        vertex = tensor_box(flow.tensors[number], role)
        vertices.append(replace(vertex, module=_home(flow.tensors[number], users.get(vertex.id, ()), flow)))
    lines = {f"o{op.id}": op.span for op in operations if op.id in cuts and op.id != refused}
    drawn = [
        replace(edge, kind="cut", span=lines[edge.head]) if edge.head in lines and edge.kind == "gradient" else edge
        for edge in arrows(edges)
    ]
    greyed = list(_greyed(vertices, drawn))
    behind = {vertex.id for vertex in greyed if vertex.cut_off}
    drawn = [replace(edge, kind="data") if edge.head in behind and edge.kind == "gradient" else edge for edge in drawn]
    return Picture(tuple(greyed), tuple(drawn))


def _saved(run: Run, step: Step) -> dict[int, int]:
    """The bytes that each operation of a step keeps for backward, as far as they were read.

    Graphs are walked ever more rarely in a long run: then the latest walked step of the same operations tells.
    """
    names = [op.name for op in step.operations]
    for other in (step, *reversed(run.steps)):
        nodes = [node for backward in other.backwards for node in backward.nodes if node.saved is not None]
        if not nodes or [op.name for op in other.operations] != names:
            continue
        same = {there.id: here.id for there, here in zip(other.operations, step.operations, strict=True)}
        found: dict[int, int] = {}
        for node in nodes:
            here = same.get(node.operation) if node.operation is not None else None
            if here is not None:
                found[here] = found.get(here, 0) + (node.saved or 0)
        return found
    return {}


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


def _home(tensor: Tensor, users: Iterable[str | None], flow: Flow) -> str | None:
    """The module in whose frame a tensor stands.

    What a module holds stands where it is used, which is not where it is registered when one module reads the weights
    of another. What was made inside of a module, such as a mask, stands where it was made.
    """
    if tensor.registered:
        return common_module(users)
    return flow.made_in(tensor)
