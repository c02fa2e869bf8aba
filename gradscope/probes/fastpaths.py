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
from torch.compiler import is_compiling

from gradscope.probes.patches import patched
from gradscope.probes.recorder import Recorder
from gradscope.probes.tape import Tape

_modes: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack
_push: Callable[[Any], None] = torch.overrides._push_mode
_pop: Callable[[], Any] = torch.overrides._pop_mode


@contextmanager
def watch_fast_paths(tape: Tape) -> Iterator[None]:
    """Let code that chooses its way by `has_torch_function` choose as it would without us."""

    def wrap(original: Callable[[Iterable[Any]], bool]) -> Callable[[Iterable[Any]], bool]:
        @functools.wraps(original)
        def has_torch_function(relevant_args: Iterable[Any]) -> bool:
            if is_compiling():
                # Dynamo knows the function that has our name now, and this one: see `_forget_handlers`.
                return torch.overrides.has_torch_function_variadic(*relevant_args)
            if not tape.active:
                return original(relevant_args)
            found = original(relevant_args)
            if not found or _hands_over():
                return found
            modes = _modes()
            if not modes or any(not isinstance(mode, Recorder) for mode in modes):
                return found  # a subclass of tensors, or a mode of the program's own
            for _ in modes:
                _pop()
            try:
                return original(relevant_args)
            finally:
                for mode in modes:
                    _push(mode)

        return has_torch_function

    with patched(torch.overrides, "has_torch_function", wrap):
        yield
    _forget_handlers()


def _forget_handlers() -> None:
    """Let Dynamo look functions up again.

    At its first trace it makes a table of the functions that it handles, by what they are at that moment: of ours, if
    that was while we were here, and then it would not know torch's own afterwards.
    """
    module = sys.modules.get("torch._dynamo.variables.torch")
    handlers = getattr(getattr(module, "TorchInGraphFunctionVariable", None), "_get_handlers", None)
    forget = getattr(handlers, "cache_clear", None)
    if forget is not None:
        forget()


def _hands_over() -> bool:
    """Whether who asks will hand its call to the modes: that one must be told of ours, or nobody sees the call."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:  # another observation asks on behalf
        frame = frame.f_back
    return "handle_torch_function" in frame.f_code.co_names
