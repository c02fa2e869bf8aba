"""The values of a dry run: small integers and booleans stay real, and whatever else is read has a stand-in.

A fake tensor of few integers or booleans, or of few floats that the program has given as numbers, has a real one beside
it, its *double*, as an attribute: indices, masks and labels keep the control flow true. What a double is computed from
and has none itself counts as ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DOUBLED = 1 << 16  # elements: the labels of a data set, the tokens of a batch, and not the mask of an attention
COMPUTED = 1 << 22  # elements that are looked at to compute a double: some milliseconds
_LIKE = {torch.ops.aten.rand_like.default, torch.ops.aten.zeros_like.default, torch.ops.aten.ones_like.default}
_DOUBLE = "_gradscope_double"
MADE = 4_096  # elements of a tensor of floats that is filled with numbers, or at random: masks are drawn so


def double_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The real values of a fake tensor, where they are known."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    double: torch.Tensor | None = vars(tensor).get(_DOUBLE)
    if double is not None and double.shape == tensor.shape and double.dtype == tensor.dtype:
        return double
    return tensor.constant


def stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """Real values in the place of a fake tensor: its own where they are known, else ones, which take no memory."""
    known = double_of(tensor)
    if known is not None:
        return known
    with _disable_current_modes():
        return torch.ones((), dtype=tensor.dtype).expand(tuple(map(int, tensor.shape)))


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives for the values that are known, and for ones in the place of all others."""

    def given_for(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # A real tensor is the caller's: an operation in place may not change it.
        return value.clone() if func._schema.is_mutable and not isinstance(value, FakeTensor) else stand_in(value)

    with _disable_current_modes():
        given = tree_map(given_for, (args, kwargs))
        return func(*given[0], **given[1])


def is_cheap(args: Any, kwargs: Any) -> bool:
    """Whether it takes next to no time to compute with stand-ins of these."""
    return sum(value.numel() for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)) <= COMPUTED


def follow(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Give the results of an operation their doubles, and change those of what it has changed in place."""
    leaves = tree_leaves(result)
    if not any(map(_is_doubled, leaves)):
        _follow_floats(func, args, kwargs, leaves)
        return
    real: list[Any] = []
    if is_cheap(args, kwargs):
        try:
            real = tree_leaves(computed(func, args, kwargs))
        except Exception:  # stand-ins may be out of range: indices, divisors
            real = []
    for place, tensor in enumerate(leaves):
        if _is_doubled(tensor):
            fits = place < len(real) and isinstance(real[place], torch.Tensor) and real[place].shape == tensor.shape
            set_double(tensor, real[place] if fits else _plain(tensor))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """What stands for values that cannot be computed: true, or the first index."""
    with _disable_current_modes():
        return torch.full(tuple(tensor.shape), int(tensor.dtype == torch.bool), dtype=tensor.dtype)


def set_double(tensor: torch.Tensor, real: torch.Tensor) -> None:
    """Keep real values beside a fake tensor."""
    setattr(tensor, _DOUBLE, real)


def _is_doubled(value: Any) -> bool:
    return (
        isinstance(value, FakeTensor)
        and not value.dtype.is_floating_point
        and not value.dtype.is_complex
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.numel() <= DOUBLED
    )


def _follow_floats(func: Any, args: Any, kwargs: Any, made: list[Any]) -> None:
    """Numbers that a program fills a small tensor with are known until an operation changes them."""
    taken = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    for tensor in made:
        if not isinstance(tensor, FakeTensor) or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            continue
        if any(tensor is value for value in taken):
            vars(tensor).pop(_DOUBLE, None)
        elif len(made) == 1 and tensor.numel() <= MADE and _is_made_alone(func, taken):
            set_double(tensor, computed(func, args, kwargs))


def _is_made_alone(func: Any, taken: list[torch.Tensor]) -> bool:
    """Whether the values are nobody's but the operation's own: those of `rand_like`, or of a list of numbers."""
    return not taken or func in _LIKE or all(not isinstance(value, FakeTensor) for value in taken)


def faked(real: Any, fake: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Fake tensors for real results."""

    def convert(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        made = fake(value)
        if _is_doubled(made):
            set_double(made, value)
        return made

    return tree_map(convert, real)


def number(tensor: torch.Tensor) -> tuple[Any, bool]:
    """The number that a tensor of one element stands for, and whether it is its own."""
    known = double_of(tensor)
    with _disable_current_modes():
        return stand_in(tensor).item(), known is not None
