"""`torch.utils.swap_tensors` refuses tensors that have weak references, and the tape holds one to each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unasked


def swaps_allowed(tape: Tape) -> AbstractContextManager[None]:
    """Let go of two tensors for the moment in which they are swapped (modules are converted so)."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def swap_tensors(t1: Any, t2: Any) -> Any:
            if not tape.active:
                return original(t1, t2)
            tape.backlog.catch_up()
            subjects = tape.let_go(t1), tape.let_go(t2)
            try:
                return original(t1, t2)
            finally:
                with unasked():
                    tape.regain(t1, subjects[0])
                    tape.regain(t2, subjects[1])

        return swap_tensors

    return patched(torch.utils, "swap_tensors", wrap, always=True)
