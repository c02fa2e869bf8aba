"""Terms of the loss that train nothing: summands that depend on tensors in training, yet have no history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cut, cause_of
from gradscope.graph.facts import Backward, Operation, Span, Tensor
from gradscope.graph.flow import StepFlow, data_of
from gradscope.graph.naming import within
from gradscope.graph.numbers import returned
from gradscope.graph.ranking import distinct, leads_on, place, ranked
from gradscope.graph.sums import dead_terms, summing


def terms(ask: Ask, steps: list[StepFlow], told: Collection[object]) -> list[Cut]:
    """Summands of a scalar loss that depend on tensors in training yet have no history: they do nothing.

    Where a cut that is `told` lies behind one, it has a history again once that is mended.
    """
    found: dict[tuple[str, Span | None], Cut] = {}

    def note(term: Cut) -> None:
        key = term.operation.name, term.operation.span
        known = found.setdefault(key, term)
        if known is not term and known.flow is term.flow:  # one line may lose several terms of one loss
            tensors = {tensor.id: tensor for tensor in (*known.tensors, *term.tensors)}
            found[key] = replace(known, tensors=tuple(tensors[number] for number in sorted(tensors)))

    for flow in steps:
        if any(backward.failed for backward in flow.step.backwards):
            continue  # what stopped it is to be mended first
        for residual in _residuals(flow):
            note(residual)
        for root in flow.roots:
            for exit_ in _terms_as_numbers(flow, root):
                trained = _trained_behind(flow, exit_.inputs)
                if trained:
                    note(Cut("left-torch", exit_, flow, tuple(trained), "warning", term=True))
    for loss in _dead(ask, steps, told):
        note(loss)
    for flow, adder, exits in returned((turn, adder) for turn in steps for adder in _adding_numbers(turn)):
        trained = _trained_behind(flow, _attached(flow, (value for exit_ in exits for value in exit_.inputs)))
        if trained and exits[-1].span != adder.span:  # else one expression calls a library that does both
            note(Cut("left-torch", exits[-1], flow, tuple(trained), "warning", term=True, came_back=adder))
    return list(found.values())


def _dead(ask: Ask, steps: list[StepFlow], told: Collection[object]) -> Iterator[Cut]:
    """Terms without history and where they have lost it: of several places, one that cuts them in every step.

    What was computed once for many steps, such as the probabilities of a rollout, is cut off in the first of them only.
    """
    sound = (flow for flow in steps if not any(backward.failed for backward in flow.step.backwards))
    dead = [(flow, term, adder) for flow in sound for root in flow.roots for term, adder in dead_terms(flow, root)]
    settled = {adder.span for flow, term, adder in dead if _is_told(flow, term, told)}
    found: list[tuple[StepFlow, Operation, list[_Way]]] = []
    for flow, term, adder in dead:
        if adder.span in settled:
            continue
        cut_off = _cut_off(ask, flow, term)
        penalty = None if cut_off else _gradient_as_number(flow, term)
        if cut_off:
            found.append((flow, adder, cut_off))
        elif penalty is not None and not _in_one_call(penalty.operation, adder):
            yield penalty
    times: Counter[tuple[Span | None, object]] = Counter()
    for flow, adder, cut_off in found:
        times.update({(adder.span, place(flow, cut)) for cut in cut_off[0][1]})
    for flow, adder, cut_off in found:
        first = cut_off[0][1]
        cause = cause_of(flow, first[0])
        cut = max(
            (cut for cut in first if cause_of(flow, cut) == cause),
            key=lambda cut: times[adder.span, place(flow, cut)],
        )
        here = place(flow, cut)
        tensors = [tensor for tensor, cuts in cut_off if any(place(flow, other) == here for other in cuts)]
        if not _in_one_call(cut, adder):
            others = distinct((other for other in first if other is not cut), cut)
            tensors.sort(key=lambda tensor: tensor.id)
            yield Cut(cause, cut, flow, tuple(tensors), "warning", term=True, others=others)


def _is_told(flow: StepFlow, term: int, told: Collection[object]) -> bool:
    if not told:
        return False
    behind = flow.behind([term])
    return any(
        place(flow, operation) in told
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
        for operation in summing(flow, root)
        if operation.number is not None and len(operation.inputs) == 1 and ops.is_a(operation, ops.SUMS)
    ]
    return sorted(adders, key=lambda operation: operation.id)


def _attached(flow: StepFlow, values: Iterable[int]) -> Iterator[int]:
    """These values, or what they were before a `detach` made nothing but numbers of them."""
    for value in values:
        maker = flow.maker.get(value)
        yield from maker.inputs if maker is not None and ops.is_a(maker, ops.DETACHES) else (value,)


def _in_one_call(cut: Operation, adder: Operation) -> bool:
    """Whether one expression of the user's runs both: then it calls a library, whose loss is its own business."""
    return cut.span is not None and cut.span == adder.span


def _terms_as_numbers(flow: StepFlow, root: int) -> list[Operation]:
    """Where a summand of a scalar root leaves torch within the very expression that adds it: `loss + reg.item()`."""
    sums = [
        operation.span
        for operation in summing(flow, root)
        if operation.span is not None and len(operation.inputs) == 1 and ops.is_a(operation, ops.SUMS)
    ]
    spans = set(sums)
    return [
        exit_
        for exit_ in flow.exits
        if any(exit_.span is not None and exit_.span != span and within(exit_.span, span) for span in spans)
    ]


def _trained_behind(flow: StepFlow, values: Iterable[int]) -> list[Tensor]:
    """The tensors in training from which a gradient would have come to these values."""
    behind = flow.behind([value for value in values if flow.history[value]])
    held = {flow.holder[value]: flow.tensor(value) for value in sorted(behind)}
    return [tensor for tensor in held.values() if tensor is not None and _is_in_training(flow, tensor)]


def _is_in_training(flow: StepFlow, tensor: Tensor) -> bool:
    """Whether an optimizer holds it and it required grad here, whatever it does by the end: GANs freeze by turns."""
    required = tensor.requires_grad or any(flow.history[value] for value in flow.values_of.get(tensor.id, ()))
    return tensor.optimizer is not None and tensor.leaf and required and tensor.name is not None


_Way = tuple[Tensor, tuple[Operation, ...]]


def _cut_off(ask: Ask, flow: StepFlow, term: int) -> list[_Way]:
    """The tensors in training that a term was computed from, and the operations that cut them off from it."""
    ends = (term,)
    found: list[_Way] = []
    for tensor_id, starts in flow.values_of.items():
        tensor = flow.tensors[tensor_id]
        if not _is_in_training(flow, tensor):
            continue
        reach = flow.reach([value for value in starts if flow.history[value]], flow.behind([term], tensor_id))
        cuts = ranked(ask, flow, reach, ends).cuts
        if cuts and term in reach.touched:
            found.append((tensor, cuts))
    # A generator that is detached before the critic's penalty loses nothing by the penalty's missing graph.
    return [(tensor, cuts) for tensor, cuts in found if leads_on(flow, cuts[0], ends)] or found


def _gradient_as_number(flow: StepFlow, term: int) -> Cut | None:
    """A term made of the `.grad` that a backward brought to an input: a penalty without the graph of its gradient."""
    behind = flow.behind([term])
    for operation in flow.operations:
        if not ops.is_a(operation, ops.GRADIENTS) or len(operation.inputs) != 1 or behind.isdisjoint(operation.outputs):
            continue
        leaf = flow.holder[operation.inputs[0]]
        passes = [b for b in flow.step.backwards if leaf in b.arrivals and b.began < operation.id]
        trained = _trained_behind(flow, [root for backward in passes for root in backward.roots])
        if trained and not _is_in_training(flow, flow.tensors[leaf]):
            return Cut("missing-create-graph", operation, flow, tuple(trained), "warning", term=True)
    return None


def _residuals(flow: StepFlow) -> Iterator[Cut]:
    """Gradients without a graph from which a loss is computed: residuals of equations, penalties.

    Nothing is said of gradients that go on into layers (adversarial inputs), of those with respect to what is trained
    or computed from it (inner loops), and of single numbers that weight other losses.
    """
    for operation in flow.operations:
        if operation.name != "autograd.grad" or any(flow.history[value] for value in operation.outputs):
            continue
        trained = _trained_behind(flow, operation.inputs)
        if trained and not _trained_behind(flow, operation.inputs[1:]) and _is_used(flow, operation, flow.losses):
            yield Cut("missing-create-graph", operation, flow, tuple(trained), "warning", term=True)


def freed_for_a_loss(flow: StepFlow, backward: Backward, roots: Collection[int]) -> Cut | None:
    """The gradient without a graph that freed what its own use in a loss needs again, if this pass computed it."""
    call = next((op for op in flow.operations if op.id > backward.began and _is_of(op, backward)), None)
    if call is None or any(flow.history[value] for value in call.outputs) or not _is_used(flow, call, roots):
        return None
    trained = _trained_behind(flow, call.inputs)
    return Cut("missing-create-graph", call, flow, tuple(trained), "error") if trained else None


def _is_of(operation: Operation, backward: Backward) -> bool:
    return operation.name == "autograd.grad" and not set(backward.roots).isdisjoint(operation.inputs)


def _is_used(flow: StepFlow, gradient: Operation, roots: Collection[int]) -> bool:
    """Whether a root is computed, without any layer, from a gradient.

    It may meet data, sums, coefficients that are trained (single numbers), and the output that it is of, element by
    element. A tensor that is trained marks a layer. What is multiplied by it and then only summed up is a loss with
    weights.
    """
    tensors = {value: flow.tensor(value) for values in flow.values_of.values() for value in values}
    in_training = {value for value, tensor in tensors.items() if tensor is not None and _is_in_training(flow, tensor)}
    weights = {value for value in in_training if not flow.is_scalar(value)}
    output = {
        value
        for value in flow.behind(gradient.inputs)
        if flow.history[value] and (tensor := tensors.get(value)) is not None and not tensor.leaf
    }
    numbers, layered, weighted = set(gradient.outputs), set[int](), set[int]()
    for operation in flow.operations:
        given = set(operation.inputs)
        made = [value for value in operation.outputs if value not in given]
        if given & weights or not given & (numbers | weighted):
            layered.update(value for value in made if given & (weights | layered) and flow.history[value])
            output.update(value for value in made if given & output and flow.history[value])
        elif not operation.grad_enabled or ops.is_a(operation, ops.DETACHES):
            continue
        elif given & weighted:
            linear = ops.is_a(operation, ops.SUMS, ops.SCALES) and given.isdisjoint(numbers)
            (weighted if linear else numbers).update(made)
        elif ops.is_a(operation, ops.SUMS) or given.isdisjoint(layered):
            numbers.update(made)
        elif given & output and not all(map(flow.is_scalar, made)):
            (weighted if ops.is_a(operation, ops.PRODUCTS) else numbers).update(made)
    return not numbers.isdisjoint(roots)
