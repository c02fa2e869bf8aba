"""GradScaler: when it divides gradients by its scale, and which steps it leaves out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler, OptState
from torch.compiler import is_compiling

from gradscope.graph.events import Unscaled, Withheld
from gradscope.probes.patches import patched
from gradscope.probes.quiet import unobserved
from gradscope.probes.records import OptimizerMark
from gradscope.probes.shards import has_values
from gradscope.probes.tape import Tape
from gradscope.probes.tracebacks import hide


@contextmanager
def watch_scalers(tape: Tape) -> Iterator[None]:
    """Follow every GradScaler that is enabled."""

    def wrap_unscale(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def unscale_(self: GradScaler, optimizer: torch.optim.Optimizer) -> Any:
            try:
                result = original(self, optimizer)
            except BaseException as error:
                hide(error)
                raise
            if tape.active and not is_compiling() and self.is_enabled():
                _unscaled(tape, self, optimizer)
            return result

        return unscale_

    def wrap_step(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def step(self: GradScaler, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            mark = None
            if tape.active and not is_compiling() and self.is_enabled():
                mark = _before_step(tape, self, optimizer)
            steps = mark.steps if mark is not None else 0
            try:
                result = original(self, optimizer, *args, **kwargs)
            except BaseException as error:
                hide(error)
                raise
            if mark is not None:
                _after_step(tape, self, optimizer, mark, steps)
            return result

        return step

    with patched(GradScaler, "unscale_", wrap_unscale), patched(GradScaler, "step", wrap_step):
        yield


def _scale(scaler: GradScaler) -> float | None:
    scale = vars(scaler).get("_scale")
    return float(scale) if isinstance(scale, torch.Tensor) and has_values(scale) else None


def _unscaled(tape: Tape, scaler: GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """What an optimizer holds has been divided by the scale."""
    try:
        with unobserved():
            mark = tape.optimizer_mark(optimizer)
            if mark is None:
                return
            scale = _scale(scaler)
            for subject in mark.subjects.values():
                account = subject.course.account if subject.course is not None else None
                if account is not None and account.clips is not None:
                    account.clips.unscale(scale)
            tape.note(Unscaled(tape.next_operation(), tape.sites.here(), mark.serial, scale))
    except Exception as error:
        tape.fail("scaler probe", error)


def _before_step(tape: Tape, scaler: GradScaler, optimizer: torch.optim.Optimizer) -> OptimizerMark | None:
    """A step through a scaler; a fused optimizer divides by the scale itself."""
    mark = tape.optimizer_mark(optimizer)
    if mark is not None and _is_fused(optimizer) and _state(scaler, optimizer).get("stage") is not OptState.UNSCALED:
        _unscaled(tape, scaler, optimizer)
    return mark


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(vars(optimizer).get("_step_supports_amp_scaling", False))


def _state(scaler: GradScaler, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a scaler remembers of an optimizer since its last `update`."""
    states = vars(scaler).get("_per_optimizer_states") or {}
    return dict(states[id(optimizer)]) if id(optimizer) in states else {}


def _after_step(
    tape: Tape, scaler: GradScaler, optimizer: torch.optim.Optimizer, mark: OptimizerMark, steps: int
) -> None:
    """A step through a scaler is over: note whether it was taken. A fused optimizer runs, and leaves it out inside."""
    try:
        with unobserved():
            found = _state(scaler, optimizer).get("found_inf_per_device") or {}
            withheld = mark.steps == steps or (
                _is_fused(optimizer) and any(has_values(each) and float(each) for each in found.values())
            )
            mark.scaled(withheld, tape.sites.here())
            if withheld:
                tape.note(Withheld(tape.next_operation(), mark.withheld_at, mark.serial, _scale(scaler)))
    except Exception as error:
        tape.fail("scaler probe", error)
