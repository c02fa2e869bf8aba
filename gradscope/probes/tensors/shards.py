"""What this process holds of a tensor: all, a shard, or no values at all; and how FSDP gathers shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

import torch
from torch.nested._internal.nested_tensor import NestedTensor

from gradscope.probes.tensors.quiet import detached

_WHOLE = (torch.Tensor, torch.nn.Parameter)
_OF_TORCH = torch.Tensor.__torch_dispatch__
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
_DEEP = 6  # frames from FSDP's own to the probe of `nn.Parameter`


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a DTensor that lies in this process; any other tensor itself.

    A norm or a sum of a DTensor is a collective: asked for by us on one rank alone, it would hang the program.
    """
    if type(tensor) in _WHOLE:
        return tensor
    part = getattr(tensor, "_local_tensor", tensor)
    return part if isinstance(part, torch.Tensor) else tensor


def has_values(tensor: torch.Tensor) -> bool:
    """Whether there are numbers to read.

    Meta tensors and fake ones have a shape and a type only; wrappers of a transform stand for many tensors; and where
    a class of the program's computes, every look of ours would run its code.
    """
    if tensor.is_meta or _is_batched(tensor) or _is_transformed(tensor):
        return False
    return type(tensor) in _WHOLE or _computes_as_torch(type(tensor))


def _computes_as_torch(kind: type[torch.Tensor]) -> bool:
    return getattr(kind, "__torch_dispatch__", None) is _OF_TORCH or issubclass(kind, NestedTensor)


def values_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """What this process holds of a tensor, to be measured; None where there are no numbers to read."""
    part = local(tensor)
    return detached(part) if has_values(part) else None


def is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one floating point number that can be read, as a loss is."""
    return tensor.is_floating_point() and tensor.numel() == 1 and has_values(local(tensor))


def gathered(module: torch.nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The parameters that a module under `fully_shard` computes with, each with the shard that the optimizer holds.

    FSDP puts the whole parameter in the place of the shard while a forward or a backward needs it.
    """
    state_of = getattr(type(module), "_get_fsdp_state", None)
    if state_of is None:
        return
    state = state_of(module)
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch before 2.13 has one at most
        groups = [group for group in [state._fsdp_param_group] if group is not None]
    for group in groups:
        for parameter in group.fsdp_params:
            whole = getattr(parameter, "_unsharded_param", None)  # there is none before the first forward
            if whole is not None:
                yield whole, parameter.sharded_param


def sharded_now() -> torch.Tensor | None:
    """The user's parameter, where FSDP is about to put a shard in its place."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEEP):
        if frame is None:
            return None
        if frame.f_code.co_name == "_init_sharded_param":
            found = frame.f_locals.get("param")
            return found if isinstance(found, torch.Tensor) else None
        frame = frame.f_back
    return None
