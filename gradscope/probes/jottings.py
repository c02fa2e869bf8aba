"""Plain operations of later steps: jotted down as they run, and written out only if somebody will read them.

A run keeps its first and its latest steps, so most of what is written is thrown away unread. Once the first steps are
written, an operation that only computes a new tensor is jotted as one plain tuple: its function, its line, weak
references to what it took and gave, and what the result is like, for that may be dead by the time it is written out.

1. A weak reference tells one tensor from another for as long as it is held itself: `weakref.ref(t)` is one object
   while `t` lives. So the jottings of a step name its tensors without asking who they are.
2. Jottings know nothing of changes in place. With the first one all is written out, before the change counts.
3. A step is thrown away unread only if nothing leads out of it: no result of its is alive or used in a later step.
   Otherwise it is written out, since its graph may be growing.
4. A program that keeps asking for what is jotted is better off without: the backlog rests ever longer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from sys import getrefcount
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from gradscope.probes.callsites import Site
from gradscope.probes.records import OperationRecord, StepRecord, Subject

if TYPE_CHECKING:
    from gradscope.probes.tape import Tape

_Ref: TypeAlias = Callable[[], torch.Tensor | None]
# A jotting is so many items of one list, which the garbage collector has no need to look at one by one: its number,
# function, code and offset of the line, grad mode, the numbers of the next node of autograd before and after, the
# module that it runs in with the call of its root, what it took, what it gave, and of that the shape, the dtype and
# `requires_grad`.
_ITEMS = 13
_CALL, _TAKEN, _GIVEN = 7, 8, 9
_LONGEST_REST = 64  # steps

_NAMES = (
    "add", "sub", "mul", "neg", "abs", "square", "rsub", "matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "tanh",
    "relu", "sin", "cos", "sum", "mean", "cumsum", "clone", "t", "transpose", "permute", "view", "reshape", "flatten",
    "squeeze", "unsqueeze", "expand", "repeat", "cat", "stack", "where", "maximum", "minimum", "select", "narrow",
    "index_select", "gather", "flip", "roll", "einsum", "zeros", "ones", "rand", "randn", "arange", "eye",
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__matmul__", "__rmatmul__", "__neg__",
    "__getitem__", "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__",
)  # fmt: skip
PLAIN = frozenset(
    {getattr(owner, name) for owner in (torch.Tensor, torch) for name in _NAMES if hasattr(owner, name)}
    | {torch.nn.functional.linear, torch.nn.functional.conv2d, torch.nn.functional.gelu}
)
"""Functions that compute one new tensor of what they are given, and whose derivative is finite everywhere."""


class Backlog:
    """Steps whose jottings wait to be thrown away or to be written out, the oldest first."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.waiting: list[StepRecord] = []
        self._rest, self._from = 1, 0

    def begin(self, step: StepRecord) -> list[Any] | None:
        """A step begins: the list for its jottings, None where it had better do without."""
        if step.index <= self._from:
            return None
        self.waiting.append(step)
        return step.jottings

    def end(self, step: StepRecord) -> None:
        """A step is over: note which of its results live on, and which steps before it lead into it."""
        before = [earlier for earlier in self.waiting if earlier is not step and earlier.survivors]
        for earlier in before:
            earlier.leads_on = earlier.leads_on or _leads_into(earlier, step)
            _note_survivors(earlier, earlier.survivors)
        _note_survivors(step, step.jottings[_GIVEN::_ITEMS])
        if self.tape.growth.is_due(step.index) and any(earlier.survivors for earlier in before):
            self.catch_up(rest=False)

    def drop(self, step: StepRecord) -> None:
        """A step is kept no longer."""
        if self.waiting and self.waiting[0] is step:
            if step.leads_on or step.survivors:
                self.catch_up()
            else:
                _note_uses(step, [subject for subject in self.tape.kept.values() if not subject.used])
                del self.waiting[0]

    def catch_up(self, rest: bool = True) -> None:
        """Write out what is jotted, and jot no more in this step.

        To jot first and to write then costs more than to write at once. So where the program makes it necessary, the
        tape will `rest` before it jots again, each time twice as long.
        """
        if self.waiting:
            waiting, self.waiting, self.tape.jottings = self.waiting, [], None
            _write_out(self.tape, waiting)
            if rest:
                self._rest = min(2 * self._rest, _LONGEST_REST)
                self._from = self.tape.step.index + self._rest


def _note_survivors(step: StepRecord, results: Sequence[_Ref]) -> None:
    step.survivors = [given for given in results if (tensor := given()) is not None and tensor.requires_grad]
    del results
    step.uses = list(map(getrefcount, step.survivors))


def _leads_into(step: StepRecord, following: StepRecord) -> bool:
    """Whether results of a step are used in the next: by its jottings, which hold the reference then, or at once."""
    return list(map(getrefcount, step.survivors)) != step.uses or any(
        subject.step == step.index and history and not subject.leaf
        for operation in following.operations
        for _, subject, history in operation.inputs
    )


def _note_uses(step: StepRecord, unused: Sequence[Subject]) -> None:
    """A step is thrown away unread: what was used in it only has been used all the same."""
    taken = set(map(id, chain.from_iterable(step.jottings[_TAKEN::_ITEMS]))) if unused else ()
    for subject in unused:
        if id(subject.ref) in taken:
            subject.used = True


def _write_out(tape: Tape, steps: Sequence[StepRecord]) -> None:
    """Make operations of what these steps, the oldest first, have jotted."""
    subjects = {id(subject.ref): subject for subject in tape.known.values()}
    subjects.update((id(subject.ref), subject) for step in steps for subject in step.met)
    jottings = [step.jottings for step in steps]  # held to the end: the references in them tell tensors apart
    for place, step in enumerate(steps):
        step.jottings = []
        values: dict[int, int] = {}
        for later in reversed(steps[place:]):
            values.update(later.renewed)
        written = [
            operation
            for jotting in zip(*[iter(jottings[place])] * _ITEMS, strict=True)
            if (operation := _written(tape, step, jotting, subjects, values)) is not None
        ]
        # Those that were written at once did not wait, but the links of their values had to.
        step.operations = list(heapq.merge(step.operations, written, key=attrgetter("serial")))
        numbers = zip(jottings[place][::_ITEMS], jottings[place][_CALL::_ITEMS], strict=True)
        calls = {number: call[1] for number, call in numbers if call is not None} | step.callers
        for operation in step.operations:
            tape.link(operation, step.index, calls.get(operation.serial))
        tape.growth.differentiated(root[1] for backward in step.backwards for root in backward.roots)


def _written(
    tape: Tape, step: StepRecord, jotting: tuple[Any, ...], subjects: dict[int, Subject], values: dict[int, int]
) -> OperationRecord | None:
    serial, function, code, lasti, enabled, before, after, call, taken, given, shape, dtype, history = jotting
    site, thread = (code, lasti), tape.thread()
    inputs = []
    for reference in taken:
        subject = subjects.get(id(reference)) or _met(tape, reference, site)
        if subject is not None:  # else it was made where nobody saw it, and is gone
            subjects[id(reference)] = subject
            inputs.append((values.get(subject.serial, subject.value), subject, subject.requires_grad))
    if any(reference is given for reference in taken):
        return None  # handed back what it was given, as `x.expand(x.shape)` may
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
    output = made.value, made, history
    module = call[0] if call is not None else None
    return OperationRecord(serial, function, site, tuple(inputs), (output,), enabled, (before, after), module, thread)


def _met(tape: Tape, reference: _Ref, site: Site) -> Subject | None:
    tensor = reference()
    if tensor is None:
        return None
    return tape.seen(tensor) or tape.meet(tensor, site)
