"""Steps that a GradScaler withholds since gradients are not finite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.optim import Optimizer

from gradscope.probes.nonfinite import settle, withheld
from gradscope.probes.patches import patched
from gradscope.probes.quiet import unobserved
from gradscope.probes.records import OptimizerMark
from gradscope.probes.tape import Tape
from gradscope.probes.tracebacks import hidden


def watch_scalers(tape: Tape) -> AbstractContextManager[None]:
    """See after each step through a GradScaler whether the optimizer has made one."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def maybe_opt_step(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            mark = tape.optimizer_mark(optimizer) if tape.active else None
            steps = mark.steps if mark is not None else 0
            with hidden:
                result = original(self, optimizer, *args, **kwargs)
            if tape.active and mark is not None and mark.steps == steps:
                note_withheld(tape, mark, self.get_scale())
            return result

        return maybe_opt_step

    return patched(torch.amp.GradScaler, "_maybe_opt_step", wrap)


def note_withheld(tape: Tape, mark: OptimizerMark, scale: float | None) -> None:
    """A step of an optimizer was not taken: it ends here, and its gradients are counted, but nothing has used them."""
    try:
        with unobserved():
            mark.withheld += 1
            mark.withheld_in_a_row += 1
            mark.withheld_at = tape.sites.caller()
            mark.scale, mark.moment = scale, None
            for subject in mark.subjects.values():
                course = tape.course(subject)
                if course.optimizer == mark.serial:
                    course.withhold()
            if mark.withheld_in_a_row == 1:
                mark.withheld_event = None
            mark.withheld_event = mark.withheld_event or withheld(tape)
            settle(tape)
            tape.end_step(mark.serial, mark.withheld_at)
    except Exception as error:
        tape.fail("scaler probe", error)
