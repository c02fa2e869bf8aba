"""Where the gradient of a tensor that someone relies on is lost: the evidence that the rules on cuts share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cause, Cut, cause_of
from gradscope.graph.facts import Operation, Tensor
from gradscope.graph.flow import Reach, StepFlow, data_of, flows, rounds
from gradscope.graph.naming import callee, within
from gradscope.graph.numbers import taker_of
from gradscope.graph.ranking import (
    carried,
    distinct,
    leads_on,
    makes_a_target,
    of_several_places,
    place,
    ranked,
    recurring,
)
from gradscope.graph.refusals import Refused, cleared_last, refused_pass
from gradscope.graph.reliance import frozen_out, only_returned, unmet
from gradscope.graph.replicas import waited_for
from gradscope.graph.terms import terms
from gradscope.graph.ties import freed_by_gradient


def cuts(ask: Ask) -> tuple[Cut, ...]:
    """All places at which a gradient that someone relies on is lost."""
    freed = ask(freed_by_gradient)
    if freed is not None:
        return (freed,)
    refused = _refused(ask)
    found = [*refused, *_never(ask, _settled(ask, refused))]
    told = {tensor.id for cut in found for tensor in cut.tensors}
    places = {place(cut.flow, other) for cut in found for other in (cut.operation, *cut.others)}
    turns = [flow for optimizer in ask.run.optimizers for flow in ask(rounds, optimizer.id)]
    dead = (term for term in terms(ask, turns, places) if not told.issuperset(tensor.id for tensor in term.tensors))
    return (*found, *dead)


def _settled(ask: Ask, told: Sequence[Cut]) -> set[int]:
    """The tensors of which nothing more is to be told: those cut off from a refused pass, and what it leaves innocent.

    Before an optimizer has stepped, nobody else relies on what it holds.
    """
    refused = ask(refused_pass) if told else None
    if refused is None:
        return set()
    stepped = {optimizer.id for optimizer in ask.run.optimizers if optimizer.steps}
    idle = {number for number in refused.leaves if refused.flow.tensors[number].optimizer not in stepped}
    return idle.union(tensor.id for cut in told for tensor in cut.tensors)


def _never(ask: Ask, told: Collection[int]) -> list[Cut]:
    """Where tensors that never got a gradient have lost it, but for those of which that is told."""
    run = ask.run
    cut: dict[object, list[tuple[Tensor, Reach, StepFlow]]] = {}
    left: dict[object, list[tuple[Tensor, Operation, StepFlow]]] = {}
    turns = {number: ask(rounds, number) for number in (None, *(optimizer.id for optimizer in run.optimizers))}
    waited = ask(waited_for)
    refused = ask(refused_pass)
    for tensor in ask(unmet):
        if tensor.id in told:
            continue
        ways = [waited[tensor.id]] if tensor.id in waited else turns[tensor.optimizer]
        if refused is not None and not refused.leaves and tensor.id in refused.flow.values_of:
            ways = [refused.flow]
        for flow in ways:
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
    return [*_cuts_of(cut.values()), *_exits_of(ask, left.values())]


def _cuts_of(groups: Iterable[Sequence[tuple[Tensor, Reach, StepFlow]]]) -> Iterator[Cut]:
    """What is told of the tensors that one cut has in common."""
    for group in groups:
        _, reach, flow = group[0]
        first = reach.cuts[0]
        others = reach.cuts[1:]
        carrying, further = carried(flow, first)
        if not carrying.isdisjoint(flow.roots):
            others, further = tuple(cut for cut in others if leads_on(flow, cut, flow.roots)), []
        if not makes_a_target(flow, first):
            others = tuple(cut for cut in others if not makes_a_target(flow, cut))
        sufferers = tuple(tensor for tensor, _, _ in group)
        others = distinct((*others, *further), first)
        yield Cut(cause_of(flow, first), first, flow, sufferers, "error", others=others, further=tuple(further))


def _exits_of(ask: Ask, groups: Iterable[Sequence[tuple[Tensor, Operation, StepFlow]]]) -> Iterator[Cut]:
    """What is told of the tensors whose values leave torch at one place."""
    for exits in groups:
        _, exit_, flow = exits[0]
        back = _came_back(flow, exit_)
        cause: Cause = "left-torch"
        if exit_.span is not None and callee(exit_.span, ask.run.sources) in ops.CONSTRUCTS:
            cause = "rebuilt-tensor"
        elif ops.is_a(exit_, ops.CHOOSES) and back is None:
            cause = "non-differentiable-op"
        yield Cut(cause, exit_, flow, tuple(t for t, _, _ in exits), "error", came_back=back)


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
    if reach.alive.isdisjoint(flow.losses):
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


def _refused(ask: Ask) -> list[Cut]:
    """What cut off the roots of a pass that was refused from what they were computed from.

    It is judged by itself, whatever other losses do. Of several cuts those count whose mending would lead to the roots;
    of these, such as nobody means (`argmax`, `torch.tensor(t)`) before a `detach` or `no_grad` of what others train.
    """
    refused = ask(refused_pass)
    if refused is None or not refused.leaves or ask(frozen_out):
        return []
    flow = refused.flow
    groups: dict[object, list[tuple[Tensor, Reach, StepFlow]]] = {}
    for number, values in flow.values_of.items():
        tensor = flow.tensors[number]
        if number not in refused.wanted or not any(flow.history[value] for value in values):
            continue
        reach = ranked(ask, flow, flow.reach(values, flow.behind_roots_of(number)), flow.roots)
        if reach.cuts and not _is_independent(flow, reach):
            groups.setdefault(place(flow, reach.cuts[0]), []).append((tensor, reach, flow))
    return list(_cuts_of(_guilty(ask, flow, refused, groups.values())))


_Group = list[tuple[Tensor, Reach, StepFlow]]


def _guilty(ask: Ask, flow: StepFlow, refused: Refused, groups: Iterable[_Group]) -> list[_Group]:
    """Of the cuts behind a refused pass, those without which it would have run."""
    groups = list(groups)
    groups = [group for group in groups if not makes_a_target(flow, group[0][1].cuts[0])] or groups
    leading = [group for group in groups if leads_on(flow, group[0][1].cuts[0], flow.roots)]
    if len(leading) < 2:
        return leading or groups
    wanted = cleared_last(ask.run, refused.backward)
    tests: tuple[Callable[[_Group], bool], ...] = (
        lambda group: any(tensor.optimizer is not None for tensor, _, _ in group),
        lambda group: any(tensor.id in wanted for tensor, _, _ in group),
        lambda group: cause_of(flow, group[0][1].cuts[0]) not in ("detach", "no-grad"),
        lambda group: not all(tensor.received is not None and tensor.received.steps for tensor, _, _ in group),
    )
    for test in tests:
        leading = [group for group in leading if test(group)] or leading
    return leading
