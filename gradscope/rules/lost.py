"""Where the gradient of a tensor that someone relies on is lost: the evidence that the rules on cuts share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

from gradscope.graph.facts import Operation, Run, Severity, Span, Tensor
from gradscope.graph.naming import callee, short_name, within
from gradscope.graph.once import once
from gradscope.graph.paths import Reach, StepFlow, data_of, flows, rounds, trains_nothing
from gradscope.rules.numbers import returned, taker_of
from gradscope.rules.replicas import waited_for
from gradscope.rules.successors import held_copies, replaced

Cause = Literal["detach", "no-grad", "rebuilt-tensor", "left-torch", "missing-create-graph", "non-differentiable-op"]

DETACHING = frozenset({"Tensor.detach", "Tensor.detach_", "detach", "Tensor.data"})
_REBUILDING = frozenset(
    {
        "tensor",
        "as_tensor",
        "asarray",
        "scalar_tensor",
        "nn.Parameter",
        "Variable",
        "Tensor.new_tensor",
        "Tensor.__deepcopy__",
    }
)
_REBUILDERS = frozenset(
    {
        "tensor",
        "as_tensor",
        "asarray",
        "Tensor",
        "FloatTensor",
        "DoubleTensor",
        "HalfTensor",
        "LongTensor",
        "new_tensor",
    }
)
_GRADIENTS = frozenset({"autograd.grad", "Tensor.grad"})
# What torch and Python say where a gradient is asked for and there is no way for it.
REFUSALS = frozenset({"no graph", "no tensor to differentiate", "gradient is None", "non-leaf in optimizer"})


@dataclass(frozen=True, slots=True)
class Lost:
    """The gradient of some tensors ends at one operation of one step.

    `came_back` is where the value entered torch again, for an operation that gave it out of torch. `term` is set
    where only a summand of the loss has no gradient while the tensors learn from others. `further` are operations
    behind it that would end the gradient once more, where no way leads round them.
    """

    cause: Cause
    operation: Operation
    flow: StepFlow
    tensors: tuple[Tensor, ...]
    severity: Severity
    term: bool = False
    others: tuple[Operation, ...] = ()
    came_back: Operation | None = None
    further: tuple[Operation, ...] = ()


@once
def lost(run: Run) -> tuple[Lost, ...]:
    """All places at which a gradient that someone relies on is lost."""
    return tuple(_find(run))


def _find(run: Run) -> list[Lost]:
    steps = [flow for flow in flows(run) if flow.operations]
    found = _never(run)
    if not found:
        found = _rebound(run, steps)
    told = {tensor.id for loss in found for tensor in loss.tensors}
    places = {_place(loss.flow, cut) for loss in found for cut in (loss.operation, *loss.others)}
    turns = [flow for optimizer in run.optimizers for flow in rounds(run, optimizer.id)]
    return found + [term for term in _terms(turns, places) if not told.issuperset(t.id for t in term.tensors)]


# --- tensors that never get a gradient -------------------------------------------------------------------------


@once
def suffering(run: Run) -> list[Tensor]:
    """Tensors that someone relies on and that never got a gradient.

    Who steps an optimizer relies on what it holds; who calls backward and is refused relies on what was to be
    trained, or, where no optimizer is, on the leaves that require grad. DDP relies on all that it holds in each step.
    Nobody relies on the gradient of what the program moves by hand after others that train: a target network or a
    codebook that is a part of the model is in `model.parameters()` as well. Nor on that of a place in the model which
    the program fills anew all the time, with parameters that never get any gradient either.
    """
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    refused = run.crash is not None and run.crash.symptom in ("no graph", "no tensor to differentiate")
    waited = waited_for(run)
    refilled = _refilled(run)
    found = []
    for tensor in run.tensors:
        if not (tensor.leaf and tensor.requires_grad) or tensor.name is None:
            continue
        if tensor.id in waited:
            found.append(tensor)
            continue
        got = tensor.received is not None and tensor.received.steps > 0 and not only_returned(tensor)
        if (tensor.module, tensor.name) in refilled:
            continue
        if tensor.optimizer is not None:
            relied = tensor.optimizer in stepped and tensor.received is not None and tensor.received.of > 0
            if not got and (relied or (refused and tensor.optimizer not in stepped)) and not _follows(run, tensor):
                found.append(tensor)
        elif refused and not run.optimizers and not got and tensor.used:
            found.append(tensor)
    return found


def _refilled(run: Run) -> set[tuple[str | None, str | None]]:
    """Places in modules, by module and name, that get a new parameter in step after step, and never a gradient."""
    tensors = run.tensor_by_id
    holder = run.holder
    filled: dict[tuple[str | None, str | None], list[Tensor]] = defaultdict(list)
    for step in run.steps[1:]:
        for operation in step.operations:
            if operation.name == "nn.Parameter":
                made = [tensors[holder[value]] for value in operation.outputs]
                for tensor in made:
                    if tensor.registered == "parameter":
                        filled[tensor.module, tensor.name].append(tensor)
    return {
        place
        for place, made in filled.items()
        if len(made) > 1 and not any(tensor.received is not None and tensor.received.steps for tensor in made)
    }


def only_returned(tensor: Tensor) -> bool:
    """Whether all gradients of what an optimizer holds were returned by `autograd.grad`, and none was ever applied."""
    ledger, received = tensor.ledger, tensor.received
    if tensor.optimizer is None or ledger is None or received is None or not received.steps:
        return False
    unfed = ledger.starved > 0 and not (ledger.passes or ledger.applied or ledger.by_hand)
    return unfed and not tensor.supplied and tensor.change == 0


def _follows(run: Run, tensor: Tensor) -> bool:
    """Whether the program writes into a tensor, once training runs, what it computed from others that got gradients."""
    if not tensor.change:
        return False
    for flow in flows(run)[1:]:  # what is written before are values to start from
        for operation in flow.operations:
            # `t.data = value` makes no new value by torch's count.
            if operation.name == "Tensor.data =":
                made = set(operation.inputs[:1])
            else:
                made = set(operation.outputs).difference(operation.inputs)
            if not any(flow.holder[value] == tensor.id for value in made):
                continue
            written = [value for value in operation.inputs if flow.holder[value] != tensor.id]
            sources = map(flow.tensor, flow.behind(written, tensor.id))
            if any(source.leaf and source.received and source.received.steps for source in sources if source):
                return True
    return False


_RANK: tuple[Cause, ...] = ("detach", "no-grad", "rebuilt-tensor", "missing-create-graph", "non-differentiable-op")


def _never(run: Run) -> list[Lost]:
    cut: dict[object, list[tuple[Tensor, Reach, StepFlow]]] = {}
    left: dict[object, list[tuple[Tensor, Operation, StepFlow]]] = {}
    turns = {number: rounds(run, number) for number in (None, *(optimizer.id for optimizer in run.optimizers))}
    given_up = {old.id for old, _ in replaced(run)}.union(held_copies(run))
    waited = waited_for(run)
    for tensor in suffering(run):
        if tensor.id in given_up:
            continue
        for flow in [waited[tensor.id]] if tensor.id in waited else turns[tensor.optimizer]:
            starts = flow.values_of.get(tensor.id)
            if not starts or not (flow.roots or run.crash):
                continue
            if flow.step is not run.steps[-1] and flow is turns[tensor.optimizer][0] and _only_fills(flow, starts):
                continue  # what is written before training are values to start from; each further step tells for itself
            reach = _ranked(flow, flow.reach(starts, flow.behind_roots_of(tensor.id)), flow.roots)
            if not only_returned(tensor) and _is_independent(flow, reach):
                break
            if _of_several_places(flow, reach):
                reach = _recurring(reach, flow, turns[tensor.optimizer][-1], tensor)
            exit_ = _telling_exit(flow, reach)
            if reach.cuts and (exit_ is None or reach.touched.intersection(flow.roots)):
                cut.setdefault(_place(flow, reach.cuts[0]), []).append((tensor, reach, flow))
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
        carrying, further = _carried(flow, first)
        if not carrying.isdisjoint(flow.roots):
            others, further = tuple(cut for cut in others if _leads_on(flow, cut, flow.roots)), []
        sufferers = tuple(tensor for tensor, _, _ in group)
        others = _distinct((*others, *further), first)
        cause = cause_of(flow, first)
        found.append(Lost(cause, first, flow, sufferers, "error", others=others, further=tuple(further)))
    for exits in left.values():
        _, exit_, flow = exits[0]
        back = _came_back(flow, exit_)
        cause = "left-torch"
        if exit_.span is not None and callee(exit_.span, run.sources) in _REBUILDERS:
            cause = "rebuilt-tensor"
        elif short_name(exit_.name) in _CHOOSING and back is None:
            cause = "non-differentiable-op"
        found.append(Lost(cause, exit_, flow, tuple(t for t, _, _ in exits), "error", came_back=back))
    return found


def _only_fills(flow: StepFlow, starts: Sequence[int]) -> bool:
    """Whether a tensor takes part in a step only by its values being copied, as they are, into another parameter."""
    copied, filled = set(starts), False
    own = {flow.holder[value] for value in starts}
    for operation in flow.operations:
        if copied.isdisjoint(data_of(operation)):
            continue
        if short_name(operation.name) not in _COPYING:
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


_COPYING = frozenset({"data", "detach", "clone", "copy_"})


def _is_independent(flow: StepFlow, reach: Reach) -> bool:
    """Whether the way leads uncut through a gradient to a loss: a slope does not depend on the last bias of a score."""
    if reach.alive.isdisjoint(flow.roots):
        return False
    kept = {value for operation in flow.operations if operation.name == "autograd.grad" for value in operation.outputs}
    return not kept.isdisjoint(reach.alive)


def _ranked(flow: StepFlow, reach: Reach, ends: Collection[int]) -> Reach:
    """The same with the cut first that can best be mended: a `detach` rather than the indices of an `argmin`.

    One whose mending would let no gradient through, since there is another behind it, is not the one to tell: in
    `w = softmax(e - e.max().detach()).data` it is the second. And a term of the loss that trains nothing at all comes
    before one that trains others: there a `detach` may be meant.
    """
    if len(reach.cuts) < 2:
        return reach
    idle = _behind_dead_terms(flow)
    cuts = sorted(
        reach.cuts,
        key=lambda cut: (
            not _leads_on(flow, cut, ends),
            idle.isdisjoint(cut.outputs),
            _RANK.index(cause_of(flow, cut)),
            _is_taken_away(flow, cut, reach.cuts),
        ),
    )
    return Reach(reach.touched, reach.alive, tuple(cuts), reach.exits)


def _behind_dead_terms(flow: StepFlow) -> frozenset[int]:
    """What the terms that train nothing were computed from; found once for all tensors of a step."""
    if flow not in _idle:
        _idle[flow] = flow.behind(term for root in flow.roots for term, _ in _dead_terms(flow, root))
    return _idle[flow]


_idle: WeakKeyDictionary[StepFlow, frozenset[int]] = WeakKeyDictionary()


def _of_several_places(flow: StepFlow, reach: Reach) -> bool:
    return len({_place(flow, cut) for cut in reach.cuts if cause_of(flow, cut) == cause_of(flow, reach.cuts[0])}) > 1


def _recurring(reach: Reach, flow: StepFlow, last: StepFlow, tensor: Tensor) -> Reach:
    """The same with those cuts first, of the cause that is told, that cut the way in the last step as well.

    What was computed once for many steps, such as the probabilities of a rollout, is cut off in the first of them only.
    """
    starts = last.values_of.get(tensor.id)
    if last is flow or not starts or not last.roots:
        return reach
    again = {_place(last, cut) for cut in last.reach(starts, last.behind_roots_of(tensor.id)).cuts}
    told = cause_of(flow, reach.cuts[0])
    if not any(_place(flow, cut) in again for cut in reach.cuts if cause_of(flow, cut) == told):
        return reach
    cuts = sorted(reach.cuts, key=lambda cut: cause_of(flow, cut) != told or _place(flow, cut) not in again)
    return Reach(reach.touched, reach.alive, tuple(cuts), reach.exits)


def _leads_on(flow: StepFlow, cut: Operation, ends: Collection[int]) -> bool:
    """Whether a gradient would come from one of these values to what a cut gives."""
    return not _carried(flow, cut)[0].isdisjoint(ends)


def _carried(flow: StepFlow, cut: Operation) -> tuple[set[int], list[Operation]]:
    """The values from which a gradient would come to what a cut gives, and the operations that cut it once more."""
    carrying = set(cut.outputs)
    further = []
    for operation in flow.operations:
        if operation.id <= cut.id or carrying.isdisjoint(data_of(operation)):
            continue
        history = any(flow.history[value] for value in operation.inputs)
        if _stops(operation):
            further += [] if flow.behind_roots.isdisjoint(operation.outputs) else [operation]
        elif not history or any(flow.history[value] for value in operation.outputs):
            carrying.update(value for value in operation.outputs if _is_continuous(flow.tensor(value)))
    return carrying, further


def _stops(operation: Operation) -> bool:
    return operation.name in DETACHING | _REBUILDING | _GRADIENTS or not operation.grad_enabled


def _is_continuous(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.dtype.startswith(("float", "bfloat", "complex"))


def _is_taken_away(flow: StepFlow, cut: Operation, cuts: Sequence[Operation]) -> bool:
    """Whether a cut is subtracted where another of the same value is not, as in `hard - soft.detach() + soft.detach()`.

    A gradient through it would have the wrong sign: the other is the one to mend.
    """
    return any(other is not cut and other.inputs == cut.inputs for other in cuts) and any(
        operation.name in _SUBTRACTING and len(operation.inputs) == 2 and operation.inputs[1] in cut.outputs
        for operation in flow.operations
    )


def _place(flow: StepFlow, cut: Operation) -> object:
    """What makes two cuts one: the same line, or the same switch of grad mode."""
    if cause_of(flow, cut) == "no-grad":
        switch = grad_mode_switch(flow, cut)
        if switch is not None:
            return switch.name, switch.span
    return cut.name, cut.span


def _distinct(operations: Iterable[Operation], first: Operation) -> tuple[Operation, ...]:
    """One operation for each further line."""
    lines = {first.span.line if first.span else None}
    kept = []
    for operation in operations:
        line = operation.span.line if operation.span else None
        if line not in lines:
            lines.add(line)
            kept.append(operation)
    return tuple(kept[:3])


_SUBTRACTING = frozenset({"sub", "Tensor.sub", "Tensor.sub_", "Tensor.__sub__", "Tensor.__isub__"})
_CHOOSING = frozenset({"int", "index"})


def _telling_exit(flow: StepFlow, reach: Reach) -> Operation | None:
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
        choices = [exit_ for exit_ in reach.exits if short_name(exit_.name) in _CHOOSING]
        in_each = [
            exit_
            for exit_ in reach.exits
            if _is_all_that_is_done(flow, reach, exit_) and _is_read_before_each_loss(flow.run, exit_)
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


def _is_read_before_each_loss(run: Run, exit_: Operation) -> bool:
    """Whether a line takes a value out of torch in the first step as in the second, before there is a loss.

    What is logged comes after the loss of the first step.
    """
    first = flows(run)[:2]
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
        if made_of_nothing and short_name(operation.name) in _REBUILDERS | {"from_numpy", "full"}:
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


def _rebound(run: Run, steps: list[StepFlow]) -> list[Lost]:
    """What tensors that learned before have lost since, where a backward is refused."""
    if run.crash is None or run.crash.symptom != "no graph" or frozen_out(run):
        return []
    for flow in reversed(steps):
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
            reach = _ranked(flow, flow.reach(starts, flow.behind_roots_of(tensor_id)), flow.roots)
            if reach.cuts:
                groups.setdefault(_place(flow, reach.cuts[0]), []).append((tensor, reach.cuts[0]))
        return [
            Lost(cause_of(flow, group[0][1]), group[0][1], flow, tuple(tensor for tensor, _ in group), "error")
            for group in groups.values()
        ]
    return []


@once
def frozen_out(run: Run) -> list[tuple[Tensor, StepFlow]]:
    """Parameters that an optimizer holds, frozen when a backward ran, or was refused, that was to train them."""
    found = []
    for flow in flows(run):
        idle = [backward for backward in flow.step.backwards if trains_nothing(flow, backward)]
        ends = frozenset(root for backward in idle for root in backward.roots)
        if not ends:
            continue
        for tensor_id, starts in flow.values_of.items():
            tensor = flow.tensors[tensor_id]
            held = tensor.optimizer is not None and tensor.name is not None
            if held and not tensor.requires_grad and _would_carry(flow, starts, ends):
                found.append((tensor, flow))
    return found


def _would_carry(flow: StepFlow, starts: list[int], ends: frozenset[int]) -> bool:
    """Whether a gradient would come back to these values if they required one."""
    carrying = set(starts)
    for operation in flow.operations:
        if not _stops(operation) and not carrying.isdisjoint(data_of(operation)):
            carrying.update(operation.outputs)
    return not carrying.isdisjoint(ends)


# --- terms of the loss ---------------------------------------------------------------------------------------------


_SUMS = frozenset({"add", "radd", "iadd", "add_", "sub", "rsub", "isub", "sub_", "sum", "mean", "stack", "neg"})
_SCALES = frozenset(
    {"mul", "rmul", "imul", "div", "truediv", "mul_", "div_", "view", "reshape", "squeeze", "to", "float"}
)


def _terms(steps: list[StepFlow], told: Collection[object]) -> list[Lost]:
    """Summands of a scalar loss that depend on tensors in training yet have no history: they do nothing.

    Where a cut that is `told` lies behind one, it has a history again once that is mended.
    """
    found: dict[tuple[str, Span | None], Lost] = {}

    def note(term: Lost) -> None:
        key = term.operation.name, term.operation.span
        known = found.setdefault(key, term)
        if known is not term and known.flow is term.flow:  # one line may lose several terms of one loss
            tensors = {tensor.id: tensor for tensor in (*known.tensors, *term.tensors)}
            found[key] = replace(known, tensors=tuple(tensors[number] for number in sorted(tensors)))

    for flow in steps:
        if any(backward.failed for backward in flow.step.backwards):
            continue  # what stopped it is to be mended first
        for residual in _gradients_beside_their_output(flow):
            note(residual)
        for root in flow.roots:
            for exit_ in _terms_as_numbers(flow, root):
                trained = _trained_behind(flow, exit_.inputs)
                if trained:
                    note(Lost("left-torch", exit_, flow, tuple(trained), "warning", term=True))
    for loss in _dead(steps, told):
        note(loss)
    for flow, adder, exits in returned((turn, adder) for turn in steps for adder in _adding_numbers(turn)):
        trained = _trained_behind(flow, _attached(flow, (value for exit_ in exits for value in exit_.inputs)))
        if trained and exits[-1].span != adder.span:  # else one expression calls a library that does both
            note(Lost("left-torch", exits[-1], flow, tuple(trained), "warning", term=True, came_back=adder))
    return list(found.values())


def _dead(steps: list[StepFlow], told: Collection[object]) -> Iterator[Lost]:
    """Terms without history and where they have lost it: of several places, one that cuts them in every step.

    What was computed once for many steps, such as the probabilities of a rollout, is cut off in the first of them only.
    """
    sound = (flow for flow in steps if not any(backward.failed for backward in flow.step.backwards))
    dead = [(flow, term, adder) for flow in sound for root in flow.roots for term, adder in _dead_terms(flow, root)]
    settled = {adder.span for flow, term, adder in dead if _is_told(flow, term, told)}
    found: list[tuple[StepFlow, Operation, list[_Cut]]] = []
    for flow, term, adder in dead:
        if adder.span in settled:
            continue
        cut_off = _cut_off(flow, term)
        penalty = None if cut_off else _gradient_as_number(flow, term)
        if cut_off:
            found.append((flow, adder, cut_off))
        elif penalty is not None and not _in_one_call(penalty.operation, adder):
            yield penalty
    times: Counter[tuple[Span | None, object]] = Counter()
    for flow, adder, cut_off in found:
        times.update({(adder.span, _place(flow, cut)) for cut in cut_off[0][1]})
    for flow, adder, cut_off in found:
        first = cut_off[0][1]
        cause = cause_of(flow, first[0])
        cut = max(
            (cut for cut in first if cause_of(flow, cut) == cause),
            key=lambda cut: times[adder.span, _place(flow, cut)],
        )
        place = _place(flow, cut)
        tensors = [tensor for tensor, cuts in cut_off if any(_place(flow, other) == place for other in cuts)]
        if not _in_one_call(cut, adder):
            others = _distinct((other for other in first if other is not cut), cut)
            tensors.sort(key=lambda tensor: tensor.id)
            yield Lost(cause, cut, flow, tuple(tensors), "warning", term=True, others=others)


def _is_told(flow: StepFlow, term: int, told: Collection[object]) -> bool:
    if not told:
        return False
    behind = flow.behind([term])
    return any(
        _place(flow, operation) in told
        for operation in flow.operations
        if not behind.isdisjoint(operation.outputs) and _ends_history(flow, operation)
    )


def _ends_history(flow: StepFlow, operation: Operation) -> bool:
    """Whether an operation takes values with history and gives none: others cut nothing."""
    return any(flow.history[value] for value in data_of(operation)) and not any(
        flow.history[value] for value in operation.outputs
    )


def _adding_numbers(flow: StepFlow) -> list[Operation]:
    """The operations that add a plain number to what becomes a scalar root."""
    if any(backward.failed for backward in flow.step.backwards):
        return []
    adders = [
        operation
        for root in flow.roots
        for operation in _summing(flow, root)
        if operation.number is not None and len(operation.inputs) == 1 and short_name(operation.name) in _SUMS
    ]
    return sorted(adders, key=lambda operation: operation.id)


def _attached(flow: StepFlow, values: Iterable[int]) -> Iterator[int]:
    """These values, or what they were before a `detach` made nothing but numbers of them."""
    for value in values:
        maker = flow.maker.get(value)
        yield from maker.inputs if maker is not None and maker.name in DETACHING else (value,)


def _in_one_call(cut: Operation, adder: Operation) -> bool:
    """Whether one expression of the user's runs both: then it calls a library, whose loss is its own business."""
    return cut.span is not None and cut.span == adder.span


def _terms_as_numbers(flow: StepFlow, root: int) -> list[Operation]:
    """Where a summand of a scalar root leaves torch within the very expression that adds it: `loss + reg.item()`."""
    sums = [
        operation.span
        for operation in _summing(flow, root)
        if operation.span is not None and len(operation.inputs) == 1 and short_name(operation.name) in _SUMS
    ]
    spans = set(sums)
    return [
        exit_
        for exit_ in flow.exits
        if any(exit_.span is not None and exit_.span != span and within(exit_.span, span) for span in spans)
    ]


def _summing(flow: StepFlow, root: int) -> list[Operation]:
    """The chain of sums and scalings by constants that a scalar root ends with."""
    chain, waiting, seen = [], [root], {root}
    while waiting:
        operation = flow.maker.get(waiting.pop())
        if operation is None or short_name(operation.name) not in _SUMS | _SCALES:
            continue
        chain.append(operation)
        fresh = [i for i in operation.inputs if i not in seen and flow.history[i] and flow.is_scalar(i)]
        seen.update(fresh)
        waiting += fresh
    return chain


def _dead_terms(flow: StepFlow, root: int) -> list[tuple[int, Operation]]:
    """The summands of a scalar root without history and who adds them; through sums, and scalings by constants."""
    if not flow.history[root]:
        return []
    dead: list[tuple[int, Operation]] = []
    waiting, seen = [root], {root}
    while waiting:
        value = waiting.pop()
        operation = flow.maker.get(value)
        name = short_name(operation.name) if operation is not None else ""
        if operation is None or name not in _SUMS | _SCALES:
            continue
        inputs = [i for i in operation.inputs if i != value]
        if name in _SCALES and sum(flow.history[i] for i in inputs) != 1:
            continue
        for source in inputs:
            tensor = flow.tensor(source)
            if (
                source in seen
                or tensor is None
                or (any(size != 1 for size in tensor.shape) and name not in ("sum", "mean"))
            ):
                continue
            seen.add(source)
            if flow.history[source]:
                waiting.append(source)
            elif name in _SUMS and source in flow.maker:
                dead.append((source, operation))
    return dead


def _trained_behind(flow: StepFlow, values: Iterable[int]) -> list[Tensor]:
    """The tensors in training from which a gradient would have come to these values."""
    behind = flow.behind([value for value in values if flow.history[value]])
    held = {flow.holder[value]: flow.tensor(value) for value in sorted(behind)}
    return [tensor for tensor in held.values() if tensor is not None and _is_in_training(flow, tensor)]


def _is_in_training(flow: StepFlow, tensor: Tensor) -> bool:
    """Whether an optimizer holds it and it required grad here, whatever it does by the end: GANs freeze by turns."""
    required = tensor.requires_grad or any(flow.history[value] for value in flow.values_of.get(tensor.id, ()))
    return tensor.optimizer is not None and tensor.leaf and required and tensor.name is not None


_Cut = tuple[Tensor, tuple[Operation, ...]]


def _cut_off(flow: StepFlow, term: int) -> list[_Cut]:
    """The tensors in training that a term was computed from, and the operations that cut them off from it."""
    ends = (term,)
    found: list[_Cut] = []
    for tensor_id, starts in flow.values_of.items():
        tensor = flow.tensors[tensor_id]
        if not _is_in_training(flow, tensor):
            continue
        reach = flow.reach([value for value in starts if flow.history[value]], flow.behind([term], tensor_id))
        cuts = _ranked(flow, reach, ends).cuts
        if cuts and term in reach.touched:
            found.append((tensor, cuts))
    # A generator that is detached before the critic's penalty loses nothing by the penalty's missing graph.
    return [(tensor, cuts) for tensor, cuts in found if _leads_on(flow, cuts[0], ends)] or found


def _gradient_as_number(flow: StepFlow, term: int) -> Lost | None:
    """A term made of the `.grad` that a backward brought to an input: a penalty without the graph of its gradient."""
    behind = flow.behind([term])
    for operation in flow.operations:
        if operation.name not in _GRADIENTS or len(operation.inputs) != 1 or behind.isdisjoint(operation.outputs):
            continue
        leaf = flow.holder[operation.inputs[0]]
        passes = [b for b in flow.step.backwards if leaf in b.arrivals and b.began < operation.id]
        trained = _trained_behind(flow, [root for backward in passes for root in backward.roots])
        if trained and not _is_in_training(flow, flow.tensors[leaf]):
            return Lost("missing-create-graph", operation, flow, tuple(trained), "warning", term=True)
    return None


def _gradients_beside_their_output(flow: StepFlow) -> Iterator[Lost]:
    """Gradients without a graph that meet the output that they are of, element by element: residuals of equations.

    Nothing is said of gradients that go on into layers (adversarial inputs), of those with respect to what is trained
    or computed from it (inner loops), and of single numbers (weights of several losses).
    """
    for operation in flow.operations:
        if operation.name != "autograd.grad" or any(flow.history[value] for value in operation.outputs):
            continue
        trained = _trained_behind(flow, operation.inputs)
        if not trained or _trained_behind(flow, operation.inputs[1:]):
            continue
        if _meets(flow, operation):
            yield Lost("missing-create-graph", operation, flow, tuple(trained), "warning", term=True)


def _meets(flow: StepFlow, gradient: Operation) -> bool:
    """Whether a root is computed, without any layer, from a gradient together with the output that it is of."""
    tensors = {value: flow.tensor(value) for values in flow.values_of.values() for value in values}
    in_training = {value for value, tensor in tensors.items() if tensor is not None and _is_in_training(flow, tensor)}
    output = {
        value
        for value in flow.behind(gradient.inputs)
        if flow.history[value] and (tensor := tensors.get(value)) is not None and not tensor.leaf
    }
    numbers, met = set(gradient.outputs), set[int]()
    for operation in flow.operations:
        given = set(operation.inputs)
        if given & in_training or not operation.grad_enabled or operation.name in DETACHING:
            continue
        made = [value for value in operation.outputs if value not in given]
        if given & met or (given & numbers and given & output and not all(flow.is_scalar(v) for v in made)):
            met.update(made)
        elif given & numbers:
            numbers.update(value for value in made if not flow.history[value])
        elif given & output:
            output.update(value for value in made if flow.history[value])
    return not met.isdisjoint(flow.roots)


# --- causes ----------------------------------------------------------------------------------------------------------


def cause_of(flow: StepFlow, cut: Operation) -> Cause:
    """Which rule explains a cut: told from what kind of operation it is and whether grad mode was on."""
    if cut.name in _GRADIENTS:
        return "missing-create-graph"
    if cut.name in DETACHING:
        return "rebuilt-tensor" if _is_copied_by_a_library(flow, cut) else "detach"
    if cut.name in _REBUILDING or cut.name == "Tensor.data =" or _fills_a_leaf(flow, cut):
        return "rebuilt-tensor"
    if cut.id in flow.outer:
        return "no-grad"  # a custom Function runs its forward with grad mode off, and nothing given to it requires grad
    if not cut.grad_enabled:
        switch = grad_mode_switch(flow, cut)
        # A library function that turns grad mode off itself is what cannot be differentiated.
        own = switch is not None and switch.span == cut.span and "decorator" not in switch.name
        return "non-differentiable-op" if own else "no-grad"
    return "non-differentiable-op"


def _is_copied_by_a_library(flow: StepFlow, cut: Operation) -> bool:
    """Whether one call of the user's detached and made a new parameter of it: `copy.deepcopy(module)`."""
    return any(
        operation.name == "nn.Parameter" and operation.span == cut.span and operation.id > cut.id
        for operation in flow.operations
    )


def _fills_a_leaf(flow: StepFlow, cut: Operation) -> bool:
    """Whether the operation writes into a leaf that will get the gradient in place of what was written."""
    taken = {flow.holder[value] for value in cut.inputs}
    for value in cut.outputs:
        if flow.holder[value] in taken and value not in cut.inputs:
            target = flow.tensor(value)
            if (
                target is not None
                and target.leaf
                and short_name(cut.name) in ("copy_", "set_", "fill_", "setitem", "add_")
            ):
                return True
    return False


def grad_mode_switch(flow: StepFlow, operation: Operation) -> Operation | None:
    """What turned grad mode off for an operation; None where it lies before the steps that are kept."""
    latest = None
    for other in flow.run.grad_mode_switches:
        if other.id >= operation.id:
            break
        off = other.name.startswith(("set_grad_enabled(False)", "inference_mode(True)"))
        latest = (latest or other) if off else None  # an inner block that ends restores what the outer one had set
    return latest
