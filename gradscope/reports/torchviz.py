"""The walked autograd graph in DOT, as torchviz draws it."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.graph.facts import Run, Tensor
from gradscope.reports.escaping import dot_string
from gradscope.reports.walked import root_nodes, walked_backward

_LEAF = "lightblue"
_OUTPUT = "darkolivegreen1"
_SIZE_OF_A_LINE = 0.15
_SMALLEST = 12.0


def to_torchviz(run: Run) -> str:
    """The DOT text of the latest walked backward, in torchviz's shapes, colours and labels."""
    body = list(_body(run))
    size = max(_SMALLEST, len(body) * _SIZE_OF_A_LINE)
    head = (
        "digraph {",
        f'  graph [size="{size},{size}"];',
        "  node [align=left fontname=monospace fontsize=10 height=0.2 ranksep=0.1 shape=box style=filled];",
    )
    return "\n".join([*head, *body, "}"]) + "\n"


def _body(run: Run) -> Iterator[str]:
    backward = walked_backward(run)
    if backward is None:
        return
    tensors = run.tensor_by_id
    leaves: set[int] = set()
    for node in backward.nodes:
        leaf = tensors.get(node.tensor) if node.tensor is not None else None
        if leaf is not None:
            if leaf.id not in leaves:
                yield _tensor(leaf, _LEAF)
            leaves.add(leaf.id)
            yield f"  t{leaf.id} -> n{node.id};"
        yield f'  n{node.id} [label="{dot_string(node.name)}"];'
        for below, _ in node.edges:
            yield f"  n{below} -> n{node.id};"
    for tensor, place in root_nodes(run, backward):
        yield _tensor(tensor, _OUTPUT)
        if place is not None:
            yield f"  n{place} -> t{tensor.id};"


def _tensor(tensor: Tensor, colour: str) -> str:
    shape = ", ".join(str(size) for size in tensor.shape)
    return f'  t{tensor.id} [label="{dot_string(tensor.name or "")}\\n ({shape})" fillcolor={colour}];'
