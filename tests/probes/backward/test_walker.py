"""Walking autograd graphs."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.probes.backward.walker import Walk, outputs_in, walk
from gradscope.probes.forward.callsites import CallSites
from gradscope.probes.tape import Tape
from tests.workshop import Workshop


def walked(*roots: torch.Tensor, limit: int = 5_000_000, saved: bool = False) -> Walk:
    """A walk with sequence numbers."""
    tape = Tape(CallSites())
    return walk(roots, tape.subject, limit, sequences=True, saved=saved)


def edges(found: Walk) -> Counter[tuple[str, str, int]]:
    """The edges by the names of their ends and the output that they use."""
    return Counter(
        (found.names[node], found.names[found.targets[place]], found.outputs[place])
        for node in range(len(found))
        for place in range(found.starts[node], found.starts[node + 1])
    )


def leaf(*shape: int) -> torch.Tensor:
    """A leaf that requires grad."""
    return torch.rand(*shape, requires_grad=True)


def test_nodes_and_edges_lead_from_the_root_to_the_leaves() -> None:
    """The root comes first, each node once, and an edge for each use of a result."""
    a, b = leaf(3, 3), leaf(3, 3)
    found = walked(((a @ b) * a).sum())
    assert found.names[0] == "SumBackward0"
    assert Counter(found.names) == {"SumBackward0": 1, "MulBackward0": 1, "MmBackward0": 1, "AccumulateGrad": 2}
    assert edges(found) == {
        ("SumBackward0", "MulBackward0", 0): 1,
        ("MulBackward0", "MmBackward0", 0): 1,
        ("MulBackward0", "AccumulateGrad", 0): 1,
        ("MmBackward0", "AccumulateGrad", 0): 2,
    }
    assert found.complete
    assert found.sequences is not None
    assert found.sequences[0] == max(found.sequences[place] for place in range(3))


def test_leaves_are_the_tensors_themselves() -> None:
    """Each AccumulateGrad node knows its tensor, by a weak reference."""
    a, b, unused = leaf(2), leaf(3), leaf(4)
    found = walked(a.sum() + b.sum())
    assert {id(subject.ref()) for subject in found.leaves.values()} == {id(a), id(b)}
    assert unused.grad is None
    assert {found.names[place] for place in found.leaves} == {"AccumulateGrad"}


def test_a_leaf_is_a_graph_of_one_node() -> None:
    """The walk from a leaf is its AccumulateGrad; from a tensor without history it is empty."""
    assert walked(leaf(2)).names == ["AccumulateGrad"]
    assert len(walked(torch.rand(2))) == 0


def test_roots_are_walked_once() -> None:
    """Outputs that share a graph, or a node, are walked together and come first."""
    a = leaf(4)
    b = a * 2
    found = walked(b.exp(), b.sin(), b.exp() * 0 + b, b)
    assert found.names[:4] == ["ExpBackward0", "SinBackward0", "AddBackward0", "MulBackward0"]
    first, second = a.unbind()[:2]
    assert Counter(walked(first, second).names) == {"UnbindBackward0": 1, "AccumulateGrad": 1}


@pytest.mark.parametrize(
    ("make", "name", "outputs"),
    [
        (lambda a: sum(a.unbind()), "UnbindBackward0", {0, 1, 2}),
        (lambda a: a.max(dim=0).values, "MaxBackward0", {0}),
        (lambda a: a.split(2)[1], "SplitBackward0", {1}),
        (lambda a: torch.linalg.svd(a).S, "LinalgSvdBackward0", {1}),
    ],
)
def test_edges_name_the_output_that_they_use(make: Any, name: str, outputs: set[int]) -> None:
    """A node with several outputs is one node, and each edge says which output it takes."""
    found = walked(make(leaf(3, 3)).sin())
    assert found.names.count(name) == 1
    assert {output for (_, target, output) in edges(found) if target == name} == outputs


def test_views_are_nodes_of_their_own() -> None:
    """Views stand in the graph as the operations that they are."""
    assert walked(leaf(4, 3).t()[0].expand(2, 4).sum()).names == [
        "SumBackward0",
        "ExpandBackward0",
        "SelectBackward0",
        "TBackward0",
        "AccumulateGrad",
    ]


def test_writes_in_place_are_followed() -> None:
    """A write through a view puts CopySlices on the base, and the walk goes through both ways."""
    a, b = leaf(2), leaf(4)
    base = b * 1
    base[:2].mul_(a)
    found = walked(base.sum())
    assert "CopySlices" in found.names
    assert {id(subject.ref()) for subject in found.leaves.values()} == {id(a), id(b)}


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradients[0]


def test_custom_functions_are_marked() -> None:
    """The node of a custom Function is named for it and told apart from torch's own; its saved bytes count."""
    found = walked(_Square.apply(leaf(10)).sum(), saved=True)
    assert [found.names[place] for place in found.custom] == ["_SquareBackward"]
    assert found.saved is not None
    assert [found.saved[place] for place in found.custom] == [40]


def test_saved_bytes_are_those_of_the_saved_tensors() -> None:
    """`saved` counts the bytes of the tensors that each node keeps for backward."""
    a, b = leaf(10, 10), torch.rand(10, 10, dtype=torch.float64, requires_grad=True)
    found = walked((a.double() * b).exp().sum(), saved=True)
    assert found.saved is not None
    saved = dict(zip(found.names, found.saved, strict=True))
    assert saved["ExpBackward0"] == 800
    assert saved["MulBackward0"] == 1600
    assert saved["SumBackward0"] == 0


def test_saved_tensors_are_looked_at_without_unpacking_them() -> None:
    """The user's saved-tensor hooks do not run; what they packed has a size that is not known."""
    calls: list[str] = []

    def note(word: str, tensor: torch.Tensor) -> torch.Tensor:
        calls.append(word)
        return tensor

    x = leaf(10)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: note("pack", t), lambda t: note("unpack", t)):
        hidden = x.exp()
    found = walked((hidden * x).sum(), saved=True)
    assert found.saved is not None
    saved = dict(zip(found.names, found.saved, strict=True))
    assert calls == ["pack"]
    assert (saved["ExpBackward0"], saved["MulBackward0"]) == (None, 80)


def test_a_freed_graph_is_walked_without_its_saved_bytes() -> None:
    """After backward the nodes are still there; what they had saved is unknown, not zero."""
    loss = leaf(3).exp().sum()
    loss.backward()
    found = walked(loss, saved=True)
    assert found.names == ["SumBackward0", "ExpBackward0", "AccumulateGrad"]
    assert found.saved is not None
    assert found.saved[1] is None


def test_walking_leaves_no_trace() -> None:
    """The graph dies with its output, and backward works as before."""

    class Note:
        pass

    class Noted(_Square):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.note = notes.pop()
            return _Square.forward(ctx, x)

    notes = [Note()]
    note = weakref.ref(notes[0])
    a = leaf(3)
    loss = Noted.apply(a).sum()
    found = walked(loss, saved=True)
    loss.backward()
    assert a.grad is not None
    assert torch.equal(a.grad, 2 * a.detach())
    del loss
    assert note() is None
    assert len(found) == 3


def test_the_limit_stops_a_walk() -> None:
    """A walk that meets its limit says that it is not complete, and its edges stay within the nodes that it has."""
    state = leaf(2)
    for _ in range(100):
        state = state * 2
    found = walked(state.sum(), limit=20)
    assert (len(found), found.complete) == (20, False)
    assert max(found.targets) < 20
    assert walked(state.sum(), limit=200).complete


def test_threads_stop_at_what_is_safe_to_delete() -> None:
    """Outside of the main thread, whose stack can grow, at most 10,000 nodes are touched."""
    state = leaf(1)
    for _ in range(12_000):
        state = state + 1
    found: list[Walk] = []
    thread = threading.Thread(target=lambda: found.append(walked(state)))
    thread.start()
    thread.join()
    assert (len(found[0]), found[0].complete) == (10_000, False)


def test_a_wide_graph() -> None:
    """A node with 200,000 inputs is walked whole."""
    a = leaf(1)
    found = walked(torch.stack([*a.expand(200_000).unbind()]).sum())
    assert found.complete
    assert Counter(found.names) == {
        "SumBackward0": 1,
        "StackBackward0": 1,
        "UnbindBackward0": 1,
        "ExpandBackward0": 1,
        "AccumulateGrad": 1,
    }
    assert len(found.targets) == 200_000 + 3


def test_a_graph_of_200_000_separate_inputs() -> None:
    """A sum of 200,000 leaves is walked whole, each leaf with its tensor."""
    leaves = list(torch.zeros(200_000).unbind())
    for tensor in leaves:
        tensor.requires_grad_()
    subject = Tape(CallSites()).subject(leaves[0])
    found = walk([torch.stack(leaves)], lambda leaf: subject)
    assert found.complete
    assert (len(found), len(found.leaves)) == (200_001, 200_000)


def test_a_deep_graph_survives(workshop: Workshop) -> None:
    """A chain of 1,000,000 nodes is walked and deleted, and the process goes on."""
    workshop.write(
        """
        import torch
        from gradscope.probes.backward.walker import walk
        state = torch.zeros(1, requires_grad=True)
        for _ in range(1_000_000):
            state = state + 1
        found = walk([state], lambda leaf: None)
        print(len(found), found.complete)
        del state
        print("alive")
        """
    )
    ended = workshop.python("script.py")
    assert ended == (0, "1000001 True\nalive\n", "")


_Recipe = list[tuple[str, int, int]]
_OPERATIONS = {
    "add": torch.add,
    "mul": torch.mul,
    "sin": lambda a, _: torch.sin(a),
    "detach": lambda a, _: a.detach(),
    "halves": lambda a, b: a.chunk(2)[1].repeat(2) + b,
    "max": lambda a, _: a.max(dim=0, keepdim=True).values.expand(4),
    "square": lambda a, _: _Square.apply(a),
    "inplace": lambda a, b: a.clone().mul_(b),
}


def reference(root: torch.Tensor) -> tuple[Counter[str], Counter[tuple[str, str, int]], set[int]]:
    """Nodes, edges and leaves, by the simplest walk there is."""
    names: Counter[str] = Counter()
    links: Counter[tuple[str, str, int]] = Counter()
    leaves = set()
    waiting, seen = [root.grad_fn] if root.grad_fn is not None else [], {root.grad_fn}
    while waiting:
        node: Any = waiting.pop()
        names[node.name().split("::")[-1]] += 1
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for below, output in node.next_functions:
            if below is None:
                continue
            links[node.name().split("::")[-1], below.name().split("::")[-1], output] += 1
            if below not in seen:
                seen.add(below)
                waiting.append(below)
    return names, links, leaves


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(_OPERATIONS)), st.integers(0, 1_000), st.integers(0, 1_000)), max_size=40
    ),
    st.lists(st.booleans(), min_size=1, max_size=4),
)
def test_any_graph_is_walked_as_the_simplest_walk_does(recipe: _Recipe, kinds: list[bool]) -> None:
    """On random graphs the nodes, edges and leaves are those of a plain loop over `next_functions`."""
    pool = [torch.rand(4, requires_grad=kind) for kind in kinds]
    for name, first, second in recipe:
        pool.append(_OPERATIONS[name](pool[first % len(pool)], pool[second % len(pool)]))
    root = pool[-1] * pool[0]
    found = walked(root)
    names, links, leaves = reference(root)
    assert Counter(found.names) == names
    assert edges(found) == links
    assert {id(subject.ref()) for subject in found.leaves.values()} == leaves


def test_outputs_are_found_with_their_paths() -> None:
    """Tensors are found in nested tuples, lists, dicts and objects, with the path to each, cycles and all."""
    a, b, c, d = (torch.rand(1) for _ in range(4))

    class Output:
        def __init__(self) -> None:
            self.logits = c
            self.past = {"k": [d]}
            self.me = self

    found = outputs_in((a, {"x": [b, None, 3]}, Output()))
    assert [(path, id(tensor)) for path, tensor in found] == [
        ("[0]", id(a)),
        ("[1]['x'][0]", id(b)),
        ("[2].logits", id(c)),
        ("[2].past['k'][0]", id(d)),
    ]
