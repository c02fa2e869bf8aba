"""Our own torch calls: nobody may see them, and they may change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes

# Reading a tensor's attributes asks the function modes and the `__torch_function__` of a subclass, the user's too.
unasked = torch._C.DisableTorchFunction


@contextmanager
def unobserved() -> Iterator[None]:
    """Outside all function and dispatch modes, ours and the user's, and without making history."""
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        yield
