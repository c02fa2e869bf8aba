"""Norms of gradients, taken without copies of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from gradscope.probes.training import courses
from gradscope.probes.training.courses import Meter, norms

SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda t: t,
    "transposed": lambda t: t.mT,
    "channels last": lambda t: t.view(5, 4, 3, 2).to(memory_format=torch.channels_last),
    "a slice": lambda t: t[:, 1:7:2],
    "expanded": lambda t: t[0, 0].expand(40, 3),
    "a scalar": lambda t: t[0, 0],
}


@pytest.mark.parametrize("piece", [1, 7, 1 << 18])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_meter_reads_any_tensor_piece_by_piece(shape: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm is that of torch, whatever the strides, and no more than a piece is copied at a time."""
    monkeypatch.setattr(courses, "_PIECE", piece)
    monkeypatch.setattr(courses, "_RESULTS", 2)
    meter = Meter(torch.float64)
    found = []
    for seed in range(3):
        tensor = SHAPES[shape](torch.randn(12, 10, generator=torch.Generator().manual_seed(seed)))
        assert max(part.numel() for part in courses._pieces(tensor)) <= piece
        found.append((meter.norm(tensor), tensor))
    for norm, tensor in found:
        assert norm.item() == pytest.approx(tensor.double().norm().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_norms_beyond_the_range_of_their_squares(dtype: torch.dtype) -> None:
    """Gradients whose squares vanish or overflow have a norm all the same; zero, infinity and NaN are told exactly."""
    tiny = torch.finfo(dtype).tiny
    large = torch.finfo(dtype).max / 4
    given = [torch.full((2, 2), value, dtype=dtype) for value in (tiny, large, 0.0, math.inf, math.nan, 1.0)]
    zero, infinite, nan, one = norms(given)[2:]
    assert norms(given)[:2] == pytest.approx([2 * given[0][0, 0].abs().item(), 2 * given[1][0, 0].abs().item()])
    assert (zero, infinite, one) == (0.0, math.inf, 2.0)
    assert math.isnan(nan)
