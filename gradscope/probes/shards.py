"""Tensors that are spread over several processes: what this process holds of them, and how FSDP gathers them."""

from __future__ import annotations

import torch

_WHOLE = (torch.Tensor, torch.nn.Parameter)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a DTensor that lies in this process; any other tensor itself.

    A norm or a sum of a DTensor is a collective: asked for by us on one rank alone, it would hang the program.
    """
    if type(tensor) in _WHOLE:
        return tensor
    part = getattr(tensor, "_local_tensor", tensor)
    return part if isinstance(part, torch.Tensor) else tensor
