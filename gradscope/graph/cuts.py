"""Where the gradient of a tensor that someone relies on is lost: the evidence that the rules on cuts share."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cause, Cut, cause_of
from gradscope.graph.facts import Operation, Tensor
from gradscope.graph.flow import Reach, StepFlow, data_of, flows, rounds
from gradscope.graph.naming import callee, within
from gradscope.graph.numbers import taker_of
from gradscope.graph.ranking import carried, distinct, leads_on, of_several_places, place, ranked, recurring
from gradscope.graph.reliance import frozen_out, only_returned, unmet
from gradscope.graph.replicas import waited_for
from gradscope.graph.terms import terms


def cuts(ask: Ask) -> tuple[Cut, ...]:
    """All places at which a gradient that someone relies on is lost."""
    found = _never(ask) or _rebound(ask)
    told = {tensor.id for cut in found for tensor in cut.tensors}
    places = {place(cut.flow, other) for cut in found for other in (cut.operation, *cut.others)}
    turns = [flow for optimizer in ask.run.optimizers for flow in ask(rounds, optimizer.id)]
    dead = (term for term in terms(ask, turns, places) if not told.issuperset(tensor.id for tensor in term.tensors))
    return (*found, *dead)


def _never(ask: Ask) -> list[Cut]:
    run = ask.run
    cut: dict[object, list[tuple[Tensor, Reach, StepFlow]]] = {}
    left: dict[object, list[tuple[Tensor, Operation, StepFlow]]] = {}
    turns = {number: ask(rounds, number) for number in (None, *(optimizer.id for optimizer in run.optimizers))}
    waited = ask(waited_for)
    for tensor in ask(unmet):
        for flow in [waited[tensor.id]] if tensor.id in waited else turns[tensor.optimizer]:
            starts = flow.values_of.get(tensor.id)
            if not starts or not (flow.roots or run.crash):
                continue
            if flow.step is not run.steps[-1] and flow is turns[tensor.optimizer][0] and _only_fills(flow, starts):
                continue  # what is written before training are values to start from; each further step tells for itself
            reach = ranked(ask, flow, flow.reach(starts, flow.behind_roots_of(tensor.id)), flow.roots)
            if not only_returned(tensor) and _is_independent(flow, reach):
                break
            if of_several_places(flow, reach):
                reach = recurring(reach, flow, turns[tensor.optimizer][-1], tensor)
            exit_ = _telling_exit(ask, flow, reach)
            if reach.cuts and (exit_ is None or reach.touched.intersection(flow.roots)):
                cut.setdefault(place(flow, reach.cuts[0]), []).append((tensor, reach, flow))
                break
            if exit_ is not None:
                left.setdefault((exit_.name, exit_.span), []).append((tensor, exit_, flow))
                break
    found = []
    cause: Cause
    for group in cut.values():
        _, reach, flow = group[0]
        first = reach.cuts[0]
        others = reach.cuts[1:]
        carrying, further = carried(flow, first)
        if not carrying.isdisjoint(flow.roots):
            others, further = tuple(cut for cut in others if leads_on(flow, cut, flow.roots)), []
        sufferers = tuple(tensor for tensor, _, _ in group)
        others = distinct((*others, *further), first)
        cause = cause_of(flow, first)
        found.append(Cut(cause, first, flow, sufferers, "error", others=others, further=tuple(further)))
    for exits in left.values():
        _, exit_, flow = exits[0]
        back = _came_back(flow, exit_)
        cause = "left-torch"
        if exit_.span is not None and callee(exit_.span, run.sources) in ops.CONSTRUCTS:
            cause = "rebuilt-tensor"
        elif ops.is_a(exit_, ops.CHOOSES) and back is None:
            cause = "non-differentiable-op"
        found.append(Cut(cause, exit_, flow, tuple(t for t, _, _ in exits), "error", came_back=back))
    return found


def _only_fills(flow: StepFlow, starts: Sequence[int]) -> bool:
    """Whether a tensor takes part in a step only by its values being copied, as they are, into another parameter."""
    copied, filled = set(starts), False
    own = {flow.holder[value] for value in starts}
    for operation in flow.operations:
        if copied.isdisjoint(data_of(operation)):
            continue
        if not ops.is_a(operation, ops.COPIES):
            if not flow.behind_roots.isdisjoint(operation.outputs):
                return False
            continue
        for value in operation.outputs:
            tensor = flow.tensor(value)
            if tensor is not None and tensor.leaf and tensor.nn_parameter:
                filled = filled or tensor.id not in own
            else:
                copied.add(value)
    return filled


def _is_independent(flow: StepFlow, reach: Reach) -> bool:
    """Whether the way leads uncut through a gradient to a loss: a slope does not depend on the last bias of a score."""
    if reach.alive.isdisjoint(flow.roots):
        return False
    kept = {value for operation in flow.operations if operation.name == "autograd.grad" for value in operation.outputs}
    return not kept.isdisjoint(reach.alive)


def _telling_exit(ask: Ask, flow: StepFlow, reach: Reach) -> Operation | None:
    """The exit through which a loss can have left torch.

    Values leave torch for logs all the time. One counts where the loss came in again after it, or where nothing was
    left to be differentiated at all. Of several, the last before the loss came back.
    """
    if not reach.exits:
        return None
    crashed = flow.run.crash is not None and flow.run.crash.symptom == "no tensor to differentiate"
    if crashed:
        return reach.exits[-1]
    for exit_ in reversed(reach.exits):
        if taker_of(flow, exit_) is not None:
            return exit_
    backs = [back for back in _entries(flow) if back > reach.exits[0].id]
    if not backs:
        # Whole numbers made of a prediction choose an index, a length, a crop: nothing comes back. And what a module
        # takes out of torch while it computes is a factor, rather than a number for a log.
        within_module = [exit_ for exit_ in reach.exits if exit_.module is not None and exit_.id < _loss_made(flow)]
        choices = [exit_ for exit_ in reach.exits if ops.is_a(exit_, ops.CHOOSES)]
        in_each = [
            exit_
            for exit_ in reach.exits
            if _is_all_that_is_done(flow, reach, exit_) and _is_read_before_each_loss(ask, exit_)
        ]
        return next(iter(choices[-1:] or within_module[-1:] or in_each[-1:]), None)
    before = [exit_ for exit_ in reach.exits if exit_.id < backs[-1]]
    return before[-1]


def _is_all_that_is_done(flow: StepFlow, reach: Reach, exit_: Operation) -> bool:
    """Whether a tensor is computed with in the very expression only that makes a number of it: `float(rate.exp())`."""
    return not reach.cuts and all(
        operation.span is not None and exit_.span is not None and within(operation.span, exit_.span)
        for operation in flow.operations
        if operation.outputs and not reach.touched.isdisjoint(operation.inputs)
    )


def _is_read_before_each_loss(ask: Ask, exit_: Operation) -> bool:
    """Whether a line takes a value out of torch in the first step as in the second, before there is a loss.

    What is logged comes after the loss of the first step.
    """
    first = ask(flows)[:2]
    return len(first) == 2 and all(
        any(
            (operation.name, operation.span) == (exit_.name, exit_.span) and operation.id < _loss_made(flow)
            for operation in flow.operations
        )
        for flow in first
    )


def _loss_made(flow: StepFlow) -> int:
    """When the last root was computed, as an operation's id."""
    return max((flow.maker[root].id for root in flow.roots if root in flow.maker), default=0)


def _entries(flow: StepFlow) -> list[int]:
    """When values of plain Python or numpy became tensors that a loss was computed from, as operation ids."""
    found = []
    for operation in flow.operations:
        made_of_nothing = not operation.inputs and any(value in flow.behind_roots for value in operation.outputs)
        if made_of_nothing and ops.is_a(operation, ops.ENTERS):
            found.append(operation.id)
    met = {value for values in flow.values_of.values() for value in values} & flow.behind_roots
    for operation in flow.operations:
        for value in operation.inputs:
            tensor = flow.tensor(value)
            made_outside = value in met and value not in flow.maker and tensor is not None and tensor.leaf
            if made_outside and tensor is not None and tensor.registered is None and tensor.optimizer is None:
                if tensor.made == operation.span:
                    found.append(operation.id)
                met.discard(value)
    return sorted(found)


def _came_back(flow: StepFlow, exit_: Operation) -> Operation | None:
    taker = taker_of(flow, exit_)
    if taker is not None:
        return taker
    later = next((number for number in _entries(flow) if number > exit_.id), None)
    return next((operation for operation in flow.operations if operation.id == later), None)


def _rebound(ask: Ask) -> list[Cut]:
    """What tensors that learned before have lost since, where a backward is refused."""
    crash = ask.run.crash
    if crash is None or crash.symptom != "no graph" or ask(frozen_out):
        return []
    for flow in reversed([flow for flow in ask(flows) if flow.operations]):
        if not any(backward.failed for backward in flow.step.backwards):
            continue
        groups: dict[object, list[tuple[Tensor, Operation]]] = {}
        for tensor_id, starts in flow.values_of.items():
            tensor = flow.tensors.get(tensor_id)
            if (
                tensor is None
                or not (tensor.leaf and tensor.requires_grad)
                or not any(flow.history[value] for value in starts)
            ):
                continue
            reach = ranked(ask, flow, flow.reach(starts, flow.behind_roots_of(tensor_id)), flow.roots)
            if reach.cuts:
                groups.setdefault(place(flow, reach.cuts[0]), []).append((tensor, reach.cuts[0]))
        return [
            Cut(cause_of(flow, group[0][1]), group[0][1], flow, tuple(tensor for tensor, _ in group), "error")
            for group in groups.values()
        ]
    return []
