"""Regions that `torch.compile` has compiled: each call of one is one operation, with those that lose gradients inside.

Dynamo makes a graph of a piece of the program and hands it to a backend; what comes back is called with every tensor
that the piece takes, the parameters among them. That callable is wrapped as it is installed. Code that was compiled
before the observation is met where Dynamo keeps it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.compiler import is_compiling

from gradscope.probes.forward.aside import away, watch_callback, watch_tracing
from gradscope.probes.forward.functions import results_of
from gradscope.probes.forward.recorder import sequence_number, tensors
from gradscope.probes.forward.regions import InnerCut, cuts_in
from gradscope.probes.program.tracebacks import hidden
from gradscope.probes.records import OperationRecord, StepRecord
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unasked

_COMPILED = "__compiled_fn"  # how the globals are called that hold what was compiled
_Probe = Callable[[Any], AbstractContextManager[None]]
_tapes: list[Tape] = []
_waiting = threading.local()  # the cuts in what is being compiled, until that is installed


@contextmanager
def watch_compiled(tape: Tape) -> Iterator[None]:
    """Record calls of compiled regions. Dynamo is not imported for it: it is met when the program imports it."""
    with ExitStack() as stack:
        probes: dict[str, _Probe] = {
            "torch._dynamo.output_graph": _watch_regions,
            "torch._dynamo.eval_frame": watch_callback,
            "torch._dynamo.convert_frame": watch_tracing,
        }
        for name, probe in probes.items():

            def put_in(module: Any, probe: _Probe = probe) -> None:
                stack.enter_context(probe(module))

            if name in sys.modules:
                put_in(sys.modules[name])
            else:
                finder = _Finder(name, put_in)
                sys.meta_path.insert(0, finder)
                stack.callback(finder.leave)
        _tapes.append(tape)
        try:
            yield
        finally:
            _tapes.remove(tape)


@contextmanager
def _watch_regions(module: Any) -> Iterator[None]:
    with (
        patched(module.OutputGraph, "call_user_compiler", _with_cuts, always=True),
        patched(module.OutputGraph, "install_global_unsafe", _with_region, always=True),
        _compiled_before(),
    ):
        yield


class _Finder(importlib.abc.MetaPathFinder):
    """Calls back once the module has been imported, which others find and load."""

    def __init__(self, name: str, loaded: Callable[[ModuleType], None]) -> None:
        self.name, self.loaded = name, loaded

    def leave(self) -> None:
        """Find nothing any more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        self.leave()
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        loader = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.loaded(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _with_cuts(original: Callable[..., Any]) -> Callable[..., Any]:
    def call_user_compiler(graph: Any, *args: Any, **kwargs: Any) -> Any:
        # Before the backend changes the module.
        _waiting.cuts = _cuts(args[0] if args else kwargs.get("gm"))
        return original(graph, *args, **kwargs)

    return call_user_compiler


def _with_region(original: Callable[..., Any]) -> Callable[..., Any]:
    def install_global_unsafe(graph: Any, name: str, value: Any) -> Any:
        if name.startswith(_COMPILED):
            value, _waiting.cuts = _region(value, getattr(_waiting, "cuts", ())), ()
        return original(graph, name, value)

    return install_global_unsafe


@contextmanager
def _compiled_before() -> Iterator[None]:
    """Meet the regions that were compiled before the observation, until its end."""
    met: list[tuple[dict[str, Any], str, Any]] = []
    for hooks in list(torch._dynamo.utils.CleanupManager.instance.values.values()):
        for hook in hooks:
            compiled = hook.scope.get(hook.name)
            if hook.name.startswith(_COMPILED) and not hasattr(compiled, "__gradscope__"):
                hook.scope[hook.name] = region = _region(compiled, ())
                met.append((hook.scope, hook.name, region))
    try:
        yield
    finally:
        for scope, name, region in met:
            if scope.get(name) is region:
                scope[name] = region.__gradscope__


def _cuts(module: Any) -> tuple[InnerCut, ...]:
    tape = _tapes[-1] if _tapes else None
    if tape is None or tape.closed:
        return ()
    try:
        with unasked():
            return cuts_in(module.graph, tape.sites)
    except Exception as error:
        tape.fail("compile probe", error)
        return ()


def _region(compiled: Callable[..., Any], cuts: tuple[InnerCut, ...]) -> Callable[..., Any]:
    """What calls a graph that Dynamo has compiled, and which it does not look into, and writes that down."""
    run = getattr(compiled, "_torchdynamo_orig_callable", compiled)

    def region(*args: Any) -> Any:
        # Asked for at each call: what was compiled in one observation may be used in the next, or in none.
        tape = _tapes[-1] if _tapes else None
        if tape is None or not tape.active or is_compiling():
            return run(*args)
        with hidden:
            return _called(tape, run, args, cuts)

    region.__gradscope__ = compiled  # type: ignore[attr-defined]
    return torch._dynamo.disable(region)  # type: ignore[no-any-return,no-untyped-call]


def _called(tape: Tape, compiled: Callable[..., Any], args: tuple[Any, ...], cuts: tuple[InnerCut, ...]) -> Any:
    site, grad_enabled, before = tape.sites.here(), torch.is_grad_enabled(), sequence_number()
    try:
        with unasked():
            given = [(tensor, tape.subject(tensor, site).held()) for tensor in tensors(args)]
            inner = [_cut(tape, cut, args) for cut in cuts] if grad_enabled else []
        tape.write_at_once()  # what is seen of the inside is dropped
        step, number = tape.step, tape.next_operation()
    except Exception as error:
        tape.fail("compile probe", error)
        return compiled(*args)
    failed, result = True, None
    try:
        with away():
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
