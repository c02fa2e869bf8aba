"""`torch.jit.trace` runs a program for its operations, not for its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from gradscope.probes.forward.recorder import pause, resume
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import here

_TRACERS = ("trace", "trace_module", "_get_trace_graph")  # the last is what the ONNX exporter calls


@contextmanager
def watch_tracing(tape: Tape) -> Iterator[None]:
    """See nothing of what a trace runs.

    There even the question for a size is an operation of the trace, and its answer is a tensor. A question that is
    refused takes the trace away, which torch finds out by a segmentation fault.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def trace(traced: Any, *args: Any, **kwargs: Any) -> Any:
            if not tape.active:
                return original(traced, *args, **kwargs)
            resume(tape)  # where an optimizer has raised
            pause(tape, out=True)
            here.traced = True
            try:
                return original(traced, *args, **kwargs)
            finally:
                here.traced = False
                resume(tape)

        return trace

    with ExitStack() as stack:
        for name in _TRACERS:
            stack.enter_context(patched(torch.jit, name, wrap, always=True))
        yield
