"""The first pass of the engine in which the loss or a gradient was not finite, and the operation that made it so.

Whether a loss and the gradients are finite is known of every pass already: both are read for the report. Two things are
added, and neither waits for the device while all is well:

1. Where the loss is not finite, the graph behind it is alive and has not been run yet. What its nodes saved tells
   which operation made something infinite of finite inputs.
2. After a pass, what the nodes saved is gone. So where a step has called a function that has a singular derivative
   somewhere (`sqrt`, `log`, division, a custom Function, ...), hooks on the nodes of such functions add up what comes
   in and what goes out; so do they of the factors of a product that follows such a function, and of its result. The
   sums are read only if a gradient turns out not to be finite.

An infinite gradient that does no harm, because a scaler skips the step, is forgotten again.
"""

from __future__ import annotations

import dis
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from gradscope.probes.backward.symptoms import speaks_of_values
from gradscope.probes.forward.saved import MAKERS, Evidence, evidence, factor, gave
from gradscope.probes.tensors.attributes import gradient_of
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.tensors.shards import has_values, is_number, local, values_of

if TYPE_CHECKING:
    from gradscope.probes.forward.callsites import Site
    from gradscope.probes.records import BackwardRecord, OperationRecord, Subject, ValueRecord
    from gradscope.probes.tape import Tape

NODES = 10_000  # touched in one pass: so many fit into any stack (see `gradscope.probes.backward.walker`)

_TENSOR, _F = torch.Tensor, torch.nn.functional
_NAMES = (
    "sqrt", "rsqrt", "pow", "float_power", "log", "log2", "log10", "log1p", "logit", "div", "divide", "true_divide",
    "reciprocal", "norm", "std", "var", "var_mean", "std_mean", "exp", "exp2", "expm1", "sinh", "cosh", "acos", "asin",
    "acosh", "atanh", "arccos", "arcsin", "arctanh", "atan2", "arctan2", "hypot", "tan", "logsumexp", "logcumsumexp",
    "prod", "cumprod", "xlogy", "lgamma", "digamma", "erfinv", "cdist", "dist", "renorm", "inverse", "pinverse", "det",
    "logdet", "slogdet", "svd", "cholesky", "sqrt_", "log_", "div_", "pow_", "exp_", "rsqrt_", "reciprocal_",
    "__truediv__", "__rtruediv__", "__pow__", "__rpow__", "__itruediv__", "__rdiv__", "__div__", "masked_fill",
    "masked_fill_",
)  # fmt: skip
_IN_LAYERS = (
    "normalize", "pairwise_distance", "cosine_similarity", "ctc_loss", "gaussian_nll_loss", "poisson_nll_loss",
    "kl_div", "lp_pool1d", "lp_pool2d", "triplet_margin_loss", "grid_sample",
)  # fmt: skip
# Functions whose derivative is infinite or undefined somewhere.
SINGULAR = frozenset(
    {getattr(owner, name) for owner in (_TENSOR, torch) for name in _NAMES if hasattr(owner, name)}
    | {getattr(_F, name) for name in _IN_LAYERS if hasattr(_F, name)}
    | {value for value in vars(torch.linalg).values() if callable(value)}
    | {value for value in vars(torch.special).values() if callable(value)}
)
_DIVISIONS = frozenset(
    getattr(owner, name)
    for owner in (_TENSOR, torch)
    for name in ("div", "divide", "true_divide", "__truediv__", "__div__")
    if hasattr(owner, name)
)
_POWERS = frozenset({_TENSOR.pow, torch.pow, _TENSOR.__pow__})
_SMALLEST_DIVISOR = 1e-6  # by which a division is no more than a product with a large number
# Nodes that only hand on, add or multiply by what is finite.
_PLAIN = frozenset(
    {
        "Add", "Sub", "Rsub", "Neg", "T", "Transpose", "Permute", "View", "UnsafeView", "Reshape", "Expand", "Squeeze",
        "Unsqueeze", "Slice", "Select", "Index", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Clone", "Alias",
        "ToCopy", "Sum", "Mean", "Relu", "Threshold", "Tanh", "Sigmoid", "Gelu", "Silu", "Addmm", "Mm", "Bmm", "Mv",
        "Dot", "Convolution", "Embedding", "NllLoss", "NativeDropout", "MaskedFill", "Where", "Clamp",
        "AccumulateGrad", "Abs", "MseLoss", "Repeat", "Copy", "MaxPool2DWithIndices", "AvgPool2D", "Gather",
        "UnsafeSplit", "AsStrided", "Detach", "Round", "Sign", "L1Loss", "SmoothL1Loss", "Linear",
    }
)  # fmt: skip
# Of these, what float16 may be too narrow for.
_SUMS = frozenset(
    {
        "Add", "Sub", "Rsub", "Sum", "Mean", "Mul", "Div", "Addmm", "Mm", "Bmm", "Mv", "Dot", "Convolution", "Linear",
        "MseLoss",
    }
)  # fmt: skip
_HANDING_ON = frozenset(
    {
        "T", "Transpose", "Permute", "View", "UnsafeView", "Reshape", "Expand", "Squeeze", "Unsqueeze", "Slice",
        "Select", "Clone", "Alias", "ToCopy", "Repeat", "AsStrided",
    }
)  # fmt: skip


def is_singular(func: Any, args: Sequence[Any]) -> bool:
    """Whether the derivative of a function of `SINGULAR` may be infinite, given its arguments.

    Not so where it divides by a number or raises to a power that is 1 or more, as `x ** 2 / 10`: autograd multiplies
    then. Half precision is narrow enough for that to matter.
    """
    if len(args) != 2 or type(args[1]) not in (int, float) or not isinstance(args[0], torch.Tensor):
        return True
    tame = (func in _POWERS and args[1] >= 1) or (func in _DIVISIONS and abs(args[1]) >= _SMALLEST_DIVISOR)
    return not tame or args[0].dtype not in (torch.float32, torch.float64)


@dataclass(slots=True)
class Event:
    """Something that was not finite.

    `leaves` are those whose gradients are not, `taken` those that the operation took and that were not finite already.
    """

    kind: Literal["forward", "gradient", "step"]
    step: int
    backward: BackwardRecord | None
    operation: OperationRecord | None
    node: str = ""
    evidence: Evidence | None = None
    given: bool = False
    custom: Site | None = None
    leaves: tuple[Subject, ...] = ()
    taken: tuple[Subject, ...] = ()


@dataclass(slots=True)
class Sums:
    """What is added up at one node: the gradients that came in and went out, saved factors, and what it once gave."""

    number: int
    name: str
    custom: Site | None
    came: list[torch.Tensor]
    went: list[torch.Tensor]
    factors: list[torch.Tensor] = field(default_factory=list)
    gave: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class Watch:
    """The hooks of one pass, and what they have added up.

    `waiting` are nodes whose saved tensors are to be read when they run, each with the names of its factors.
    """

    hooks: list[Any] = field(default_factory=list)
    waiting: dict[int, tuple[Any, tuple[str, ...]]] = field(default_factory=dict)
    sums: list[Sums] = field(default_factory=list)

    def remove(self) -> None:
        """Take the hooks out again."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.waiting.clear()


def graph_behind(roots: Iterable[torch.Tensor], limit: int = NODES) -> list[Any]:
    """The nodes behind some roots, in breadth; a graph beyond the limit is not told to its end."""
    return _graph_from([root.grad_fn for root in roots if root.grad_fn is not None], limit)


def _graph_from(starts: Iterable[Any], limit: int) -> list[Any]:
    nodes = list(dict.fromkeys(starts))
    seen = set(nodes)
    for node in nodes:
        for target, _ in node.next_functions:
            if target is not None and target not in seen:
                if len(nodes) >= limit:
                    return nodes
                seen.add(target)
                nodes.append(target)
    return nodes


def plain_name(node: Any) -> str:
    """`Sqrt` for a node of the type SqrtBackward0."""
    return str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")


def maker_of(tape: Tape, node: Any) -> OperationRecord | None:
    """The innermost operation of the running step that made a node."""
    number, thread = node._sequence_nr(), tape.thread()
    found = None
    for operation in tape.written():
        first, last = operation.nodes
        if first <= number < last and operation.thread == thread:
            inner = found is None or last - first <= found.nodes[1] - found.nodes[0]
            found = operation if inner and operation.within is None else found
    return found


# --- before a pass ---------------------------------------------------------------------------------------------------


def watch_pass(tape: Tape, record: BackwardRecord, roots: Sequence[torch.Tensor]) -> Watch | None:
    """Look for the cause where the loss is not finite; else hook the nodes at which a gradient may become so."""
    settle(tape)
    if tape.harmed is not None:
        return None
    if any(is_number(root) and not math.isfinite(float(local(root))) for root in roots):
        if tape.pending is None:
            tape.pending = explain_value(tape, record, roots)
        return None
    if not tape.singular:
        return None
    tape.singular = False
    watch = Watch()
    nodes = graph_behind(roots)
    read = {} if tape.packed else _to_read(nodes)  # code of the program's would unpack what is saved
    for place, node in enumerate(nodes):
        custom = _backward_of(node) if isinstance(node, torch._C._FunctionBase) else None
        if custom is not None or plain_name(node) not in _PLAIN:
            if node in read:
                watch.waiting[place] = node, read[node]
            adder = _adder(watch, place, node._sequence_nr(), plain_name(node), custom)
            watch.hooks.append(node.register_hook(adder))
    return watch


def _to_read(nodes: Iterable[Any]) -> dict[Any, tuple[str, ...]]:
    """Products and quotients of what a singular function has just made, with their factors, and its nodes."""
    found: dict[Any, tuple[str, ...]] = {}
    for node in nodes:
        if plain_name(node) in ("Mul", "Div"):
            makers = [maker for target, _ in node.next_functions for maker in _makers_behind(target)]
            if makers:
                found[node] = ("self", "other")
            for maker in makers:
                found.setdefault(maker, ())
    return found


def _makers_behind(node: Any) -> list[Any]:
    """The nodes of singular functions whose results a node hands on or adds up, if they are near."""
    waiting, makers = [node], []
    for before in waiting:
        name = plain_name(before) if before is not None else ""
        if name in MAKERS:
            makers.append(before)
        elif name in _HANDING_ON or name in ("Add", "Sub", "Rsub", "Neg", "Index", "Where"):
            waiting += [target for target, _ in before.next_functions if len(waiting) < _NEAR]
    return makers


_NEAR = 8


def _backward_of(node: Any) -> Site | None:
    """The place in the backward of a custom Function that can make something infinite: a division, or its end."""
    try:
        code = inspect.unwrap(type(node)._forward_cls.backward).__code__
    except AttributeError:
        return None
    steps = list(dis.get_instructions(code))
    for is_it in (_divides, _is_singular, lambda step: step.opname.startswith("RETURN")):
        found = [step for step in steps if is_it(step)]
        if found:
            return code, found[-1].offset
    return None


def _divides(step: dis.Instruction) -> bool:
    return step.opname == "BINARY_OP" and step.argrepr in ("/", "/=")


def _is_singular(step: dis.Instruction) -> bool:
    return (step.opname == "BINARY_OP" and step.argrepr in ("**", "**=")) or step.argval in _NAMES


def _adder(watch: Watch, place: int, number: int, name: str, custom: Site | None) -> Callable[..., None]:
    def add(sent: Any, arrived: Any) -> None:
        try:
            with unobserved():
                sums = Sums(number, name, custom, _sums(arrived), _sums(sent))
                node, operands = watch.waiting.pop(place, (None, ()))
                if node is not None:
                    sums.factors = _sums([part for operand in operands for part in factor(node, operand)])
                    sums.gave = _sums(gave(node, name)) if name in MAKERS else []
                watch.sums.append(sums)
        except Exception:
            watch.remove()

    return add


def _sums(gradients: Any) -> list[torch.Tensor]:
    """Sums tell whether all is finite. Half precision is added up in float32, lest the sum overflows."""
    parts = [local(gradient) for gradient in gradients if isinstance(gradient, torch.Tensor)]
    parts = list(filter(has_values, parts))
    return [
        part.sum(dtype=torch.float32) if part.dtype in (torch.float16, torch.bfloat16) else part.sum()
        for part in parts
        if part.layout is torch.strided
    ]


def explain_value(tape: Tape, record: BackwardRecord | None, roots: Sequence[torch.Tensor]) -> Event:
    """Find the operation that made these values infinite or NaN, or that met a leaf which was so already."""
    event = _first_spoilt(tape, record, roots)
    if event.operation is not None:
        event.taken = _spoilt_leaves(tape, event)
        event.given = event.given or bool(event.taken)
    return event


def _spoilt_leaves(tape: Tape, event: Event) -> tuple[Subject, ...]:
    """The leaves that an operation took and that were not finite already.

    Unless it is known to have made it of finite numbers, also those from which others (`cat`, `stack`, sums) have
    made what it took.
    """
    assert event.operation is not None
    found = event.evidence
    takers = {event.operation.serial: event.operation}
    if found is None or not (found.whole and found.inputs and found.result is False):
        needed = {value[0] for value in event.operation.inputs}
        for operation in reversed(tape.written()):
            if operation.serial < event.operation.serial and not needed.isdisjoint(v[0] for v in operation.outputs):
                takers[operation.serial] = operation
                needed.update(value[0] for value in operation.inputs)
    leaves = {
        subject.serial: subject
        for operation in takers.values()
        for _, subject, _ in operation.inputs
        if subject.leaf and subject.requires_grad
    }
    return tuple(s for s in leaves.values() if (leaf := s.ref()) is not None and not _is_all_finite(leaf))


def spoilt_by_steps(tape: Tape) -> Event | None:
    """Parameters that steps on finite gradients have left not finite, where no loss has met it: in unused rows."""
    spoilt = tuple(
        subject
        for subject in tape.leaves.values()
        if (course := subject.course) is not None
        and course.optimizer is not None
        and course.start is not None
        and math.isfinite(course.start)
        and not course.nonfinite
        and (leaf := subject.ref()) is not None
        and not _is_all_finite(leaf)
    )
    return Event("step", tape.step.index, None, None, leaves=spoilt) if spoilt else None


def _first_spoilt(tape: Tape, record: BackwardRecord | None, roots: Sequence[torch.Tensor]) -> Event:
    """Find the operation that made these values infinite or NaN.

    The way back from the root goes over nodes whose results may not have been finite; of those that are known to have
    made something infinite, the first one in time is the cause.
    """
    event = Event("forward", tape.step.index, record, None)
    known: dict[Any, Evidence | None] = {}
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(waiting)
    while waiting and len(seen) < NODES:
        node = waiting.pop()
        known[node] = found = None if tape.packed else evidence(node)
        if found is not None and found.result is True:
            continue
        for target, _ in node.next_functions:
            if target is not None and target not in seen:
                seen.add(target)
                waiting.append(target)
    order = sorted((node for node in known if plain_name(node) != "AccumulateGrad"), key=_number)
    for node in order:
        found = known[node]
        if found is None or (found.inputs and found.result is not False):
            continue
        producer = None if found.inputs else _producer(node, found)
        if producer is not None and _may_have_made_it(known.get(producer)):
            node, found = producer, None  # nothing is saved of what it gave, so it shows in what was made of that
        event.operation, event.node, event.evidence = maker_of(tape, node), plain_name(node), found
        if found is not None and not found.inputs:
            event.given = True
            made = _made_without_history(tape, event.operation)
            if made is not None:
                event.operation, event.node, event.evidence, event.given = made, _node_of(made), None, False
        return event
    if order:
        sound = _sound(tape, order, known)
        node = next((node for node in order if node not in sound), order[0])
        event.operation, event.node = maker_of(tape, node), plain_name(node)
        made = _made_without_history(tape, event.operation)
        if made is not None:
            event.operation, event.node = made, _node_of(made)
        elif node not in sound and plain_name(node) in _PLAIN:
            event.given = sound.issuperset(_before(node))  # then it took something that has no history
    return event


def _sound(tape: Tape, order: Sequence[Any], known: Mapping[Any, Evidence | None]) -> set[Any]:
    """Of nodes in time order, those whose results are finite: known to be, or plainly made of what is."""
    sound: set[Any] = {maker for node in order for maker in _makers_of_whole(node, known[node])}
    for node in order:
        found = known[node]
        if found is not None and (found.result is not None or not found.inputs):
            sound.update([node] if found.result else [])
        elif (
            (plain_name(node) in _PLAIN or plain_name(node) in ("Mul", "Div"))
            and not _may_overflow(node)
            and sound.issuperset(_before(node))
        ):
            operation = maker_of(tape, node)
            constants = operation is None or any(not history for _, _, history in operation.inputs)
            if found is not None or not constants:
                sound.add(node)
    return sound


def _may_overflow(node: Any) -> bool:
    """Whether a sum or a product of finite numbers may be infinite: float16 holds none above 65,504."""
    return plain_name(node) in _SUMS and node._input_metadata[0].dtype is torch.float16


def _makers_of_whole(node: Any, found: Evidence | None) -> list[Any]:
    """The nodes that gave what this one saved of its inputs, where that was finite."""
    return [] if found is None else _inputs(node, found.whole)


def _before(node: Any) -> list[Any]:
    """The nodes whose results a node took; leaves are none of them."""
    return [
        target for target, _ in node.next_functions if target is not None and plain_name(target) != "AccumulateGrad"
    ]


def _producer(node: Any, found: Evidence) -> Any:
    """The node of the input that was not finite; None for data and leaves."""
    return next(iter(_inputs(node, found.spoilt)), None)


def _inputs(node: Any, names: Iterable[str]) -> list[Any]:
    """The nodes that gave some of the saved inputs of a node; none for data and leaves."""
    places = [_EDGES.get((plain_name(node), name), _EDGES.get(("", name))) for name in names]
    targets = [
        _behind_views(node.next_functions[place][0])
        for place in places
        if place is not None and place < len(node.next_functions)
    ]
    return [target for target in targets if target is not None and plain_name(target) != "AccumulateGrad"]


def _behind_views(node: Any) -> Any:
    """The node that made the numbers which a node only hands on, in another shape or in a wider dtype."""
    while node is not None and len(node.next_functions) == 1:
        narrows = plain_name(node) == "ToCopy" and node._input_metadata[0].dtype is torch.float16
        before = node.next_functions[0][0]
        if plain_name(node) not in _HANDING_ON or narrows or before is None or plain_name(before) == "AccumulateGrad":
            break
        node = before
    return node


def _may_have_made_it(found: Evidence | None) -> bool:
    """Whether of a node whose result was not finite nothing else is known, or that it took finite numbers."""
    return found is None or (found.inputs and found.result is None)


# Which edge the gradient of a saved input leaves by.
_EDGES = {
    ("", "self"): 0, ("", "input"): 0, ("", "other"): 1, ("", "weight"): 1, ("", "mat2"): 1, ("", "exponent"): 1,
    ("", "mat1"): 1, ("", "target"): 1, ("", "batch1"): 1, ("", "batch2"): 2, ("Addmm", "mat2"): 2, ("", "x1"): 0,
}  # fmt: skip


def _made_without_history(tape: Tape, user: OperationRecord | None) -> OperationRecord | None:
    """The operation that made the NaN which this one took, where autograd kept no history of it."""
    if user is None:
        return None
    needed = {value[0] for value in user.inputs}
    found = None
    for operation in reversed([operation for operation in tape.written() if operation.serial < user.serial]):
        if needed.isdisjoint(value[0] for value in operation.outputs):
            continue
        needed.update(value[0] for value in operation.inputs)
        if found is not None and _is_spread_of_one(operation):
            return operation
        if any(map(_holds_nan, operation.outputs)) and not any(map(_holds_nan, operation.inputs)):
            found = operation
    return found


def _node_of(operation: OperationRecord) -> str:
    """What the node of an operation without history would be called."""
    return str(getattr(operation.function, "__name__", "")).strip("_").capitalize()


def _is_spread_of_one(operation: OperationRecord) -> bool:
    """Whether an operation takes the standard deviation or the variance of one element, which is NaN."""
    name = getattr(operation.function, "__name__", "")
    return name in ("std", "var") and math.prod(operation.inputs[0][1].shape) == 1


def _holds_nan(value: ValueRecord) -> bool:
    tensor = value[1].ref()
    if tensor is None or value[1].value != value[0] or not tensor.is_floating_point():
        return False
    return _has_nan(tensor)


def _has_nan(tensor: torch.Tensor) -> bool:
    values = values_of(tensor)
    return values is not None and bool(torch.isnan(values).any())


def _number(node: Any) -> int:
    return int(node._sequence_nr())


# --- after a pass ----------------------------------------------------------------------------------------------------


def judge_pass(
    tape: Tape, record: BackwardRecord, watch: Watch | None, arrived: Sequence[tuple[Subject, float | None]]
) -> None:
    """The pass is over: if a gradient came out infinite or NaN, find the node that made it of finite ones."""
    if watch is not None:
        watch.remove()
    if tape.harmed is not None:
        return
    spoilt = tuple(subject for subject, norm in arrived if norm is not None and not math.isfinite(norm))
    if tape.pending is not None:
        tape.pending.leaves = tape.pending.leaves or spoilt
    elif spoilt:
        event = Event("gradient", tape.step.index, record, None, leaves=spoilt)
        if watch is not None:
            _blame(tape, event, watch)
        if event.operation is None:
            event.operation = _last_user(tape, spoilt)
        tape.pending = event
    if tape.pending is not None and not tape.optimizers:
        tape.harmed, tape.pending = tape.pending, None


def judge_failed_pass(tape: Tape, record: BackwardRecord, watch: Watch | None, roots: Sequence[torch.Tensor]) -> None:
    """Anomaly mode raises where a gradient comes out as NaN, before any leaf gets it: the hooks have seen the node."""
    if watch is None or tape.harmed is not None or tape.pending is not None or not torch.is_anomaly_enabled():
        return
    for node, _ in watch.waiting.values():  # what has not run still has what it saved
        name = plain_name(node)
        if name in MAKERS:
            watch.sums.append(Sums(node._sequence_nr(), name, None, [], [], gave=_sums(gave(node, name))))
    event = Event("gradient", tape.step.index, record, None)
    sums = _blame(tape, event, watch)
    if sums is None or event.operation is None:
        return
    made = [
        node for node in graph_behind(roots) if node._sequence_nr() == sums.number and plain_name(node) == sums.name
    ]
    found = [node.variable for node in _graph_from(made, NODES) if plain_name(node) == "AccumulateGrad"]
    event.leaves = tuple(tape.owner(leaf) for leaf in found)
    tape.pending = event


def _blame(tape: Tape, event: Event, watch: Watch) -> Sums | None:
    """The node of a pass that made something infinite of finite gradients, noted in the event."""
    for sums in watch.sums:
        if all(map(_is_finite, sums.came)) and not all(map(_is_finite, sums.went)):
            event.operation, event.node, event.custom = _made(tape, sums.number), sums.name, sums.custom
            if not all(map(_is_finite, sums.factors)):
                _blame_forward(tape, event, watch.sums)
            return sums
    return None


def _blame_forward(tape: Tape, event: Event, passed: Sequence[Sums]) -> None:
    """A product met a factor that was not finite, though the loss leaves it out: what made that factor is the cause."""
    needed = {value[0] for value in event.operation.inputs} if event.operation is not None else set()
    behind = set()
    for operation in reversed(tape.written()):
        if operation is event.operation or not needed.isdisjoint(value[0] for value in operation.outputs):
            behind.add(operation.serial)
            needed.update(value[0] for value in operation.inputs)
    for sums in sorted(passed, key=lambda sums: sums.number):
        maker = _made(tape, sums.number)
        if maker is not None and maker.serial in behind and not all(map(_is_finite, sums.gave)):
            event.operation, event.node, event.given = maker, sums.name, True
            return


def _is_finite(total: torch.Tensor) -> bool:
    return bool(torch.isfinite(total))


def _made(tape: Tape, number: int) -> OperationRecord | None:
    thread = tape.thread()
    found = [op for op in tape.written() if op.nodes[0] <= number < op.nodes[1] and op.thread == thread]
    outer = [operation for operation in found if operation.within is None] or found
    return min(outer, key=lambda operation: operation.nodes[1] - operation.nodes[0], default=None)


def _last_user(tape: Tape, leaves: Sequence[Subject]) -> OperationRecord | None:
    """The operation nearest to the loss that uses one of these leaves: the cause lies there or behind it."""
    wanted = {subject.serial for subject in leaves}
    for operation in reversed(tape.written()):
        if any(value[1].serial in wanted for value in operation.inputs) and any(v[2] for v in operation.outputs):
            return operation
    return None


def settle(tape: Tape, stepped: Mapping[int, Subject] | None = None) -> None:
    """Decide whether what was not finite did any harm: a tensor, or the gradient that it was trained on, is not finite.

    `stepped` are the tensors of the optimizer that has just stepped. A loss that is infinite for its scale alone, with
    gradients that are finite, does none; a step on one that is NaN does. So does one that is infinite in every step
    where all gradients are zero for it.
    """
    event = tape.pending
    if event is None:
        if stepped is not None:
            tape.idle = None
        return
    arrivals = event.backward.arrivals if event.backward is not None else ()
    trained = [subject.ref() for subject in arrivals if stepped is not None and subject.serial in stepped]
    if event.kind == "forward" and trained:
        spoilt = any(tensor is not None and not _is_sound(tensor) for tensor in trained)
        tape.harmed, tape.pending = (event if spoilt or _is_nan(tape, event) else None), None
        tape.idle = (tape.idle or event) if all(map(_trains_nothing, trained)) else None
        return
    live = [tensor for subject in event.leaves if (tensor := subject.ref()) is not None]
    if not all(map(_is_all_finite, live)):
        tape.harmed = event
    waiting = event.step == tape.step.index and any(
        (gradient := gradient_of(tensor)) is not None and not _is_all_finite(gradient) for tensor in live
    )
    if not waiting:
        tape.pending = None


def withheld(tape: Tape) -> Event | None:
    """What is not finite now, as a scaler keeps a step back for it: harm is done if no step is ever taken again."""
    return tape.pending if tape.harmed is None else None


def _trains_nothing(tensor: torch.Tensor | None) -> bool:
    """Whether the gradient of a tensor is exactly zero."""
    gradient = gradient_of(tensor) if tensor is not None else None
    values = values_of(gradient) if gradient is not None else None
    return gradient is None or (values is not None and not bool(values.any()))


def _is_nan(tape: Tape, event: Event) -> bool:
    """Whether the loss is NaN: an infinite one may be merely too large."""
    backward = event.backward
    loss = tape.losses.get((backward.kind, backward.site)) if backward is not None else None
    return loss is None or math.isnan(loss[1].last)


def _is_sound(tensor: torch.Tensor) -> bool:
    gradient = gradient_of(tensor)
    return _is_all_finite(tensor) and (gradient is None or _is_all_finite(gradient))


def _is_all_finite(tensor: torch.Tensor) -> bool:
    plain = values_of(tensor)
    return plain is None or bool(torch.isfinite(plain.coalesce().values() if plain.is_sparse else plain).all())


def explain_crash(tape: Tape, message: str) -> None:
    """The program has ended with an exception: a NaN that torch has refused, if its words say so."""
    if tape.harmed is None and tape.pending is not None:
        tape.harmed, tape.pending = tape.pending, None
    if tape.harmed is not None or not speaks_of_values(message):
        return
    for operation in tape.written():
        for _, subject, history in operation.outputs:
            tensor = subject.ref()
            if tensor is not None and tensor.is_floating_point() and _has_nan(tensor):
                event = explain_value(tape, None, [tensor]) if history else None
                if event is None or event.operation is None:
                    event = Event("forward", tape.step.index, None, operation)
                tape.harmed = event
                return
