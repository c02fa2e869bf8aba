"""The data flow: every torch operation that the program calls, written down from a torch function mode."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.compiler import is_compiling

from gradscope.probes import FOLDER
from gradscope.probes.backward import failing, gradients
from gradscope.probes.backward.nonfinite import SINGULAR, is_singular
from gradscope.probes.forward.callsites import PASSING, USER
from gradscope.probes.forward.inspections import LOOKS, SQUASHING, Call, has_been_squashed
from gradscope.probes.forward.jottings import EXITS, ITEMS, PLAIN, are_settings
from gradscope.probes.forward.originals import OF_C, own
from gradscope.probes.program import stacks
from gradscope.probes.program.recursion import LEVELS, set_limit
from gradscope.probes.program.signals import pass_on
from gradscope.probes.program.stacks import HiddenMode
from gradscope.probes.program.tracebacks import hide
from gradscope.probes.records import ModuleMark, OperationRecord, Reference, ValueRecord, nobody
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.quiet import unasked

# Looked up once: these are asked for at every operation.
sequence_number: Callable[[], int] = vars(torch.autograd)["_get_sequence_nr"]
is_grad_enabled = torch.is_grad_enabled
_set_grad_enabled = torch._C._set_grad_enabled

# Attributes that give a tensor which depends on this one; all others only describe it.
_TENSOR_ATTRIBUTES = frozenset({"data", "grad", "T", "mT", "H", "mH", "real", "imag"})
_DESCRIPTIONS = (
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "element_size",
    "get_device", "is_floating_point", "is_complex", "is_signed", "is_inference", "is_conj", "is_neg", "data_ptr",
    "untyped_storage", "storage", "storage_type", "dense_dim", "sparse_dim", "dim_order", "is_same_size",
    "is_shared", "is_set_to", "is_pinned", "has_names", "retain_grad", "register_hook", "_is_view",
    "register_post_accumulate_grad_hook", "__len__", "__hash__", "__repr__", "__format__", "__dir__",
)  # fmt: skip
# The value leaves torch: what is made of it later is a constant.
_EXITS = ("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__", "__index__", "__complex__")
_DIFFERENTIATIONS = frozenset({torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad})


def _descriptors() -> Iterator[tuple[str, Any]]:
    for name in dir(torch.Tensor):
        member = getattr(torch.Tensor, name)
        if hasattr(member, "__set__") and hasattr(member, "__get__"):
            yield name, member


def _getter(name: str) -> Any:
    """What the mode is told when an attribute is read."""
    return getattr(torch.Tensor, name).__get__


def _setter(name: str) -> Any:
    """What the mode is told when an attribute is set."""
    return getattr(torch.Tensor, name).__set__


_QUIET = frozenset(
    {member.__get__ for name, member in _descriptors() if name not in _TENSOR_ATTRIBUTES}
    | {getattr(torch.Tensor, name) for name in _DESCRIPTIONS if hasattr(torch.Tensor, name)}
    | {torch.is_floating_point, torch.is_complex, torch.is_tensor, torch.numel, torch.is_same_size}
    # Autograd sets it while it holds the lock of a view: whoever looks at the view in there waits for ever.
    | {_setter("_backward_hooks")}
)
# Results that are no tensors are worth a record for these.
_SPEAKING = frozenset(
    {getattr(torch.Tensor, name) for name in _EXITS if hasattr(torch.Tensor, name)}
    | {member.__set__ for name, member in _descriptors()}
    | {_getter("grad"), torch.Tensor.__setitem__, _set_grad_enabled}
)
_data_of = _getter("data")
_DETACHED = frozenset({_data_of, torch.Tensor.detach, torch.detach})
# These look at a tensor or change what it is; nothing is computed with it.
_LOOKS = _SPEAKING | {_data_of, torch.Tensor.requires_grad_, torch.Tensor.register_hook}
# Their arguments are looked at before the call.
_AS_SUBCLASS = torch.Tensor.as_subclass
_PARTICULAR = SINGULAR | LOOKS.keys() | {gradients.SET, _set_grad_enabled, _AS_SUBCLASS}
_LOOK, _MOST = 100, 20_000  # how often jottings are looked at, and how many may pile up before they are thinned out
_TENSORS = (Tensor,)  # the classes that functions written in Python tell of: plain tensors have no say
# How an operation may be jotted: as it is, with a note that its derivative may be infinite, once the values that its
# line squashes have been looked at, or where it takes a number out of a constant.
_AS_IT_IS, _SINGULAR, _SQUASHING, _EXIT = range(4)
_JOTTED = {
    **dict.fromkeys(PLAIN, _AS_IT_IS),
    **dict.fromkeys(PLAIN & SINGULAR, _SINGULAR),
    **dict.fromkeys(SQUASHING, _SQUASHING),
    **dict.fromkeys(EXITS, _EXIT),
}
_THROUGH_US = 2  # levels: our handler, and the call of a function by its tuple of arguments
_PASSED = (os.path.dirname(torch.__file__), FOLDER)
_Accessor = type(_data_of)
_Call = tuple[Any, ...]
# Inside a transform of torch.func tensors are wrappers whose values cannot be read.
_transforming: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
_modes_on = stacks.size


class Recorder(HiddenMode):
    """Writes operations to a tape. Modes count for one thread, so each thread enters one of its own.

    Rule 1: under compilation the handler is traced itself; it must step aside first, or `fullgraph` breaks.
    Rule 2: inside the handler no mode is on, so a composite function is one operation.
    Rule 3: a tensor's `grad_fn` is never touched: torch deletes graphs whose nodes Python has seen by recursion,
            which overflows the C stack from 30,000 nodes on. Sequence numbers tell the nodes apart as well.
    Rule 4: what we read of a tensor would be asked of other modes, and of its class: then not without `unasked`.
    Rule 5: what fails in here is one line in the report and never the user's.
    Rule 6: where the program's recursion has used up the stack, what it calls fails as it would without us, or not.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.paused = False  # while torch's optimizers step: what they do inside is no line of the user's
        self.out = False  # of the stack of modes, for as long as it is paused
        self.lowest = True  # no other mode lies below this one
        self.alone = True  # the same, and the stack is not used up
        self.at_edge = False  # the program's recursion came so deep that no level was left for us
        self.here: dict[str, Any] = {}  # what the tape holds of this thread
        self.modules: list[ModuleMark] = []  # that are running in it, the innermost last
        self.shapes: dict[torch.Size, torch.Size] = {}  # one of each, for jottings to share
        self.code: CodeType | None = None  # the program's own, which jotted last

    def __enter__(self) -> Recorder:
        self.tape.enter_thread()
        self.here = self.tape.local.__dict__
        self.here["recorder"] = self
        self.modules = self.here.setdefault("modules", [])
        self.alone = self.lowest = not _modes_on()
        stacks.push(self)
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.out:
            self.out = False
        else:
            stacks.pop()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        aside: bool | None
        try:
            aside = is_compiling()
            if type(func) not in OF_C and not aside:
                func = own(func, sys._getframe(1))
        except RecursionError:  # the program has used up the stack: what it calls is called as if nothing were
            aside = None
            if type(func) is not _Accessor:  # an attribute needs no level that we could give back
                self.at_edge, self.alone = True, False
                try:  # noqa: SIM105 - no level is left for more; through us a call needs more of them
                    set_limit(LEVELS.known + LEVELS.foot + len(LEVELS.spent) + _THROUGH_US)
                except RecursionError:
                    pass
        if aside:
            return func(*args, **(kwargs or {}))
        if aside is None:
            try:
                return func(*args, **(kwargs or {}))
            except BaseException as error:
                error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
                raise
        if types and types == _TENSORS:
            types = ()
        tape = self.tape
        jottings = tape.jotting
        if (
            jottings is not None
            and (kind := _JOTTED.get(func)) is not None
            and (not kwargs or are_settings(kwargs))
            and not types
            and self.alone
            and not self.paused
            and (kind <= _SINGULAR or self._may_jot(kind, func, args, sys._getframe(1)))
        ):
            # All in one piece: most operations of a long run come by here.
            frame = sys._getframe(1)
            code, offset = frame.f_code, frame.f_lasti
            if code is not self.code:
                try:
                    site = tape.sites.find(frame)
                except RecursionError:
                    site = None
                if site is None:
                    return func(*args, **kwargs) if kwargs else func(*args)
                if site[0] is code:
                    self.code = code
                else:
                    code, offset = site
            if kind == _SINGULAR and not tape.singular:
                tape.singular = is_singular(func, args)
            if tape.changed_since:
                try:
                    tape.look_again(args, (code, offset))
                except Exception as error:
                    tape.fail("recorder", error)
            number, before = tape.next_operation(), sequence_number()
            try:
                result = func(*args, **kwargs) if kwargs else func(*args)
            except BaseException as error:
                try:
                    call = self._before(func, frame, args, kwargs)
                    if call is not None:
                        self._failed(call, error, args)
                    hide(error)
                except RecursionError:
                    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
                raise
            try:
                after = sequence_number()
                shape: Any
                dtype: Any
                made: Reference
                if isinstance(result, Tensor):
                    history, shape, dtype = result.requires_grad, result.shape, result.dtype
                    shape = self.shapes.setdefault(shape, shape)
                    made = ref(result)
                    if tape.changed_since and result._version and tape.seen(result) is None:
                        tape.meet(result, (code, offset))
                elif kind == _EXIT:
                    made, shape, dtype, history = nobody, None, None, False
                else:  # there are several
                    call = self._before(func, frame, args, kwargs)
                    if call is not None:
                        self._after((*call[:5], before, *call[6:]), result)
                    return result
                taken, count, given = jottings.taken, 0, None
                for value in args:
                    if isinstance(value, Tensor):
                        taken.append(ref(value))
                        count += 1
                    elif isinstance(value, (tuple, list)):
                        inner = list(map(ref, tensors(value)))
                        taken += inner
                        count += len(inner)
                    elif isinstance(value, float):
                        given = value
                if kwargs:
                    for value in kwargs.values():
                        if isinstance(value, float):
                            given = value
                if kind == _EXIT and isinstance(result, float):
                    given = result
                modules, items = self.modules, jottings.items
                items += (
                    number,
                    func,
                    code,
                    offset,
                    history or is_grad_enabled(),
                    before,
                    after,
                    (modules[-1], self.here.get("root")) if modules else None,
                    count,
                    made,
                    shape,
                    dtype,
                    history,
                    given,
                )
                if not number % _LOOK and len(items) > _MOST * ITEMS:
                    tape.backlog.thin(_MOST)
            except RecursionError:
                pass
            except Exception as error:  # there are tensors without a shape
                pass_on(error)
                call = self._before(func, frame, args, kwargs)
                if call is not None:
                    self._after(call, result)
            return result
        if self.at_edge:
            self._leave_edge()
        if func in _QUIET or not tape.active:
            return func(*args, **(kwargs or {}))
        if self.paused:
            if self.tape.sites.kinds.get(sys._getframe(1).f_code.co_filename) != USER:
                return func(*args, **(kwargs or {}))
            self.paused = False  # the step did not come to its end
        others = bool(types) or _modes_on() > 0
        if others or func in _PARTICULAR:
            try:
                return self._carefully(func, args, kwargs or {}, others or func is _AS_SUBCLASS)
            except BaseException as error:
                hide(error)
                raise
        try:
            call = self._before(func, sys._getframe(1), args, kwargs)
        except RecursionError:
            call = None
        try:
            result = func(*args, **kwargs) if kwargs else func(*args)
        except BaseException as error:
            try:
                if call is not None:
                    self._failed(call, error, (*args, *(kwargs or {}).values()))
                hide(error)
            except RecursionError:
                error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            raise
        if call is not None:
            try:  # noqa: SIM105 - costs nothing
                self._after(call, result)
            except RecursionError:
                pass
        return result

    def _may_jot(self, kind: int, func: Any, args: tuple[Any, ...], frame: FrameType) -> bool:
        """Whether there is nothing to be looked at before this call."""
        if kind == _EXIT:
            return isinstance(args[0], Tensor) and not args[0].requires_grad
        site = self.tape.sites.find(frame)
        return site is None or has_been_squashed(self.tape, func, site)

    def _leave_edge(self) -> None:
        """Where there are levels again, the limit is what it was."""
        try:
            set_limit(LEVELS.limit())
        except RecursionError:
            return
        self.at_edge, self.alone = False, self.lowest

    def _carefully(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], others: bool) -> Any:
        """Run a call that is more than an operation, or that `others` have a say in: modes, or classes of tensors."""
        frame = sys._getframe(2)
        if others:
            with unasked():
                call = self._before_particular(func, frame, args, kwargs)
        else:
            call = self._before_particular(func, frame, args, kwargs)
        del frame
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            if call is not None:
                self._failed(call, error, (*args, *kwargs.values()))
            raise
        if call is not None:
            if others:
                with unasked():
                    self._after(call, result)
            else:
                self._after(call, result)
        return result

    def _before_particular(
        self, func: Any, frame: FrameType, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Call | None:
        tape = self.tape
        call = self._before(func, frame, args, kwargs)
        if call is None:
            return None
        try:
            site, inputs = call[1], call[3]
            if type(func) is _Accessor and func == gradients.SET:
                gradients.cleared(tape, args[0], args[1], site)
            if func in SINGULAR and not tape.singular:
                tape.singular = is_singular(func, args)
            look = LOOKS.get(func)
            if look is not None and _transforming() is None:
                look(tape, Call(func, site, args, kwargs, inputs))
            if func is _set_grad_enabled:
                return (switch_name("set_grad_enabled", bool(args[0])), *call[1:])
        except Exception as error:
            tape.fail("recorder", error)
            return None
        return call

    def _before(
        self, func: Any, frame: FrameType, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
    ) -> _Call | None:
        tape = self.tape
        try:
            code = frame.f_code
            if tape.sites.kinds.get(code.co_filename) == USER and code.co_name not in PASSING:
                site = code, frame.f_lasti
            else:
                found = tape.sites.find(frame)
                if found is None:
                    return None
                site = found
            known = tape.known
            of_gradient = False
            nonzero: int | None = None
            number: float | None = None
            taken: list[Tensor] = []
            inputs: list[ValueRecord] = []
            for value in args if not kwargs else (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    # No call is made for a tensor that is as it was last seen.
                    subject = known.get(id(value))
                    if (
                        subject is None
                        or subject.ref() is not value
                        or subject.version < 0
                        or subject.version != value._version
                    ):
                        subject = tape.subject(value, site)
                    taken.append(value)
                    inputs.append((subject.value, subject, subject.requires_grad))
                    if subject.gradient_of:
                        of_gradient = True
                elif isinstance(value, (tuple, list, dict)):
                    for tensor in tensors(value):
                        taken.append(tensor)
                        subject = tape.subject(tensor, site)
                        inputs.append(subject.held())
                        if subject.gradient_of:
                            of_gradient = True
                elif isinstance(value, float):
                    number = value
            if of_gradient and inputs[0][1].gradient_of and code is site[0] and _transforming() is None:
                nonzero = gradients.nonzero_before(tape, taken, inputs)
            return func, site, taken, tuple(inputs), is_grad_enabled(), sequence_number(), of_gradient, nonzero, number
        except Exception as error:
            tape.fail("recorder", error)
            return None

    def _after(self, call: _Call, result: Any) -> None:
        tape = self.tape
        try:
            func, site, taken, inputs, _, _, of_gradient, nonzero, number = call
            made = (result,) if isinstance(result, Tensor) else tuple(tensors(result))
            outputs: list[ValueRecord] = []
            changed: list[Tensor] = []
            written: list[Tensor] = []  # of these: some only require gradients now, or do no longer
            for tensor, (_, subject, history) in zip(taken, inputs):  # noqa: B905 - of one length; checking costs time
                version = subject.version
                other = version >= 0 and version != tensor._version
                if other or tensor.requires_grad != history:
                    tape.changed(tensor, subject)
                    if other:
                        written.append(tensor)
                    if history and not subject.requires_grad and subject.course is not None:
                        subject.course.frozen_at = site
                    changed.append(tensor)
                    outputs.append(subject.held())
            if not made and not changed:
                gradients.uncounted(tape, func, taken, inputs)
                if func not in _SPEAKING and not isinstance(func, str):
                    return
            if func in _DIFFERENTIATIONS and not made:
                return  # `.grad` was filled: the engine's probe writes that
            known = tape.known
            for tensor in made:
                seen = known.get(id(tensor))
                if seen is None or seen.ref() is not tensor:
                    seen = tape.meet(tensor, site)
                    outputs.append((seen.value, seen, seen.requires_grad))
            if not outputs and made and func not in _SPEAKING:
                return  # handed back what it was given, as `x.to(x.device)` does
            operation = self._write(call, tuple(outputs), result if isinstance(result, float) else number)
            if type(func) is _Accessor and func == gradients.READ and made and inputs:
                tape.write_at_once()  # what is done to a gradient is followed
                known[id(made[0])].gradient_of = inputs[0][1].serial
            elif of_gradient:
                name = getattr(func, "__name__", "")
                gradients.followed(tape, name, func, taken, inputs, outputs, changed, nonzero, site)
            for tensor in written:
                tape.wrote(tensor, operation)
            if func in _DETACHED and made and taken:
                tape.shares(made[0], taken[0])
        except Exception as error:
            tape.fail("recorder", error)

    def _failed(self, call: _Call, raised: BaseException, arguments: tuple[Any, ...]) -> None:
        try:
            operation = self._write(call, (), None, failed=True)
            failing.note(self.tape, operation, raised, arguments, call[2], self.here.get("root"))
        except Exception as error:
            self.tape.fail("recorder", error)

    def _write(
        self, call: _Call, outputs: tuple[ValueRecord, ...], number: float | None, failed: bool = False
    ) -> OperationRecord:
        func, site, _, inputs, grad_enabled, before, *_ = call
        tape = self.tape
        modules, thread = self.modules, self.here["number"]
        history = False
        for value in outputs:
            history = history or value[2]
        if func not in _LOOKS:
            if history:
                tape.differentiating.add(thread)
            for _, subject, _ in inputs:
                subject.used = True
                subject.thread = thread
                if history:
                    subject.consumed = True
        operation = OperationRecord(
            tape.next_operation(),
            func,
            site,
            inputs,
            outputs,
            grad_enabled,
            (before, sequence_number()),
            modules[-1] if modules else None,
            thread,
            self.here.get("function"),
            failed,
            number,
        )
        tape.add(operation)
        return operation


def pause(tape: Tape, out: bool = False) -> None:
    """Let the operations of this thread pass, until `resume` or until a line of the user's calls one.

    With `out`, no line of the user's will: the recorder leaves the stack of modes, so that what passes costs nothing.
    """
    recorder: Recorder | None = tape.local.__dict__.get("recorder")
    if recorder is not None:
        recorder.paused = True
        if out and not recorder.out and _modes_on() and stacks.at(_modes_on() - 1) is recorder:
            stacks.pop()
            recorder.out = True


def resume(tape: Tape) -> None:
    """Record the operations of this thread again."""
    recorder: Recorder | None = tape.local.__dict__.get("recorder")
    if recorder is not None:
        recorder.paused = False
        if recorder.out:
            recorder.out = False
            stacks.push(recorder)


def switch_name(switch: str, value: bool) -> str:
    """How a switch of grad mode is written down; a decorator's is told apart, for it belongs to no line of its own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED):
        if frame.f_code.co_name == "decorate_context":
            return f"{switch}({value}) by decorator"
        frame = frame.f_back
    return f"{switch}({value})"


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """The tensors in arguments or results: nested tuples, lists and dicts are looked into."""
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (tuple, list)) and not isinstance(values, _VIEWS):
        return
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list, dict)):
            yield from tensors(value)


_VIEWS: type = type({}.values())
