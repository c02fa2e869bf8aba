"""Our own torch calls: nobody may see them, and they may change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import _disable_current_modes

_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack

# Reading a tensor's attributes asks the function modes and the `__torch_function__` of a subclass, the user's too.
unasked = torch._C.DisableTorchFunction


@contextmanager
def unobserved() -> Iterator[None]:
    """Outside all function and dispatch modes, ours and the user's, and without making history."""
    # Turning dispatch modes off costs some microseconds: only where there are any.
    modes = _disable_current_modes() if _dispatch_modes() else nullcontext()
    with torch._C.DisableTorchFunction(), modes, torch.no_grad():
        yield
