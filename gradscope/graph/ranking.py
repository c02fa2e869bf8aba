"""Which of several cuts on the way of a gradient is the one to tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cause, cause_of, grad_mode_switch
from gradscope.graph.facts import Operation, Tensor
from gradscope.graph.flow import Reach, StepFlow, data_of
from gradscope.graph.sums import dead_terms

_RANK: tuple[Cause, ...] = ("detach", "no-grad", "rebuilt-tensor", "missing-create-graph", "non-differentiable-op")


def ranked(ask: Ask, flow: StepFlow, reach: Reach, ends: Collection[int]) -> Reach:
    """The same with the cut first that can best be mended: a `detach` rather than the indices of an `argmin`.

    One whose mending would let no gradient through, since there is another behind it, is not the one to tell: in
    `w = softmax(e - e.max().detach()).data` it is the second. And a term of the loss that trains nothing at all comes
    before one that trains others: there a `detach` may be meant. On what is a target alone it is meant nearly always.
    """
    if len(reach.cuts) < 2:
        return reach
    idle = ask(_behind_dead_terms, flow)
    cuts = sorted(
        reach.cuts,
        key=lambda cut: (
            makes_a_target(flow, cut),
            not leads_on(flow, cut, ends),
            idle.isdisjoint(cut.outputs),
            _RANK.index(cause_of(flow, cut)),
            _is_taken_away(flow, cut, reach.cuts),
        ),
    )
    return Reach(reach.touched, reach.alive, tuple(cuts), reach.exits)


def _behind_dead_terms(_: Ask, flow: StepFlow) -> frozenset[int]:
    """What the terms that train nothing were computed from."""
    return flow.behind(term for root in flow.roots for term, _ in dead_terms(flow, root))


def of_several_places(flow: StepFlow, reach: Reach) -> bool:
    """Whether cuts of the cause that is told lie at several places."""
    return len({place(flow, cut) for cut in reach.cuts if cause_of(flow, cut) == cause_of(flow, reach.cuts[0])}) > 1


def recurring(reach: Reach, flow: StepFlow, last: StepFlow, tensor: Tensor) -> Reach:
    """The same with those cuts first, of the cause that is told, that cut the way in the last step as well.

    What was computed once for many steps, such as the probabilities of a rollout, is cut off in the first of them only.
    """
    starts = last.values_of.get(tensor.id)
    if last is flow or not starts or not last.roots:
        return reach
    again = {place(last, cut) for cut in last.reach(starts, last.behind_roots_of(tensor.id)).cuts}
    told = cause_of(flow, reach.cuts[0])
    if not any(place(flow, cut) in again for cut in reach.cuts if cause_of(flow, cut) == told):
        return reach
    cuts = sorted(reach.cuts, key=lambda cut: cause_of(flow, cut) != told or place(flow, cut) not in again)
    return Reach(reach.touched, reach.alive, tuple(cuts), reach.exits)


def leads_on(flow: StepFlow, cut: Operation, ends: Collection[int]) -> bool:
    """Whether a gradient would come from one of these values to what a cut gives."""
    return not carried(flow, cut)[0].isdisjoint(ends)


def carried(flow: StepFlow, cut: Operation) -> tuple[set[int], list[Operation]]:
    """The values from which a gradient would come to what a cut gives, and the operations that cut it once more.

    With grad mode on again, what ran in the same block behind the cut would carry as well.
    """
    carrying = set(cut.outputs)
    further = []
    block = place(flow, cut) if cause_of(flow, cut) == "no-grad" else None
    for operation in flow.operations:
        if operation.id <= cut.id or carrying.isdisjoint(data_of(operation)):
            continue
        history = any(flow.history[value] for value in operation.inputs)
        ends = ops.ends_history(operation)
        if ends and (block is None or cause_of(flow, operation) != "no-grad" or place(flow, operation) != block):
            further += [] if flow.behind_roots.isdisjoint(operation.outputs) else [operation]
        elif not history or any(flow.history[value] for value in operation.outputs):
            carrying.update(value for value in operation.outputs if _is_continuous(flow.tensor(value)))
    return carrying, further


def makes_a_target(flow: StepFlow, cut: Operation) -> bool:
    """Whether losses take what a cut gives as their target only: it is the prediction that should carry a gradient."""
    reached = carried(flow, cut)[0]
    losses = [o for o in flow.operations if ops.is_a(o, ops.LOSSES) and not reached.isdisjoint(o.inputs)]
    return bool(losses) and all(reached.isdisjoint(loss.inputs[:1]) for loss in losses)


def _is_continuous(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.dtype.startswith(("float", "bfloat", "complex"))


def _is_taken_away(flow: StepFlow, cut: Operation, cuts: Sequence[Operation]) -> bool:
    """Whether a cut is subtracted where another of the same value is not, as in `hard - soft.detach() + soft.detach()`.

    A gradient through it would have the wrong sign: the other is the one to mend.
    """
    return any(other is not cut and other.inputs == cut.inputs for other in cuts) and any(
        ops.is_a(operation, ops.SUBTRACTS) and len(operation.inputs) == 2 and operation.inputs[1] in cut.outputs
        for operation in flow.operations
    )


def place(flow: StepFlow, cut: Operation) -> object:
    """What makes two cuts one: the same line, or the same switch of grad mode."""
    if cause_of(flow, cut) == "no-grad":
        switch = grad_mode_switch(flow, cut)
        if switch is not None:
            return switch.name, switch.span
    return cut.name, cut.span


def distinct(operations: Iterable[Operation], first: Operation) -> tuple[Operation, ...]:
    """One operation for each further line."""
    lines = {first.span.line if first.span else None}
    kept = []
    for operation in operations:
        line = operation.span.line if operation.span else None
        if line not in lines:
            lines.add(line)
            kept.append(operation)
    return tuple(kept[:3])
