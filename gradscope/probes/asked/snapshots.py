"""Putting a program's state back: values, gradients, optimizers, schedulers and random numbers."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradscope.probes.program.scopes import is_constant
from gradscope.probes.tensors.attributes import gradient_of
from gradscope.probes.tensors.quiet import detached, unobserved

_Undo = Callable[[], None]


def reachable(step: object, variables: Mapping[str, Any]) -> list[Any]:
    """The objects that a step can get at by name: the variables around it, what it closes over, what it is bound to."""
    found = list(variables.values())
    bound = getattr(step, "__self__", None)
    if bound is not None:
        found += [bound, *vars(bound).values()] if hasattr(bound, "__dict__") else [bound]
    function = getattr(step, "__func__", step)
    if isinstance(function, FunctionType):
        found += function.__globals__.values()
        for cell in function.__closure__ or ():
            try:
                found.append(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
    return found


def snapshot(objects: Iterable[Any]) -> _Undo:
    """Remember modules, optimizers, schedulers, leaves that require grad and random states; the result undoes all."""
    undo: list[_Undo] = [_random_states()]
    seen: set[int] = set()
    with unobserved():
        for item in objects:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, torch.nn.Module):
                undo += _module(item, seen)
            elif isinstance(item, Optimizer):
                undo += [_optimizer(item)]
                undo += [_tensor(p, seen) for group in item.param_groups for p in group["params"]]
            elif isinstance(item, LRScheduler):
                undo.append(_scheduler(item))
            elif isinstance(item, torch.Tensor) and item.requires_grad and item.is_leaf:
                seen.discard(id(item))
                undo.append(_tensor(item, seen))

    def restore() -> None:
        with unobserved():
            for step in reversed(undo):
                step()

    return restore


def _module(module: torch.nn.Module, seen: set[int]) -> list[_Undo]:
    modes = [(part, part.training) for part in module.modules() if not is_constant(part)]

    def set_modes() -> None:
        for part, training in modes:
            part.training = training

    return [set_modes, *(_tensor(tensor, seen) for tensor in (*module.parameters(), *module.buffers()))]


def _tensor(tensor: torch.Tensor, seen: set[int]) -> _Undo:
    if id(tensor) in seen:
        return _nothing
    seen.add(id(tensor))
    value, wanted, gradient = detached(tensor).clone(), tensor.requires_grad, gradient_of(tensor)
    kept = detached(gradient).clone() if gradient is not None else None

    def restore() -> None:
        tensor.requires_grad_(wanted)
        tensor.data.copy_(value)
        tensor.grad = gradient
        if gradient is not None and kept is not None and gradient.layout is torch.strided:
            gradient.data.copy_(kept)

    return restore


def _nothing() -> None:
    """Remembered already."""


def _optimizer(optimizer: Optimizer) -> _Undo:
    state = {owner: copy.deepcopy(kept) for owner, kept in optimizer.state.items()}
    groups = [(group, list(group["params"]), dict(group)) for group in optimizer.param_groups]

    def restore() -> None:
        optimizer.state.clear()
        optimizer.state.update(state)
        optimizer.param_groups[:] = [group for group, _, _ in groups]
        for group, tensors, options in groups:
            group.clear()
            group.update(options, params=tensors)

    return restore


def _scheduler(scheduler: LRScheduler) -> _Undo:
    state = copy.deepcopy(scheduler.state_dict())
    return lambda: scheduler.load_state_dict(state)


def _random_states() -> _Undo:
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (random.setstate, random.getstate()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_available():
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states.append((numpy.random.set_state, numpy.random.get_state()))

    def restore() -> None:
        for put, state in states:
            put(state)

    return restore
