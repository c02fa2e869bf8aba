"""Is the backward of a custom Function right by value? Asked of copies in double precision, and only on request.

`torch.autograd.gradcheck` would answer for a formula as a whole. Here single elements are compared, so that kinks can
be left out, and places where `forward` is constant: a gradient that is given there all the same is meant so
(straight-through estimators, surrogates of spikes). Nor is there a wrong gradient of a `forward` that changes nothing:
its backward is all that it is there for (reversed, scaled or clipped gradients).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gradscope.probes.asked.batches import in_quiet
from gradscope.probes.backward.custom import backward_code
from gradscope.probes.tensors.quiet import detached, unasked

if TYPE_CHECKING:
    from gradscope.probes.tape import Tape

_CALLS = 2  # of one Function
_PLACES = 8  # elements of one argument
_LARGEST = 1_000_000  # elements of all arguments: each place costs two calls
_STEP = 1e-6  # for double precision: the error of a central difference is about 1e-10 then
_RELATIVE = 1e-3  # what `gradcheck` allows as well


@dataclass(frozen=True, slots=True)
class Wrong:
    """At one element of the argument at a place: what backward gave, and what forward makes of it by differences."""

    place: int
    given: float
    slope: float


def check_function(tape: Tape, function: Any, apply: Callable[..., Any], args: Sequence[Any]) -> None:
    """Check a Function with the arguments of a call; they and the random state stay as they are."""
    code = backward_code(tape, function)
    thread, local = tape.thread(), tape.local.__dict__
    if code is None or tape.functions_checked.get(code, 0) >= _CALLS or thread in tape.backwards_running:
        return
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    if sum(tensor.numel() for tensor in tensors) > _LARGEST or not any(tensor.requires_grad for tensor in tensors):
        return
    tape.functions_checked[code] = tape.functions_checked.get(code, 0) + 1
    tape.backwards_running.add(thread)
    local["checking"] = True
    try:
        with in_quiet(), unasked(), torch.enable_grad():
            found = list(_wrong(apply, args))
    except Exception:
        return  # it cannot compute in double precision, or not twice: nothing is known of it
    finally:
        local["checking"] = False
        tape.backwards_running.discard(thread)
    if found and code not in tape.wrong_backwards:
        tape.wrong_backwards[code] = tuple(found)


def _wrong(apply: Callable[..., Any], args: Sequence[Any]) -> Iterator[Wrong]:
    """The first wrong element of each argument for which there is one."""
    doubles = [_double(value) for value in args]
    leaves = {place: double for place, double in enumerate(doubles) if _is_checked(args[place])}
    for leaf in leaves.values():
        leaf.requires_grad_()
    outputs = _called(apply, doubles)
    weights = [torch.randn(output.shape, dtype=output.dtype, device=output.device) for output in outputs]
    loss = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        return
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    with torch.no_grad():
        start = [detached(output) for output in outputs]
        for (place, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            changes_nothing = any(output.shape == leaf.shape and bool((output == leaf).all()) for output in start)
            if gradient is not None and not changes_nothing:
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                found = _compare(apply, doubles, place, dense, start, weights)
                if found is not None:
                    yield found


def _compare(
    apply: Callable[..., Any],
    doubles: Sequence[Any],
    place: int,
    gradient: torch.Tensor,
    start: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
) -> Wrong | None:
    leaf = detached(doubles[place])
    count = leaf.numel()
    scale = float(gradient.abs().max()) if count else 0.0
    for number in range(0, count, max(1, count // _PLACES)):
        step = _STEP * max(1.0, abs(float(leaf.flatten()[number])))
        before, after = (_moved(apply, doubles, place, number, sign * step) for sign in (-1, 1))
        if all(bool((one == other).all()) for one, other in zip(before, after, strict=True)):
            continue
        left, right = _slope(before, start, weights, step), _slope(start, after, weights, step)
        slope, given = (left + right) / 2, float(gradient.flatten()[number])
        bound = _RELATIVE * max(abs(slope), abs(given), scale * _RELATIVE)
        if abs(left - right) <= bound < abs(slope - given):
            return Wrong(place, given, slope)
    return None


def _moved(
    apply: Callable[..., Any], doubles: Sequence[Any], place: int, number: int, step: float
) -> list[torch.Tensor]:
    moved = detached(doubles[place]).clone()
    moved.view(-1)[number] += step
    return _called(apply, [moved if other == place else value for other, value in enumerate(doubles)])


def _slope(
    one: Sequence[torch.Tensor], other: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], step: float
) -> float:
    parts = zip(one, other, weights, strict=True)
    return float(sum(((after - before) * weight).sum() for before, after, weight in parts)) / step


def _called(apply: Callable[..., Any], values: Sequence[Any]) -> list[torch.Tensor]:
    """The outputs that may have gradients. Each call draws the same numbers, and may change its arguments in place."""
    torch.manual_seed(0)
    random.seed(0)
    result = apply(*[value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value) for value in values])
    outputs = result if isinstance(result, tuple) else (result,)
    return [output for output in outputs if isinstance(output, torch.Tensor) and output.is_floating_point()]


def _double(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    copied = detached(value).clone(memory_format=torch.contiguous_format)
    return copied.double() if copied.is_floating_point() else copied


def _is_checked(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad and value.is_floating_point()
