"""What a tensor is like, for those of which torch refuses the question."""

from __future__ import annotations

import torch

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


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape; () for what has none: parameters of lazy modules before their first call, nested tensors."""
    try:
        return tuple(tensor.shape)
    except RuntimeError:
        return ()


def storage_key(tensor: torch.Tensor) -> int | None:
    """Identifies the memory of a tensor while it is alive; None for tensors without storage of their own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None
