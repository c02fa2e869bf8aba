"""torch's profiler of Python calls keeps the names of code that it has seen, and not the code.

A module's own code dies once it has run. Without us its memory is left alone long enough for the profiler to read the
name there at its end; with us it is filled anew, and the profiler ends in an error. So such code is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

import torch

from gradscope.probes.tensors.patches import patched

_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled
_kept: list[CodeType] = []  # of modules that were imported under a profiler: a few in the life of a process


def imported_code_kept() -> AbstractContextManager[None]:
    """Keep the code of modules that are imported while a profiler records."""

    def wrap(original: Callable[..., CodeType | None]) -> Callable[..., CodeType | None]:
        @functools.wraps(original)
        def get_code(self: Any, fullname: str) -> CodeType | None:
            code = original(self, fullname)
            if code is not None and _profiling():
                _kept.append(code)
            return code

        return get_code

    return patched(SourceFileLoader, "get_code", wrap, always=True)
