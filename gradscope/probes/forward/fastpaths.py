"""Whether somebody overrides torch's functions, answered as if no recorder were on.

Attention modules take a fused kernel in evaluation mode unless `torch.overrides.has_torch_function` says yes, which it
does for every tensor while a function mode is on. Its numbers differ in the last digits from those of the slow path,
padding comes out as zeros, and it refuses what the slow path takes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gradscope.probes.forward.recorder import Recorder
from gradscope.probes.program import stacks
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched


@contextmanager
def watch_fast_paths(tape: Tape) -> Iterator[None]:
    """Let code that chooses its way by `has_torch_function` choose as it would without us."""

    def wrap(original: Callable[[Iterable[Any]], bool]) -> Callable[[Iterable[Any]], bool]:
        @functools.wraps(original)
        def has_torch_function(relevant_args: Iterable[Any]) -> bool:
            if not tape.active:
                return original(relevant_args)
            found = original(relevant_args)
            if not found or _hands_over():
                return found
            modes = stacks.modes()
            if not modes or any(not isinstance(mode, Recorder) for mode in modes):
                return found  # a subclass of tensors, or a mode of the program's own
            for _ in modes:
                stacks.pop()
            try:
                return original(relevant_args)
            finally:
                for mode in modes:
                    stacks.push(mode)

        return has_torch_function

    with patched(torch.overrides, "has_torch_function", wrap):
        yield


def _hands_over() -> bool:
    """Whether who asks will hand its call to the modes: that one must be told of ours, or nobody sees the call."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:  # another observation asks on behalf
        frame = frame.f_back
    return "handle_torch_function" in frame.f_code.co_names
