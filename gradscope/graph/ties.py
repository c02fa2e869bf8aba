"""What ties two passes together: a backward comes into a graph that an earlier one has freed."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cut
from gradscope.graph.facts import Backward, Operation, Run, Tensor
from gradscope.graph.flow import StepFlow
from gradscope.graph.refusals import refused_backward
from gradscope.graph.terms import freed_for_a_loss


def freed_by_gradient(ask: Ask) -> Cut | None:
    """The gradient that was computed without a graph, freed what it was computed from, and is a part of the loss."""
    refused = refused_backward(ask, "freed graph")
    if refused is None:
        return None
    first = tie_of(ask.run, refused.backward).first
    if first is None or first.kind != "grad":
        return None
    flow = StepFlow(ask.run, *(step for step in ask.run.steps if step.backwards), roots=refused.backward.roots)
    return freed_for_a_loss(flow, first, refused.backward.roots)


@dataclass(frozen=True, slots=True)
class Tie:
    """What ties two passes together: `carried` tensors were made before the `first`, and `user` takes them after it.

    `takers` has for each of them, by its id, the operation that does.
    """

    carried: tuple[Tensor, ...] = ()
    maker: Operation | None = None
    user: Operation | None = None
    first: Backward | None = None
    takers: Mapping[int, Operation] = field(default_factory=dict)


def tie_of(run: Run, backward: Backward, *, whole: bool = False) -> Tie:
    """What leads a refused backward into a graph that is freed: where torch met that, or by all that is `whole`."""
    operations = [operation for step in run.steps for operation in step.operations if not operation.failed]
    graph = _Graph(run, operations)
    reached, behind = graph.behind(backward.roots)
    earlier = [b for step in run.steps for b in step.backwards if not b.failed]
    freed = set(backward.refused.freed) if backward.refused is not None else set()
    newest, first, its = -1, None, set[int]()
    for other in earlier:
        shared = {op.id for op in graph.behind(other.roots)[1] if op.nodes[0] < op.nodes[1]}
        shared &= {operation.id for operation in behind}
        shared = shared if whole else shared & freed or shared
        if shared and not other.retained and max(shared) > newest:
            newest, first, its = max(shared), other, shared
    if first is None:
        return _of_old(run, graph, backward, reached, behind)
    into = graph.ahead(its, behind)
    makers = {value: operation for operation in behind for value in operation.outputs}
    carried: list[int] = [root for root in backward.roots if root in into and makers[root].id <= first.began]
    users: list[Operation] = []
    for operation in behind:
        if operation.id > first.began:
            for value in operation.inputs:
                if value in into and value in makers and makers[value].id <= first.began and value not in carried:
                    carried.append(value)
                    users.append(operation)
    tensors = graph.tensors_of(carried)
    taken = dict(zip((graph.holder[value] for value in carried[len(carried) - len(users) :]), users, strict=True))
    return Tie(tensors, makers[carried[0]] if carried else None, users[0] if users else None, first, taken)


def _of_old(run: Run, graph: _Graph, backward: Backward, reached: set[int], behind: list[Operation]) -> Tie:
    """Tensors with a history that was made before the steps on record: some old pass has freed it."""
    made = {value for operation in behind for value in operation.outputs}
    old = [value for value in sorted(reached - made) if graph.is_result(value)]
    user = next((operation for operation in behind if old and old[0] in operation.inputs), None)
    previous = [b for step in run.steps for b in step.backwards if not b.failed]
    first = previous[-1] if previous and previous[-1].span == backward.span else None
    return Tie(graph.tensors_of(old), None, user, first)


def is_trained_otherwise(run: Run, backward: Backward, tie: Tie) -> bool:
    """Whether what optimizers hold behind the carried tensors gets gradients by another way too."""
    operations = [operation for step in run.steps for operation in step.operations if not operation.failed]
    graph = _Graph(run, operations)
    carried = {tensor.id for tensor in tie.carried}
    values = {value.id for value in run.values if value.tensor in carried}
    passes = [other for step in run.steps for other in step.backwards] + [backward]
    roots = {root for other in passes for root in other.roots}
    return graph.leaves(values) <= graph.leaves(roots, without=values)


def optimizers_behind(run: Run, tie: Tie) -> set[int]:
    """The optimizers that hold what the carried tensors were computed from."""
    operations = [operation for step in run.steps for operation in step.operations if not operation.failed]
    carried = {tensor.id for tensor in tie.carried}
    leaves = _Graph(run, operations).leaves({value.id for value in run.values if value.tensor in carried})
    held = (run.tensor_by_id[leaf].optimizer for leaf in leaves)
    return {optimizer for optimizer in held if optimizer is not None}


class _Graph:
    """The gradient flow as the record of operations tells it, over all steps that are kept."""

    def __init__(self, run: Run, operations: list[Operation]) -> None:
        self.operations = operations
        self.holder = run.holder
        self.history = run.history
        self.tensors = run.tensor_by_id

    def is_result(self, value: int) -> bool:
        """Whether a value has a graph behind it."""
        return self.history[value] and not self.tensors[self.holder[value]].leaf

    def behind(self, roots: tuple[int, ...]) -> tuple[set[int], list[Operation]]:
        """The values that a backward from these roots comes to, and their operations, oldest first."""
        reached, passed = set(roots), []
        for operation in reversed(self.operations):
            if any(value in reached and self.is_result(value) for value in operation.outputs):
                passed.append(operation)
                reached.update(value for value in operation.inputs if self.history[value])
        return reached, passed[::-1]

    def leaves(self, roots: set[int], without: Set[int] = frozenset()) -> set[int]:
        """The leaves in optimizers that a backward from some values comes to without passing through others."""
        reached = roots - without
        for operation in reversed(self.operations):
            if any(value in reached and self.is_result(value) for value in operation.outputs):
                reached.update(value for value in operation.inputs if self.history[value] and value not in without)
        held = {self.holder[value] for value in reached}
        return {number for number in held if self.tensors[number].leaf and self.tensors[number].optimizer is not None}

    def ahead(self, starts: set[int], among: list[Operation]) -> set[int]:
        """The values that some of these operations give, and what others of `among` compute from them."""
        found: set[int] = set()
        for operation in among:
            if operation.id in starts or not found.isdisjoint(operation.inputs):
                found.update(value for value in operation.outputs if self.is_result(value))
        return found

    def tensors_of(self, values: list[int]) -> tuple[Tensor, ...]:
        """The tensors that hold values, each once."""
        held = {self.holder[value]: self.tensors[self.holder[value]] for value in values}
        return tuple(held.values())
