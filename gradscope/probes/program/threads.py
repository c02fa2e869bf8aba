"""Threads that start while we observe: torch's function modes count for one thread only."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gradscope.probes.forward.recorder import Recorder
from gradscope.probes.program.recursion import at_bare_depth
from gradscope.probes.program.tracebacks import clean
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched


@contextmanager
def watch_threads(tape: Tape) -> Iterator[None]:
    """Give each new thread a recorder of its own.

    `_bootstrap_inner` is the one method that runs in every thread whatever its subclass overrides, and it lies
    outside of what a traceback of the thread shows. An exception that ends a thread is shown without our frames.
    """

    def wrap(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
        @functools.wraps(original)
        def bootstrap(self: threading.Thread, *args: Any) -> None:
            if not tape.active:
                original(self, *args)
                return
            with Recorder(tape):
                at_bare_depth(lambda: original(self, *args), 3)  # this frame, the one that it calls, and the lambda

        return bootstrap

    def wrap_hook(original: Callable[[threading.ExceptHookArgs], Any]) -> Callable[[threading.ExceptHookArgs], Any]:
        def excepthook(args: threading.ExceptHookArgs) -> Any:
            if args.exc_value is not None:
                clean(args.exc_value)
                args = threading.ExceptHookArgs(
                    (args.exc_type, args.exc_value, args.exc_value.__traceback__, args.thread)
                )
            return original(args)

        return excepthook

    with (
        patched(threading.Thread, "_bootstrap_inner", wrap, always=True),
        patched(threading, "excepthook", wrap_hook, always=True),
    ):
        yield
