"""Threads that start while we observe: torch's function modes count for one thread only."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from gradscope.probes.patches import patched
from gradscope.probes.recorder import Recorder
from gradscope.probes.tape import Tape


def watch_threads(tape: Tape) -> AbstractContextManager[None]:
    """Give each new thread a recorder of its own.

    `_bootstrap_inner` is the one method that runs in every thread whatever its subclass overrides, and it lies
    outside of what a traceback of the thread shows.
    """

    def wrap(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
        @functools.wraps(original)
        def bootstrap(self: threading.Thread, *args: Any) -> None:
            if not tape.active:
                return original(self, *args)
            with Recorder(tape):
                return original(self, *args)

        return bootstrap

    return patched(threading.Thread, "_bootstrap_inner", wrap)
