"""Walking the autograd graph of an output, with a loop and without keeping any of it alive.

**The trap.** Once Python has touched the nodes of a graph, torch deletes that graph by recursion in C, at about
300 bytes of stack a node: from 30,000 nodes of depth on, an 8 MB stack overflows and the process dies, long
after the walk, when the user drops the graph. So before a walk touches many nodes, the soft limit of the stack is
raised; the main thread's stack grows up to the new limit at once. Where that cannot be (a hard limit, a thread
other than the main one), the walk stops early and says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradscope.graph.garbage import uncollected
from gradscope.probes.records import Subject
from gradscope.probes.tensors.attributes import number_of_bytes

try:
    import resource
except ImportError:  # Windows: the stack's size is fixed when the program is linked
    resource = None  # type: ignore[assignment]

_BYTES_PER_NODE = 600  # of C stack when torch deletes a touched node; 280 measured on torch 2.13, doubled
_FREE = 10_000  # touched nodes that fit into any stack
_ENOUGH = 4 << 30


@dataclass(slots=True)
class Walk:
    """The nodes behind some roots in the order of a walk in breadth, roots first; columns, one entry a node.

    Edges of node `i` are `targets[starts[i]:starts[i + 1]]`, with the output of the target that they use in
    `outputs`. `complete` is false where the walk stopped at its limit. No node is held.
    """

    names: list[str]
    starts: list[int]
    targets: list[int]
    outputs: list[int]
    custom: frozenset[int] = frozenset()
    leaves: dict[int, Subject] = field(default_factory=dict)
    sequences: list[int] | None = None
    saved: list[int | None] | None = None
    complete: bool = True

    def __len__(self) -> int:
        return len(self.names)


def node_limit(wanted: int) -> int:
    """How many nodes may be touched without danger, raising the limit of the stack for them if need be."""
    if wanted <= _FREE:
        return wanted
    if resource is None or threading.current_thread() is not threading.main_thread():
        return _FREE
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    target = min(_ENOUGH, wanted * _BYTES_PER_NODE)
    if hard != resource.RLIM_INFINITY:
        target = min(target, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        try:
            resource.setrlimit(resource.RLIMIT_STACK, (target, hard))
        except (ValueError, OSError):
            target = soft
    return max(_FREE, target // _BYTES_PER_NODE)


def walk(
    roots: Sequence[torch.Tensor],
    subject_of: Callable[[torch.Tensor], Subject],
    limit: int = 5_000_000,
    sequences: bool = False,
    saved: bool = False,
) -> Walk:
    """Walk from `roots` towards the leaves; `subject_of` tells who the tensor of an AccumulateGrad node is.

    With `saved`, the bytes that each node saved for backward are read, without unpacking them.
    """
    with uncollected():
        queue, starts, targets, outputs, complete = _collect(roots, limit)
        kinds = list(map(type, queue))
        names = {kind: _name(queue[kinds.index(kind)]) for kind in set(kinds)}
        custom = {kind for kind in names if issubclass(kind, torch._C._FunctionBase)}
        result = Walk(list(map(names.__getitem__, kinds)), starts, targets, outputs, complete=complete)
        if custom:
            result.custom = frozenset(place for place, kind in enumerate(kinds) if kind in custom)
        if _ACCUMULATE in names:
            leaves = [place for place, kind in enumerate(kinds) if kind is _ACCUMULATE]
            result.leaves = {place: subject_of(queue[place].variable) for place in leaves}
        if sequences:
            result.sequences = [node._sequence_nr() for node in queue]
        if saved:
            result.saved = [_saved_bytes(node, kind) for node, kind in zip(queue, kinds, strict=True)]
        return result


def _collect(roots: Sequence[torch.Tensor], limit: int) -> tuple[list[Any], list[int], list[int], list[int], bool]:
    queue: list[Any] = list(dict.fromkeys(node for node in map(_node_of, roots) if node is not None))
    places = {node: place for place, node in enumerate(queue)}
    starts: list[int] = []
    targets: list[int] = []
    outputs: list[int] = []
    count, allowed, complete = len(queue), min(limit, _FREE), True
    find, visit, add_target, add_output = places.get, queue.append, targets.append, outputs.append
    for node in queue:
        starts.append(len(targets))
        for target, output in node.next_functions:
            if target is None:
                continue
            place = find(target)
            if place is None:
                if count >= allowed:
                    # Ask for more room tenfold, so that small graphs never change the process's limits.
                    allowed = min(limit, node_limit(min(limit, allowed * 10)))
                    if count >= allowed:
                        complete = False
                        continue
                places[target] = place = count
                count += 1
                visit(target)
            add_target(place)
            add_output(output)
    starts.append(len(targets))
    return queue, starts, targets, outputs, complete


def nodes_behind(roots: Sequence[torch.Tensor], limit: int) -> list[Any]:
    """The nodes of the graph behind these roots, at most about `limit`: to be read at once and let go."""
    return _collect(roots, limit)[0]


def _node_of(root: torch.Tensor) -> Any:
    if root.grad_fn is not None:
        return root.grad_fn
    return torch.autograd.graph.get_gradient_edge(root).node if root.requires_grad else None


def _name(node: Any) -> str:
    return str(node.name()).rpartition("::")[2]


_ACCUMULATE = type(torch.autograd.graph.get_gradient_edge(torch.empty(0, requires_grad=True)).node)


def _saved_bytes(node: Any, kind: type) -> int | None:
    """Bytes of the tensors that a node saved.

    Tensors are looked at as they were packed: unpacking would run the saved-tensor hooks of the user's. Under hooks, as
    checkpointing sets them, what is kept is theirs to say, and the size is unknown.
    """
    names = _SAVED.get(kind)
    if names is None:
        if issubclass(kind, torch._C._FunctionBase):
            names = ("_raw_saved_tensors",)  # not kept: the class of a custom Function may be dropped
        else:
            names = _SAVED[kind] = tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
    try:
        size = sum([_bytes(getattr(node, name)) for name in names])
        if names and not size:
            # Nothing was saved, or it has been freed: then this raises. There is nothing left to unpack.
            getattr(node, names[0].replace("_raw_saved_tensors", "saved_tensors").removeprefix("_raw"), None)
        return size
    except (RuntimeError, AttributeError):
        return None  # freed by a backward, packed by a hook, or by a torch that does not tell


_SAVED: dict[type, tuple[str, ...]] = {}  # the attributes of torch's own nodes that hold saved tensors


def _bytes(value: Any) -> int:
    if isinstance(value, (tuple, list)):
        return sum(_bytes(item) for item in value)
    if value.unpack_hook is not None:
        raise AttributeError("packed by a hook")
    tensor = value.data
    size = number_of_bytes(tensor) if isinstance(tensor, torch.Tensor) else 0
    if size is None:
        raise AttributeError("of no one size")
    return size


def outputs_in(output: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors in an output with the path to each.

    An output is a tensor, or tuples, lists, dicts, dataclasses and model outputs of them.
    """
    found: list[tuple[str, torch.Tensor]] = []
    waiting: list[tuple[str, Any]] = [("", output)]
    seen: set[int] = set()
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            found.append((path, value))
            continue
        if id(value) in seen:
            continue
        items = list(_members(value))
        if items:
            seen.add(id(value))
            waiting += [(path + place, item) for place, item in reversed(items)]
    return found


def _members(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [("." + name, getattr(value, name)) for name in value._fields]
    if isinstance(value, (tuple, list)):
        return [(f"[{place}]", item) for place, item in enumerate(value)]
    if hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module)):
        return [("." + name, item) for name, item in vars(value).items()]
    return []
