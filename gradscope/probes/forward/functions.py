"""Ways past torch's function modes: custom autograd Functions, `nn.Parameter` and the old `Variable`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.compiler import is_compiling

from gradscope.probes.forward.callsites import Site
from gradscope.probes.forward.recorder import sequence_number, tensors
from gradscope.probes.program.recursion import LEVELS
from gradscope.probes.program.tracebacks import hidden
from gradscope.probes.records import OperationRecord, ValueRecord
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unasked
from gradscope.probes.tensors.shards import local, sharded_now

_OURS = 3  # frames below a Function that is applied


@contextmanager
def watch_functions(tape: Tape) -> Iterator[None]:
    """Record `Function.apply`, `nn.Parameter(t)` and `Variable(t)` as operations, and note who packs saved tensors."""

    def wrap_apply(original: Any) -> Any:
        bound_to = functools.partial(original.__get__, None)  # a classmethod, of Python's or, from torch 2.14, of C's

        @functools.wraps(torch.autograd.Function.apply)
        def wrapper(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if not tape.active or is_compiling() or tape.local.__dict__.get("checking"):
                return bound_to(cls)(*args, **kwargs)
            if tape.check_function is not None and not kwargs:
                tape.check_function(cls, bound_to(cls), args)
            spent = LEVELS.spend(_OURS)
            try:
                with hidden:
                    return _applied(tape, cls, lambda: bound_to(cls)(*args, **kwargs), args)
            finally:
                if spent:
                    LEVELS.regain(_OURS)

        return classmethod(wrapper)

    def wrap_new(original: Any) -> Any:
        new = original.__func__

        @functools.wraps(new)
        def wrapper(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
            if not tape.active or is_compiling() or data is None:
                return new(cls, data, requires_grad)
            with hidden:
                return _wrapped(tape, "nn.Parameter", lambda: new(cls, data, requires_grad), data)

        return staticmethod(wrapper)

    def wrap_variable(original: Any) -> Any:
        @functools.wraps(original)
        def wrapper(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if not tape.active or is_compiling():
                return original(cls, *args, **kwargs)
            data = args[0] if args else kwargs.get("data")
            with hidden:
                return _wrapped(tape, "Variable", lambda: original(cls, *args, **kwargs), data)

        return staticmethod(wrapper)

    def wrap_packing(original: Any) -> Any:
        @functools.wraps(original)
        def enter(self: Any) -> Any:
            tape.packed = True
            return original(self)

        return enter

    with (
        patched(torch.autograd.graph.saved_tensors_hooks, "__enter__", wrap_packing),
        patched(torch.autograd.Function, "apply", wrap_apply),
        patched(torch.nn.Parameter, "__new__", wrap_new),
        patched(torch.autograd.Variable, "__new__", wrap_variable),
    ):
        yield


def _applied(tape: Tape, function: Any, apply: Callable[[], Any], args: tuple[Any, ...]) -> Any:
    """Operations inside the Function's forward carry its number in `within`; their results are its results."""
    running = tape.local.__dict__
    tape.write_at_once()  # what runs inside is looked through for the result
    outer, number = running.get("function"), tape.next_operation()
    site, grad_enabled, before = tape.sites.here(), torch.is_grad_enabled(), sequence_number()
    try:
        with unasked():
            given = [(tensor, tape.subject(tensor, site).held()) for tensor in tensors(args)]
        tape.places[function.__name__] = tuple(place for place, value in enumerate(args) for _ in tensors((value,)))
    except Exception as error:
        tape.fail("function probe", error)
        return apply()
    running["function"] = number
    tape.singular = True
    failed = True
    result: Any = None
    try:
        result = apply()
        failed = False
    finally:
        running["function"] = outer
        try:
            with unasked():
                values = results_of(tape, given, result)
            inputs = [value for _, value in given]
            for _, subject, _ in inputs:
                subject.used = True
                subject.thread = tape.thread()
                subject.consumed |= any(value[2] for value in values)
            # What the forward computed inside becomes the result when `apply` puts its node on it.
            since = itertools.takewhile(lambda operation: operation.serial > number, reversed(tape.step.operations))
            inner = [value for operation in since if operation.within == number for value in operation.outputs]
            results = {value[1].serial for value in values}
            inputs += [value for value in inner if value[1].serial in results and value not in values]
            modules = running.get("modules")
            tape.add(
                OperationRecord(
                    number,
                    function.__name__,
                    site,
                    tuple(inputs),
                    tuple(values),
                    grad_enabled,
                    (before, sequence_number()),
                    modules[-1] if modules else None,
                    tape.thread(),
                    outer,
                    failed,
                )
            )
        except Exception as error:
            tape.fail("function probe", error)
    return result


def results_of(tape: Tape, given: list[tuple[torch.Tensor, ValueRecord]], result: Any) -> list[ValueRecord]:
    """The values that a Function gave: its results, and those of its arguments that it changed in place."""
    values = []
    for tensor in tensors((result,)):
        subject = tape.seen(tensor)
        if subject is None:
            subject = tape.meet(tensor, tape.sites.here())
        else:
            tape.changed(tensor, subject)
        values.append(subject.held())
    known = {subject.serial for _, subject, _ in values}
    for tensor, before in given:
        now = tape.subject(tensor)
        if now.serial not in known and now.value != before[0]:
            values.append(now.held())
    return values


def _wrapped(tape: Tape, name: str, make: Callable[[], Any], data: Any) -> Any:
    """A call that makes a new leaf of the values of a tensor."""
    site, before = tape.sites.here(), sequence_number()
    try:
        # Of a fake tensor torch makes one by operations that a real one does without.
        with unasked() if tape.fake else nullcontext():
            made = make()
    except BaseException:
        _note_wrapping(tape, name, site, data, None, before)
        raise
    _note_wrapping(tape, name, site, data, made, before)
    return made


def _note_wrapping(tape: Tape, name: str, site: Site | None, data: Any, made: Any, number: int) -> None:
    try:
        if site is None or not isinstance(data, torch.Tensor):
            return
        with unasked():
            source = tape.subject(data, site).held()
            if made is None:
                link(tape, name, site, source, None, number)
            elif tape.seen(made) is None:
                value = tape.meet(made, site).held()
                value[1].built, value[1].constructors = tape.sites.builders(), tape.sites.constructors()
                tape.shares(made, data)
                link(tape, name, site, source, value, number)
        if made is not None and local(data) is not data:
            _made_of(tape, made)
    except Exception as error:
        tape.fail(f"{name} probe", error)


def link(tape: Tape, name: str, site: Site, source: ValueRecord, made: ValueRecord | None, number: int) -> None:
    """Write down a call that makes one tensor of another, or fails to; `number` is of the next node of autograd."""
    running = tape.local.__dict__
    modules = running.get("modules")
    tape.add(
        OperationRecord(
            tape.next_operation(),
            name,
            site,
            (source,),
            (made,) if made is not None else (),
            torch.is_grad_enabled(),
            (number, number),
            modules[-1] if modules else None,
            tape.thread(),
            running.get("function"),
            failed=made is None,
        )
    )


def _made_of(tape: Tape, shard: torch.Tensor) -> None:
    """A shard is made where the user made the parameter that it is a part of, not where FSDP split it."""
    whole = sharded_now()
    origin, subject = (tape.seen(tensor) if tensor is not None else None for tensor in (whole, shard))
    if origin is not None and subject is not None:
        subject.site, subject.built = origin.site, origin.built
