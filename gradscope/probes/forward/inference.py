"""`torch.inference_mode` turns grad mode off past torch's function modes: its switches are written down here."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.compiler import is_compiling

from gradscope.probes.forward.callsites import USER, Site
from gradscope.probes.forward.recorder import sequence_number, switch_name
from gradscope.probes.records import OperationRecord
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched


@contextmanager
def watch_inference_mode(tape: Tape) -> Iterator[None]:
    """Write down where inference mode begins and ends, as the function mode does for `torch.no_grad`."""

    def wrap(begins: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def with_record(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def switch(self: torch.inference_mode, *args: Any) -> Any:
                if tape.active and not is_compiling():
                    _write(tape, begins and self.mode)
                return original(self, *args)

            return switch

        return with_record

    with (
        patched(torch.inference_mode, "__enter__", wrap(True)),
        patched(torch.inference_mode, "__exit__", wrap(False)),
    ):
        yield


def _write(tape: Tape, on: bool) -> None:
    try:
        site = tape.sites.here()
        if site is not None:
            name, number = switch_name("inference_mode", on), sequence_number()
            site = _decorated(tape) or site
            enabled = torch.is_grad_enabled()
            tape.add(
                OperationRecord(
                    tape.next_operation(), name, site, (), (), enabled, (number, number), None, tape.thread()
                )
            )
    except Exception as error:
        tape.fail("inference mode probe", error)


def _decorated(tape: Tape) -> Site | None:
    """The head of the user's function that `torch.inference_mode` decorates, where it is a decorator that switches."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame.f_code.co_name == "decorate_context":
            code = getattr(inspect.unwrap(frame.f_locals["func"]), "__code__", None)
            return (code, 0) if code is not None and tape.sites.kind(code.co_filename) == USER else None
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None
