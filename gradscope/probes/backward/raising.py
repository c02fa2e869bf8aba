"""What raised the exception that ended the program, read from its traceback, which holds what was running."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch

from gradscope.graph.facts import FailedCall
from gradscope.probes.backward.failing import FailedRecord, identity, numbers_in
from gradscope.probes.forward.callsites import USER, Site
from gradscope.probes.forward.modules import add_root
from gradscope.probes.records import OperationRecord
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.quiet import unasked, unobserved

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_CALLS_A_MODULE = "_call_impl"


def call_that_raised(tape: Tape, error: BaseException) -> FailedCall | None:
    """The call that raised what ended the program, be it an operation or a module of torch's that checks its input."""
    try:
        tape.ended_by = identity(error)
        frames = list(_frames(error))
        calls = [frame for frame in frames if frame.f_code.co_name == _CALLS_A_MODULE]
        if calls:
            _name(tape, error, calls[0])
        site, known = _site(tape, error), tape.failed
        if known is None or site is None or known.error != identity(error) or known.site is None:
            tape.failed = _refused_by_module(tape, error, frames, calls)
        elif known.site[0] is not site[0]:
            tape.failed = None  # the same words, raised elsewhere
        found = tape.failed
        if found is None:
            return None
        return FailedCall(found.operation, found.numbers, found.ranges, tape.sites.span(found.entered))
    except Exception as failed:
        tape.fail("probe of the failing call", failed)
        return None


def _name(tape: Tape, error: BaseException, call: FrameType) -> None:
    """A root module gets its names when it has returned; this one never will."""
    module = call.f_locals.get("self")
    if isinstance(module, torch.nn.Module):
        with unobserved():
            add_root(tape, module, _site(tape, error, call))


def _refused_by_module(
    tape: Tape, error: BaseException, frames: Sequence[FrameType], calls: Sequence[FrameType]
) -> FailedRecord | None:
    """A module of torch's that does not take what it was given: it is written down as an operation that failed."""
    if not frames or not frames[-1].f_code.co_filename.startswith(_TORCH):
        return None
    module = calls[-1].f_locals.get("self") if calls else None
    if not isinstance(module, torch.nn.Module) or not type(module).__module__.startswith("torch.nn."):
        return None
    arguments = (*calls[-1].f_locals.get("args", ()), *calls[-1].f_locals.get("kwargs", {}).values())
    site = _site(tape, error)
    if site is None:
        return None
    with unasked():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        taken = [*_tensors(arguments), *own]
        inputs = tuple(tape.subject(tensor, site).held() for tensor in taken)
    number = tape.next_operation()
    name = f"nn.{type(module).__name__}"
    enabled, mark = torch.is_grad_enabled(), tape.mark(module)
    tape.add(OperationRecord(number, name, site, inputs, (), enabled, (0, 0), mark, tape.thread(), failed=True))
    return FailedRecord(identity(error), site, number, numbers_in(arguments), (), _site(tape, error, calls[0]))


def _tensors(arguments: Sequence[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (tuple, list)):
            yield from _tensors(argument)


def _frames(error: BaseException) -> Iterator[FrameType]:
    walk = error.__traceback__
    while walk is not None:
        yield walk.tb_frame
        walk = walk.tb_next


def _site(tape: Tape, error: BaseException, until: FrameType | None = None) -> Site | None:
    """The innermost line of the user's that an exception came through, of those around the frame `until`."""
    site = None
    walk = error.__traceback__
    while walk is not None and walk.tb_frame is not until:
        if tape.sites.kind(walk.tb_frame.f_code.co_filename) == USER:
            site = walk.tb_frame.f_code, walk.tb_lasti
        walk = walk.tb_next
    return site
