"""How an embedding is asked for its row for padding: as padding, or as one row like the others."""

from __future__ import annotations

import torch

from gradscope.folds.lookups import Lookups
from gradscope.probes.tensors.quiet import detached


def look_up(counts: Lookups, asked: torch.Tensor, row: int) -> None:
    """Take in what one call looks up."""
    index = detached(asked)
    is_row = index == row
    others = index[~is_row]
    counts.take(int(is_row.sum()), others.numel(), torch.unique(others).numel(), _is_between_others(asked, is_row))


def _is_between_others(index: torch.Tensor, is_row: torch.Tensor) -> bool:
    """Whether the row stands between others, in most sequences that have it; one index a sample makes one sequence.

    Of what was several sequences and has been made one, nothing is known.
    """
    base = index._base
    if index.dim() == 1 and base is not None and base.dim() > 1 and base.numel() == index.numel():
        return False
    if index.dim() > 1 and index.shape[-1] == 1:
        is_row = is_row.squeeze(-1)
    sequences = is_row.reshape(-1, is_row.shape[-1])
    rest = ~sequences
    before, after = rest.cumsum(1) > 0, rest.flip(1).cumsum(1).flip(1) > 0
    between = (sequences & before & after).any(1)
    return bool(between.any()) and int(between.sum()) * 2 >= int(sequences.any(1).sum())
