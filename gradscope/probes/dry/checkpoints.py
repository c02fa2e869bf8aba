"""Checkpoints of a dry run: what a program saves stays in memory, where its own loads find it, and no file changes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from gradscope.probes.dry.standins import StandIns
from gradscope.probes.tensors.patches import patched


@contextmanager
def checkpoints_in_memory(noted: StandIns) -> Iterator[None]:
    """Write no file, and load what was not written from memory."""
    files: dict[str, bytes] = {}

    def wrap_save(original: Callable[..., Any]) -> Callable[..., Any]:
        def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            if not isinstance(f, (str, os.PathLike)):
                original(obj, f, *args, **kwargs)
                return
            noted.note("a file that torch.save was to write", "memory")
            written = io.BytesIO()
            original(obj, written, *args, **kwargs)
            files[os.path.abspath(os.fspath(f))] = written.getvalue()

        return save

    def wrap_load(original: Callable[..., Any]) -> Callable[..., Any]:
        def load(f: Any, _: Any = None, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("mmap", None)
            kwargs.pop("map_location", None)
            if isinstance(f, (str, os.PathLike)):
                f = io.BytesIO(kept) if (kept := files.get(os.path.abspath(os.fspath(f)))) is not None else f
            return original(f, "cpu", *args, **kwargs)

        return load

    with (
        torch.serialization.safe_globals([_like]),
        patched(FakeTensor, "__reduce_ex__", lambda _: _reduced, always=True),
        patched(torch, "save", wrap_save, always=True),
        patched(torch, "load", wrap_load, always=True),
    ):
        yield


def _reduced(tensor: torch.Tensor, _: int) -> Any:
    """How a fake tensor is pickled: what comes back is a new one like it."""
    made = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad, isinstance(tensor, torch.nn.Parameter))
    return _like, made


def _like(shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool, parameter: bool) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    return torch.nn.Parameter(tensor, requires_grad) if parameter else tensor.requires_grad_(requires_grad)
