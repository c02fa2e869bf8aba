"""The picture of an autograd graph that was walked, where no operation was recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from gradscope.graph.facts import Backward, Node, Operation, Run, Tensor
from gradscope.graph.roles import roles
from gradscope.reports.boxes import Picture, Vertex, arrows, common_module, tensor_box


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
    tensors = run.tensor_by_id
    owners = run.holder
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


def gradient_flow(run: Run, backward: Backward) -> Picture:
    """The nodes of a walked graph and their leaves, read in the direction of the data."""
    role = roles(run)
    tensors = run.tensor_by_id
    made_by = {op.id: op for step in run.steps for op in step.operations}
    modules = _modules_of_nodes(run, backward, tensors, made_by)
    names: dict[int, str] = {}
    vertices: dict[str, Vertex] = {}
    # The walk goes against the data: read backwards, boxes come in the order in which they ran.
    for node in sorted(backward.nodes, key=lambda node: (node.sequence or 0, -node.id)):
        leaf = tensors.get(node.tensor) if node.tensor is not None else None
        vertex = replace(tensor_box(leaf, role) if leaf else _node(node, made_by), module=modules.get(node.id))
        names[node.id] = vertex.id
        vertices.setdefault(vertex.id, vertex)
    edges = {
        (names[below], names[node.id]): True for node in backward.nodes for below, _ in node.edges if below in names
    }
    for tensor, place in root_nodes(run, backward):
        vertex = tensor_box(tensor, role)
        vertices.setdefault(vertex.id, vertex)
        if place is not None:
            edges[names[backward.nodes[place].id], vertex.id] = True
    note = None if backward.complete else "the walk stopped at its limit: this is a part of the graph"
    return Picture(tuple(vertices.values()), tuple(arrows(edges)), note)


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
