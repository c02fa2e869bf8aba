"""What a tensor is like, for those of which torch refuses the question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from gradscope.folds.accounts import NO_GRADIENT, Stamp
from gradscope.graph.facts import UNKNOWN

INFERENCE = -1  # in the place of a version, for torch counts no changes of inference tensors


def version(tensor: torch.Tensor) -> int:
    """The number of in-place changes so far, `INFERENCE` where torch does not count."""
    try:
        return tensor._version
    except RuntimeError:
        return INFERENCE


def is_leaf(tensor: torch.Tensor) -> bool:
    """`Tensor.is_leaf`; torch refuses the question for a view made under no_grad of what was changed since."""
    try:
        return not tensor.requires_grad or tensor.is_leaf
    except RuntimeError:
        return False


def gradient_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """`Tensor.grad`, which torch warns of where it is asked of a non-leaf that retains none."""
    return tensor.grad if is_leaf(tensor) or tensor.retains_grad else None


def gradients_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """The same for each of many, most or all of them leaves."""
    try:
        return [tensor.grad if tensor.is_leaf else gradient_of(tensor) for tensor in tensors]
    except RuntimeError:
        return list(map(gradient_of, tensors))


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape; () for what has none: parameters of lazy modules before their first call, nested tensors."""
    try:
        return plain(tensor.shape)
    except RuntimeError:
        return ()


def plain(sizes: Iterable[Any]) -> tuple[int, ...]:
    """Sizes as numbers of Python's, with `UNKNOWN` for those that are not one number."""
    return tuple([size if type(size) is int else _number(size) for size in sizes])


def _number(size: Any) -> int:
    """A size that stands for many, or that a trace follows.

    To ask for its value as Python does would make the program's graph good for that value alone, or be an operation of
    the trace: only what it already knows of itself is read.
    """
    node = getattr(size, "node", None)
    if node is None:
        # A tensor, in a trace: nobody but the trace may ask it, and it must not be kept.
        return UNKNOWN if isinstance(size, torch.Tensor) else int(size)
    try:
        known = node.maybe_as_int()
        known = node.hint if known is None else known
    except Exception:
        return UNKNOWN  # that of a jagged tensor has no number
    return known if type(known) is int else UNKNOWN


def number_of_bytes(tensor: torch.Tensor) -> int | None:
    """How large a tensor is, None where that is not one number."""
    size = plain([tensor.numel()])[0]
    return None if size == UNKNOWN else size * tensor.element_size()


def storage_key(tensor: torch.Tensor) -> int | None:
    """Identifies the memory of a tensor while it is alive; None for tensors without storage of their own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None


def stamp_of(gradient: torch.Tensor | None) -> Stamp:
    """Tells whether a `.grad` is the same and unchanged since it was last looked at."""
    return (id(gradient), version(gradient)) if gradient is not None else NO_GRADIENT
