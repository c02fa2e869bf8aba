"""Our own torch calls: nobody may see them, and they may change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack

_cuda_is_initialized: Callable[[], bool] = torch.cuda.is_initialized

# Reading a tensor's attributes asks the function modes and the `__torch_function__` of a subclass, the user's too.
unasked = torch._C.DisableTorchFunction


class _Here(threading.local):
    watched = False  # Dynamo looks at every frame that this thread enters, ours too: they must do nothing
    traced = False  # `torch.jit.trace` turns what this thread does into a graph, what we do too
    away = False  # Dynamo traces, or what it has compiled runs


here = _Here()
# By torch's own names: the program may have replaced those of `torch.Tensor`, and counts their calls.
detached: Callable[[torch.Tensor], torch.Tensor] = torch._C.TensorBase.detach
item_of: Callable[[torch.Tensor, Any], torch.Tensor] = torch._C.TensorBase.__getitem__
set_item: Callable[[torch.Tensor, Any, Any], None] = torch._C.TensorBase.__setitem__
_set_callback: Callable[[Any], Any] = torch._C._dynamo.eval_frame.set_eval_frame


class unwatched:  # noqa: N801 - as `unobserved`
    """Dynamo does not look at the frames in here, so that a probe may be at work between two compiled regions."""

    __slots__ = ("callback",)

    def __enter__(self) -> None:
        self.callback = None
        if here.watched and not here.away:
            self.callback = _set_callback(None)
            here.watched = False

    def __exit__(self, *raised: Any) -> None:
        if self.callback is not None:
            here.watched = True
            _set_callback(self.callback)


def capturing() -> bool:
    """Whether a CUDA graph is being captured: whoever reads a value then breaks the capture."""
    return _cuda_is_initialized() and torch.cuda.is_current_stream_capturing()


class unobserved:  # noqa: N801 - named as what it is used for, as `torch.no_grad` is
    """Outside all function and dispatch modes, ours and the user's, and without making history.

    A class, since entered some ten times in each step: a generator and the wrapper of grad mode take ten times as long.
    """

    __slots__ = ("asked", "grad_enabled", "modes")

    def __enter__(self) -> None:
        # Turning dispatch modes off costs some microseconds: only where there are any.
        self.modes = _disable_current_modes() if _dispatch_modes() else None
        self.asked = torch._C.DisableTorchFunction()
        self.asked.__enter__()
        if self.modes is not None:
            self.modes.__enter__()
        self.grad_enabled = torch.is_grad_enabled()
        _set_grad_enabled(False)

    def __exit__(self, *raised: Any) -> None:
        _set_grad_enabled(self.grad_enabled)
        if self.modes is not None:
            self.modes.__exit__(*raised)
        self.asked.__exit__(*raised)
