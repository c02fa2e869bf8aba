"""Does the output of one sample depend on another sample? Asked of a copy of a module, and only on request.

The gradients of one sample's output are followed back through the graph. A gradient that belongs to that sample alone
lies, in each tensor, at one index of some dimension as long as the batch. The operation that takes such a gradient and
sends one on that lies at other samples as well has mixed them.
"""

from __future__ import annotations

import copy
import io
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from gradscope.probes.backward.nonfinite import NODES, graph_behind, plain_name
from gradscope.probes.backward.walker import outputs_in
from gradscope.probes.tensors.quiet import detached, unobserved

if TYPE_CHECKING:
    from gradscope.probes.records import ModuleMark, OperationRecord, StepRecord
    from gradscope.probes.tape import Tape

_MOST = 10  # modules of one run
_LOOKUPS = frozenset({"Embedding", "EmbeddingBag", "EmbeddingBagPacked", "IndexSelect", "Index", "Gather"})


@dataclass(slots=True)
class BatchCheck:
    """What came of one check. `normed` are the batch norms that were in training mode."""

    mark: ModuleMark
    size: int
    step: StepRecord
    operation: OperationRecord | None = None
    normed: list[ModuleMark] = field(default_factory=list)


def check_module(
    tape: Tape, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, strict: bool = False
) -> bool:
    """Check a module with the arguments of a call; it, they and the random state stay as they are.

    False where there is no batch to check with, or the module was checked before. With `strict`, what the module
    raises is raised: somebody waits for the answer.
    """
    mark = tape.mark(module)
    if id(mark) in tape.checked or len(tape.checked) >= _MOST or tape.thread() in tape.backwards_running:
        return False
    size = _batch_size((args, kwargs))
    if size is None:
        return False
    tape.checked[id(mark)] = mark
    stack: list[ModuleMark] = tape.local.__dict__.setdefault("modules", [])
    outer = tape.step
    stack.append(mark)  # so that the copy is no root of its own
    tape.step = type(outer)(outer.index)
    tape.backwards_running.add(tape.thread())
    try:
        with in_quiet(), torch.enable_grad():
            double = copy.deepcopy(module)
            check = BatchCheck(mark, size, tape.step)
            for own, other in zip(module.modules(), double.modules(), strict=True):
                if isinstance(other, torch.nn.modules.batchnorm._BatchNorm) and other.training:
                    check.normed.append(tape.mark(own))
                    other.eval()
            taken, leaves = _fresh((args, dict(kwargs)))
            result = double(*taken[0], **taken[1])
            check.operation = _mixing(tape, result, size, leaves)
        tape.checks.append(check)
    except Exception as error:
        if strict:
            raise
        tape.fail("batch check", error)
    finally:
        tape.backwards_running.discard(tape.thread())
        tape.step = outer
        stack.pop()
    return True


@contextmanager
def in_quiet() -> Iterator[None]:
    """Random numbers are drawn again afterwards, and nothing is printed."""
    numpy = sys.modules.get("numpy")
    drawn = random.getstate()
    drawn_by_numpy = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(drawn)
        if numpy is not None:
            numpy.random.set_state(drawn_by_numpy)


def _batch_size(values: Any) -> int | None:
    """The length of the first dimension of the first tensor that has one."""
    sizes = [tensor.shape[0] for _, tensor in outputs_in(list(_flat(values))) if tensor.dim() > 0]
    return sizes[0] if sizes and sizes[0] > 1 else None


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, Mapping):
        yield from _flat(list(value.values()))
    else:
        yield value


def _fresh(value: Any) -> tuple[Any, list[torch.Tensor]]:
    """The same arguments with tensors of their own, that require grad where they can."""
    leaves: list[torch.Tensor] = []

    def renew(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            with torch.no_grad():
                new = detached(item).clone()
            if new.is_floating_point() or new.is_complex():
                leaves.append(new.requires_grad_())
                # An identity, so that the module may change its input in place as ever.
                return new.view_as(new)
            return new
        if type(item) in (tuple, list):
            return type(item)(renew(part) for part in item)
        if type(item) is dict:
            return {key: renew(part) for key, part in item.items()}
        return item

    return renew(value), leaves


def _mixing(tape: Tape, result: Any, size: int, leaves: list[torch.Tensor]) -> OperationRecord | None:
    """The operation that mixes samples, if one does; asked for the last sample and for the first."""
    for _, output in outputs_in(result):
        apart = output.dim() == 2 and output.shape[0] == output.shape[1]  # each sample against each, as it is meant
        if not output.requires_grad or not output.is_floating_point() or size not in output.shape or apart:
            continue
        along = list(output.shape).index(size)
        for sample in (size - 1, 0):
            found = _leaking(tape, output.select(along, sample), size, sample, leaves)
            if found is not None:
                return found
    return None


def _leaking(
    tape: Tape, output: torch.Tensor, size: int, sample: int, leaves: list[torch.Tensor]
) -> OperationRecord | None:
    nodes = graph_behind([output])
    if len(nodes) >= NODES:
        return None
    carrying = _carrying(nodes, leaves)
    alone: dict[Any, set[bool | None]] = {}  # of what arrives at a node, and of what it sends towards the data
    sent: dict[Any, set[bool | None]] = {}

    def judge(node: Any) -> Callable[..., None]:
        def hook(given: Any, arrived: Any) -> None:
            with unobserved():
                alone[node] = {
                    state for gradient in arrived if (state := _is_alone(gradient, size, sample)) is not None
                }
                edges = zip(given, node.next_functions, strict=False)
                sent[node] = {
                    state
                    for gradient, (target, _) in edges
                    if target in carrying and (state := _is_alone(gradient, size, sample)) is not None
                }

        return hook

    hooks = [node.register_hook(judge(node)) for node in nodes]
    try:
        weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
        torch.autograd.backward([(output * weights.to(output.device)).sum()], retain_graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    makers = {node: operation for node in nodes if (operation := _maker(tape, node)) is not None}
    inner: dict[int, list[Any]] = {}
    for node, operation in makers.items():
        inner.setdefault(operation.serial, []).append(node)
    operations = {operation.serial: operation for operation in makers.values()}
    for serial in sorted(inner, reverse=True):
        own = set(inner[serial])
        entering = {state for node in own if _comes_from_outside(node, own, nodes) for state in alone.get(node, ())}
        leaving = {state for node in own if _leaves(node, own) for state in sent.get(node, ())}
        if False in leaving and False not in entering:
            return operations[serial]
    return None


def _maker(tape: Tape, node: Any) -> OperationRecord | None:
    number, thread = node._sequence_nr(), tape.thread()
    found = [op for op in tape.written() if op.nodes[0] <= number < op.nodes[1] and op.thread == thread]
    return min(found, key=lambda operation: operation.nodes[1] - operation.nodes[0], default=None)


def _comes_from_outside(node: Any, own: set[Any], nodes: list[Any]) -> bool:
    users = [user for user in nodes if any(target is node for target, _ in user.next_functions)]
    return not users or any(user not in own for user in users)


def _leaves(node: Any, own: set[Any]) -> bool:
    return any(target is not None and target not in own for target, _ in node.next_functions)


def _carrying(nodes: list[Any], leaves: list[torch.Tensor]) -> set[Any]:
    """The nodes behind which data lie: an input, or what was looked up by one, rather than parameters alone."""
    inputs = {id(leaf) for leaf in leaves}
    carrying = {
        node
        for node in nodes
        if plain_name(node) in _LOOKUPS or (hasattr(node, "variable") and id(node.variable) in inputs)
    }
    for node in sorted(nodes, key=lambda node: int(node._sequence_nr())):
        if any(target in carrying for target, _ in node.next_functions):
            carrying.add(node)
    return carrying


def _is_alone(gradient: Any, size: int, sample: int) -> bool | None:
    """Whether a gradient lies at one sample only; None where it is zero, or no dimension is as long as the batch."""
    if not isinstance(gradient, torch.Tensor) or gradient.layout is not torch.strided or not gradient.dim():
        return None
    there = gradient != 0
    if not bool(there.any()):
        return None
    views = [there.movedim(place, 0) for place, length in enumerate(gradient.shape) if length == size]
    for place, length in enumerate(gradient.shape):
        if length > size and length % size == 0:  # samples and time steps, or heads, in one dimension
            moved = there.movedim(place, 0)
            views += [
                moved.reshape(size, length // size, -1),
                moved.reshape(length // size, size, -1).movedim(1, 0),
            ]
    if not views:
        return None
    return any(not bool(view[:sample].any()) and not bool(view[sample + 1 :].any()) for view in views)
