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
from gradscope.probes.backward.nonfinite import settle, withheld
from gradscope.probes.program.tracebacks import hide
from gradscope.probes.records import OptimizerMark
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.tensors.shards import has_values


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
            before = (mark.steps, mark.withheld) if mark is not None else (0, 0)
            try:
                result = original(self, optimizer, *args, **kwargs)
            except BaseException as error:
                hide(error)
                raise
            if mark is not None:
                _after_step(tape, self, mark, before)
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


def _after_step(tape: Tape, scaler: GradScaler, mark: OptimizerMark, before: tuple[int, int]) -> None:
    """A step through a scaler is over: note whether it was taken. A fused one notes itself that it did nothing."""
    steps, withheld = before
    if mark.steps == steps:
        if mark.withheld == withheld:
            note_withheld(tape, mark, _scale(scaler))
        else:
            mark.scale = _scale(scaler)


def note_withheld(tape: Tape, mark: OptimizerMark, scale: float | None) -> None:
    """A step of an optimizer was not taken: it ends here, and its gradients are counted, but nothing has used them."""
    try:
        with unobserved():
            mark.withheld += 1
            mark.in_a_row += 1
            mark.withheld_at = tape.sites.caller()
            mark.scale, mark.moment = scale, None
            for subject in mark.subjects.values():
                course = tape.course(subject)
                if course.optimizer == mark.serial:
                    course.withhold()
            if mark.in_a_row == 1:
                mark.withheld_event = None
            mark.withheld_event = mark.withheld_event or withheld(tape)
            settle(tape)
            tape.note(Withheld(tape.next_operation(), mark.withheld_at, mark.serial, scale))
            tape.end_step(mark.serial, mark.withheld_at)
    except Exception as error:
        tape.fail("scaler probe", error)
