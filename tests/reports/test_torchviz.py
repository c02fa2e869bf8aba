"""The style of torchviz, compared with what torchviz itself draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pygraphviz  # type: ignore[import-untyped]
import pytest
import torch
import torchviz  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.graph.facts import Node, Run
from gradscope.reports.dot import to_dot
from tests.runs import Book


def _live_graphs() -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    out = net(torch.rand(5, 3))
    w = torch.rand(3, 3, requires_grad=True)
    square = (w @ w) * w
    return {
        "mlp": torch.nn.functional.mse_loss(out, torch.rand(5, 2)),
        "shared": square.sum() + (square * square).mean(),
        "outputs": (out.sum(), out.mean()),
    }


@pytest.mark.filterwarnings("ignore:distutils Version:DeprecationWarning")  # torchviz compares versions with them
@pytest.mark.parametrize("case", ["mlp", "shared", "outputs"])
def test_torchviz_style_draws_what_torchviz_draws(case: str) -> None:
    """Labels with their multiplicity, colours and arrows are those of `torchviz.make_dot`."""
    outputs = _live_graphs()[case]
    theirs = pygraphviz.AGraph(string=torchviz.make_dot(outputs).source)
    roots = outputs if isinstance(outputs, tuple) else (outputs,)
    ours = pygraphviz.AGraph(string=to_dot(_walked(roots), "torchviz"))
    assert _boxes(ours) == _boxes(theirs)
    assert _arrows(ours) == _arrows(theirs)


def _walked(roots: Sequence[torch.Tensor]) -> Run:
    book = Book()
    found = list(dict.fromkeys(root.grad_fn for root in roots if root.grad_fn is not None))
    for node in found:
        for below, _ in node.next_functions:
            if below is not None and below not in found:
                found.append(below)
    place = {node: index for index, node in enumerate(found)}
    nodes = []
    for node in found:
        edges = tuple((place[below], index) for below, index in node.next_functions if below is not None)
        leaf = getattr(node, "variable", None)
        tensor = None
        if leaf is not None:
            tensor = book.values[book.leaf(None, leaf.shape, grad=True)].tensor
        nodes.append(Node(place[node], type(node).__name__, edges, tensor=tensor))
    values = [
        book._value(None, root.shape, True, leaf=False, requires_grad=True, grad_fn=type(root.grad_fn).__name__)
        for root in roots
    ]
    book.step(*values, nodes=nodes)
    return book.run()


def _boxes(graph: pygraphviz.AGraph) -> Counter[tuple[str, str]]:
    return Counter((node.attr["label"].replace("\\n", "\n"), node.attr["fillcolor"]) for node in graph.nodes())


def _arrows(graph: pygraphviz.AGraph) -> Counter[tuple[str, str]]:
    label = {node: node.attr["label"].replace("\\n", "\n") for node in graph.nodes()}
    return Counter((label[a], label[b]) for a, b in graph.edges())


@settings(max_examples=80)
@given(st.text(max_size=40))
def test_any_name_parses_in_the_style_of_torchviz(name: str) -> None:
    """Whatever a tensor is called, the DOT in torchviz's style has the same boxes and arrows."""
    book = Book()
    book.leaf(name, (2,), grad=True)
    loss = book._value("loss", (), True, leaf=False, requires_grad=True, grad_fn="SumBackward0")
    nodes = [Node(0, "SumBackward0", ((1, 0),)), Node(1, "AccumulateGrad", (), tensor=0)]
    book.step(loss, nodes=nodes)
    graph = pygraphviz.AGraph(string=to_dot(book.run(), "torchviz"))
    assert (len(graph.nodes()), len(graph.edges())) == (4, 3)
