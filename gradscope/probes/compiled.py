"""Regions that `torch.compile` has compiled: each call of one is one operation, with those that lose gradients inside.

Dynamo makes a graph of a piece of the program and hands it to a backend; what comes back is called with every tensor
that the piece takes, the parameters among them. That callable is wrapped as it is made. Code that was compiled before
the observation is compiled anew for it, since Dynamo guards on the function modes that are on.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.compiler import is_compiling

from gradscope.probes.functions import results_of
from gradscope.probes.patches import patched
from gradscope.probes.quiet import unasked
from gradscope.probes.recorder import sequence_number, tensors
from gradscope.probes.records import OperationRecord, StepRecord
from gradscope.probes.regions import InnerCut, cuts_in
from gradscope.probes.tape import Tape
from gradscope.probes.tracebacks import hidden

_MODULE = "torch._dynamo.output_graph"
_tapes: list[Tape] = []


@contextmanager
def watch_compiled(tape: Tape) -> Iterator[None]:
    """Record calls of compiled regions. Dynamo is not imported for it: it is met when the program imports it."""
    with ExitStack() as stack:

        def patch(module: Any) -> None:
            stack.enter_context(patched(module.OutputGraph, "call_user_compiler", _wrapped))

        finder = _Finder(patch)
        if _MODULE in sys.modules:
            patch(sys.modules[_MODULE])
        else:
            sys.meta_path.insert(0, finder)
        _tapes.append(tape)
        try:
            yield
        finally:
            _tapes.remove(tape)
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Calls back once the module has been imported, which others find and load."""

    def __init__(self, loaded: Callable[[ModuleType], None]) -> None:
        self.loaded = loaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        loader = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.loaded(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    def call_user_compiler(graph: Any, *args: Any, **kwargs: Any) -> Any:
        cuts = _cuts(args[0] if args else kwargs.get("gm"))  # before the backend changes it
        compiled = original(graph, *args, **kwargs)
        if getattr(graph, "package", None) is not None:
            return compiled  # it is going to be pickled
        return _region(compiled, cuts)

    return call_user_compiler


def _cuts(module: Any) -> tuple[InnerCut, ...]:
    tape = _tapes[-1] if _tapes else None
    if tape is None or not tape.active:
        return ()
    try:
        with unasked():
            return cuts_in(module.graph, tape.sites)
    except Exception as error:
        tape.fail("compile probe", error)
        return ()


def _region(compiled: Callable[..., Any], cuts: tuple[InnerCut, ...]) -> Callable[..., Any]:
    def region(*args: Any) -> Any:
        # Asked for at each call: what was compiled in one observation may be used in the next, or in none.
        tape = _tapes[-1] if _tapes else None
        if tape is None or not tape.active or is_compiling():
            return compiled(*args)
        with hidden:
            return _called(tape, compiled, args, cuts)

    return region


def _called(tape: Tape, compiled: Callable[..., Any], args: tuple[Any, ...], cuts: tuple[InnerCut, ...]) -> Any:
    site, grad_enabled, before = tape.sites.here(), torch.is_grad_enabled(), sequence_number()
    try:
        with unasked():
            given = [(tensor, tape.subject(tensor, site).held()) for tensor in tensors(args)]
            inner = [_cut(tape, cut, args) for cut in cuts] if grad_enabled else []
        tape.jotting = None  # what is seen of the inside is dropped
        step, number = tape.step, tape.next_operation()
    except Exception as error:
        tape.fail("compile probe", error)
        return compiled(*args)
    failed, result = True, None
    try:
        result = compiled(*args)
        failed = False
    finally:
        try:
            thread, local = tape.thread(), tape.local.__dict__
            with unasked():
                values = results_of(tape, given, result)
            for _, (_, subject, _) in given:
                subject.used = True
                subject.thread = thread
                subject.consumed |= any(value[2] for value in values)
            if grad_enabled and any(value[2] for value in values):
                tape.differentiating.add(thread)
            # What was seen of the inside is a part of this: backends differ in how much they show.
            _forget(step, number, thread)
            modules = local.get("modules")
            ended = {value for operation in inner for value in operation.inputs}
            for operation in inner:
                tape.add(operation)
            tape.add(
                OperationRecord(
                    number,
                    "compiled",
                    site,
                    (
                        *(value for _, value in given if value not in ended),
                        *(value for operation in inner for value in operation.outputs),
                    ),
                    tuple(values),
                    grad_enabled,
                    (before, sequence_number()),
                    modules[-1] if modules else None,
                    thread,
                    local.get("function"),
                    failed,
                )
            )
        except Exception as error:
            tape.fail("compile probe", error)
    return result


def _cut(tape: Tape, cut: InnerCut, args: tuple[Any, ...]) -> OperationRecord:
    """A call inside the region that ends the gradients of some arguments: from them to a value without history."""
    inputs = tuple(tape.subject(args[place]).held() for place in cut.arguments)
    made = tape.meet(torch.empty(cut.shape, device="meta"), cut.site)
    made.device = inputs[0][1].device
    modules, before = tape.local.__dict__.get("modules"), sequence_number()
    return OperationRecord(
        tape.next_operation(),
        cut.function,
        cut.site,
        inputs,
        (made.held(),),
        cut.grad_enabled,
        (before, before),
        modules[-1] if modules else None,
        tape.thread(),
    )


def _forget(step: StepRecord, since: int, thread: int) -> None:
    """Drop what a thread has done after the operation of this number."""
    others = []
    while step.operations and step.operations[-1].serial > since:
        operation = step.operations.pop()
        if operation.thread != thread:
            others.append(operation)
    step.operations += reversed(others)
