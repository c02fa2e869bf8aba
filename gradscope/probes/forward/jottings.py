"""Plain operations of later steps: jotted down as they run, and written out only if somebody will read them.

A run keeps its first and its latest steps, so most of what is written is thrown away unread. Once the first steps are
written, or one of them has grown long, an operation that only computes a new tensor is jotted, and so is what takes a
constant out of torch: its function, its line, weak references to what it took and gave, and what the result is like,
for that may be dead by the time it is written out.

1. A weak reference tells one tensor from another for as long as it is held itself: `weakref.ref(t)` is one object
   while `t` lives. So the jottings of a step name its tensors without asking who they are.
2. Changes in place are written at once, with what the tensor held before and from which operation on it holds
   something else. From the first one on, whatever an operation takes is looked at before it is jotted: another view of
   the same memory may have changed. What was jotted only, and is met then, has been made before.
3. A step is thrown away unread only if nothing leads out of it: no result of its is alive or used in a later step, and
   nothing that it changed in place. Otherwise it is written out, since its graph may be growing.
4. A program that keeps asking for what is jotted is better off without: the backlog rests ever longer.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from sys import getrefcount
from typing import TYPE_CHECKING, Any

import torch

from gradscope.probes.forward.callsites import Site
from gradscope.probes.records import Jottings, OperationRecord, Reference, StepRecord, Subject, ValueRecord, nobody

if TYPE_CHECKING:
    from gradscope.probes.tape import Tape

# What is jotted of an operation: its number, function, code and offset of the line, grad mode, the numbers of the next
# node of autograd before and after, the module that it runs in with the call of its root, how many tensors it took, the
# one that it gave (`nobody` where that was no tensor), and of that the shape, the dtype and `requires_grad`, and the
# last plain float that it took, or the one that it gave. These are items of one long list, for tuples and lists of
# their own would set off full collections of garbage.
ITEMS = 14
_COUNT, _GIVEN = 8, 9
_LONGEST_REST = 64  # steps

_NAMES = (
    "add", "sub", "mul", "neg", "abs", "square", "rsub", "matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "tanh",
    "relu", "sin", "cos", "sum", "mean", "cumsum", "clone", "t", "transpose", "permute", "view", "reshape", "flatten",
    "squeeze", "unsqueeze", "expand", "repeat", "cat", "stack", "where", "maximum", "minimum", "argmax", "argmin",
    "clamp", "select", "narrow", "index_select", "gather", "flip", "roll", "einsum", "zeros", "ones", "rand", "randn",
    "arange", "eye", "ones_like", "zeros_like", "rand_like", "randn_like", "randint", "multinomial", "bernoulli",
    "max", "min", "amax", "amin", "all", "any", "_is_all_true", "eq", "ne", "lt", "le", "gt", "ge", "remainder", "fmod",
    "floor", "ceil", "round", "sign", "long", "int", "bool", "float", "double", "contiguous", "softplus", "outer",
    "diag", "trace", "sqrt", "rsqrt", "pow", "log", "log1p", "exp", "expm1", "div", "divide", "true_divide",
    "reciprocal", "logsumexp", "norm", "std", "var", "prod", "masked_fill",
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__matmul__", "__rmatmul__", "__neg__",
    "__getitem__", "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__and__", "__or__", "__xor__",
    "__invert__", "__truediv__", "__rtruediv__", "__rdiv__", "__pow__", "__rpow__", "__abs__",
)  # fmt: skip
_IN_LAYERS = (
    "relu", "linear", "conv1d", "conv2d", "gelu", "silu", "elu", "leaky_relu", "softplus", "mse_loss", "l1_loss",
    "smooth_l1_loss", "embedding", "layer_norm", "group_norm", "avg_pool2d",
)  # fmt: skip


def _is_function(owner: object, name: str) -> bool:
    return callable(getattr(owner, name, None))  # `torch.float` is a type


PLAIN = frozenset(
    {getattr(owner, name) for owner in (torch.Tensor, torch) for name in _NAMES if _is_function(owner, name)}
    | {getattr(torch.nn.functional, name) for name in _IN_LAYERS}
    | {getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH")}
)
"""Functions that compute one new tensor of what they are given, and change nothing."""

EXITS = frozenset(getattr(torch.Tensor, name) for name in ("item", "__float__", "__int__", "__bool__", "__index__"))
"""What takes a number out of torch."""

# Arguments given by name with which these still compute what they do without, on the same device.
_SETTINGS = frozenset({"dim", "keepdim", "inplace", "dtype", "min", "max", "alpha", "approximate", "_stacklevel"})


def are_settings(kwargs: Mapping[str, Any]) -> bool:
    """Whether arguments given by name hold no tensor and no more than how to compute."""
    return kwargs.keys() <= _SETTINGS and not any(isinstance(value, torch.Tensor) for value in kwargs.values())


class Backlog:
    """Steps whose jottings wait to be thrown away or to be written out, the oldest first."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.waiting: list[tuple[StepRecord, Jottings]] = []
        self._rest, self._from = 1, 0

    def begin(self, step: StepRecord) -> Jottings | None:
        """A step begins; None where it had better do without jottings."""
        if step.index <= self._from:
            return None
        step.jottings = Jottings(begun=self.tape.next_operation())
        self.waiting.append((step, step.jottings))
        return step.jottings

    def end(self, step: StepRecord) -> None:
        """A step is over: note which of its results live on, and which steps before it lead into it."""
        growing = False
        for earlier, jottings in self.waiting:
            if earlier is step:
                # In no variable, which would count as a use.
                _note_survivors(jottings, jottings.items[_GIVEN::ITEMS] + _written_results(step))
            elif jottings.survivors:
                jottings.leads_on = jottings.leads_on or _leads_into(earlier, jottings, step)
                _note_survivors(jottings, jottings.survivors)
                growing = growing or bool(jottings.survivors)
        if growing and self.tape.growth.is_due(step.index):
            self.catch_up(rest=False)

    def drop(self, step: StepRecord) -> None:
        """A step is kept no longer."""
        if step.jottings is None:
            return
        if step.jottings.leads_on or step.jottings.survivors:
            self.catch_up()
        else:
            _note_uses(step.jottings.taken, [subject for subject in self.tape.kept.values() if not subject.used])
            self.waiting = [waiting for waiting in self.waiting if waiting[0] is not step]

    def spoken_of(self) -> set[int]:
        """References by which jottings that wait tell tensors, by their ids."""
        return {id(reference) for _, jottings in self.waiting for reference in jottings.taken}.union(
            id(given) for _, jottings in self.waiting for given in jottings.items[_GIVEN::ITEMS]
        )

    def thin(self, most: int) -> None:
        """Throw away what the running step has jotted that leads nowhere; write the rest out where that is much."""
        step = self.tape.step
        if step.jottings is not None:
            drop_idle(self.tape, step)
        if step.jottings is None or len(step.jottings.items) > most // 2 * ITEMS:
            self.catch_up(rest=False)

    def write_next(self) -> None:
        """Write out what is jotted, and jot neither in this step nor in the next."""
        self.catch_up(rest=False)
        self._from = max(self._from, self.tape.step.index + 1)

    def catch_up(self, rest: bool = True) -> None:
        """Write out what is jotted, and jot no more in this step.

        To jot first and to write then costs more than to write at once. So where the program makes it necessary, the
        tape will `rest` before it jots again, each time twice as long.
        """
        if self.waiting:
            waiting, self.waiting, self.tape.jotting = self.waiting, [], None
            _write_out(self.tape, waiting)
            if rest:
                self._rest = min(2 * self._rest, _LONGEST_REST)
                self._from = self.tape.step.index + self._rest


def _written_results(step: StepRecord) -> list[Reference]:
    return [
        subject.ref
        for operation in step.operations
        for _, subject, history in operation.outputs
        if history and not subject.leaf
    ]


def _note_survivors(jottings: Jottings, results: list[Reference]) -> None:
    jottings.survivors = [given for given in results if (tensor := given()) is not None and tensor.requires_grad]
    del results
    jottings.uses = list(map(getrefcount, jottings.survivors))


def _leads_into(step: StepRecord, jottings: Jottings, following: StepRecord) -> bool:
    """Whether results of a step are used in the next, by its jottings, which hold references, or by what is written.

    Where there is no optimizer, the pass that a call of `grad` runs closes the step before the call itself is written.
    """
    return list(map(getrefcount, jottings.survivors)) != jottings.uses or any(
        (subject.step == step.index or subject.serial in jottings.changed) and history and not subject.leaf
        for operation in following.operations
        if operation.function is not torch.autograd.grad
        for _, subject, history in operation.inputs
    )


def _note_uses(references: Sequence[Reference], unused: Sequence[Subject]) -> None:
    """Jottings are thrown away unread: what was used in them only has been used all the same."""
    taken = set(map(id, references)) if unused else ()
    for subject in unused:
        if id(subject.ref) in taken:
            subject.used = True


def drop_idle(tape: Tape, step: StepRecord) -> None:
    """Drop operations of the running step, written or jotted, that lead to nothing alive and to no root of a backward.

    What gives nothing is kept where it tells of gradients: switches of grad mode, exits of values with history.
    """
    roots = [root for backward in step.backwards for root in backward.roots]
    values = {subject.value for subject in list(tape.known.values()) if subject.ref() is not None}
    values.update(root[0] for root in roots)
    needed = {id(root[1].ref) for root in roots}
    written, waiting = [], step.operations

    def keep_after(serial: int) -> None:
        while waiting and waiting[-1].serial > serial:
            operation = waiting.pop()
            if operation.tells_of_gradients or any(
                value in values or id(subject.ref) in needed for value, subject, _ in operation.outputs
            ):
                written.append(operation)
                values.update(value for value, _, _ in operation.inputs)
                needed.update(id(subject.ref) for _, subject, _ in operation.inputs)

    if step.jottings is not None:
        jottings, dropped = step.jottings, list[Reference]()
        kept: list[tuple[list[Any], list[Reference]]] = []
        items, taken = jottings.items, jottings.taken
        end = len(taken)
        for place in range(len(items) - ITEMS, -1, -ITEMS):
            keep_after(items[place])
            given, begin = items[place + _GIVEN], end - items[place + _COUNT]
            if given() is not None or id(given) in needed:
                kept.append((items[place : place + ITEMS], taken[begin:end]))
                needed.update(map(id, taken[begin:end]))
            else:
                dropped += taken[begin:end]
            end = begin
        _note_uses(dropped, [subject for subject in tape.kept.values() if not subject.used])
        items[:] = [item for jotting, _ in reversed(kept) for item in jotting]
        taken[:] = [reference for _, references in reversed(kept) for reference in references]
        jottings.met = [subject for subject in jottings.met if subject.ref() is not None or id(subject.ref) in needed]
    keep_after(-1)
    step.operations = written[::-1]
    serials = {operation.serial for operation in written}
    step.writes = [write for write in step.writes if write[0] in serials]


def _write_out(tape: Tape, waiting: Sequence[tuple[StepRecord, Jottings]]) -> None:
    """Make operations of what these steps, the oldest first, have jotted."""
    subjects = {id(subject.ref): subject for subject in tape.known.values()}
    subjects.update((id(subject.ref), subject) for _, jottings in waiting for subject in jottings.met)
    renewed: dict[int, list[tuple[int, int, bool]]] = {}
    for _, jottings in waiting:
        for serial, renewals in jottings.renewed.items():
            renewed.setdefault(serial, []).extend(renewals)
    unseen: list[tuple[Subject, int]] = []
    for step, jottings in waiting:
        begun = jottings.begun
        calls, written, taken = jottings.callers, [], iter(jottings.taken)
        for jotting in zip(*[iter(jottings.items)] * ITEMS, strict=True):
            operation, call = _written(tape, step, jotting, taken, subjects, renewed)
            if tape.changed_since and operation is not None and operation.outputs:
                unseen.append((operation.outputs[0][1], operation.serial))
            if operation is not None:
                written.append(operation)
                if call is not None:
                    calls[operation.serial] = call
        # Those that were written at once did not wait, but the links of their values had to.
        step.operations = list(heapq.merge(step.operations, written, key=attrgetter("serial")))
        step.jottings = None
        for operation in step.operations[bisect_right(step.operations, begun, key=attrgetter("serial")) :]:
            tape.link(operation, step.index, calls.get(operation.serial))
        # How far the graph behind a root leads back is known only now.
        tape.growth.differentiated(root[1] for backward in step.backwards for root in backward.roots)
    for subject, serial in unseen:
        tape.changed_unseen(subject, serial)


def _written(
    tape: Tape,
    step: StepRecord,
    jotting: tuple[Any, ...],
    taken: Iterator[Reference],
    subjects: dict[int, Subject],
    renewed: dict[int, list[tuple[int, int, bool]]],
) -> tuple[OperationRecord | None, Site | None]:
    """The operation of a jotting, None where it gave back what it was given; and the call of a root that it ran in."""
    serial, function, code, offset, enabled, before, after, running, count, given, shape, dtype, history, number = (
        jotting
    )
    site, thread = (code, offset), tape.thread()
    module, call = running if running is not None else (None, None)
    inputs: list[ValueRecord] = []
    handed_back = False
    for reference in islice(taken, count):
        handed_back = handed_back or reference is given
        subject = subjects.get(id(reference)) or _met(tape, reference, site)
        if subject is not None:  # else it was made where nobody saw it, and is gone
            subjects[id(reference)] = subject
            inputs.append(_held(subject, serial, renewed))
    if handed_back:
        return None, None  # as `x.expand(x.shape)` may
    if given is nobody:
        return OperationRecord(
            serial, function, site, tuple(inputs), (), enabled, (before, after), module, thread, number=number
        ), call
    made = subjects.get(id(given))
    if made is None:
        device = next((subject.device for _, subject, _ in inputs if subject.shape), torch.device("cpu"))
        made = subjects[id(given)] = tape.meet_late(given, site, shape, dtype, device, history)
    made.site, made.step, made.order = site, step.index, serial
    if history:
        tape.differentiating.add(thread)
    for _, subject, _ in inputs:
        subject.used = True
        subject.thread = thread
        subject.consumed = subject.consumed or history
    outputs = ((_held(made, serial, renewed)[0], made, history),)
    return OperationRecord(
        serial, function, site, tuple(inputs), outputs, enabled, (before, after), module, thread, number=number
    ), call


def _held(subject: Subject, serial: int, renewed: dict[int, list[tuple[int, int, bool]]]) -> ValueRecord:
    """What a tensor held when the operation of this number ran."""
    renewals = renewed.get(subject.serial)
    if renewals is not None:
        place = bisect_right(renewals, serial, key=itemgetter(0))
        if place < len(renewals):
            _, value, history = renewals[place]
            return value, subject, history
    return subject.held()


def _met(tape: Tape, reference: Reference, site: Site) -> Subject | None:
    tensor = reference()
    return None if tensor is None else tape.seen(tensor) or tape.meet(tensor, site)
