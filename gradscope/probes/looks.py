"""What is looked at in one pass of the engine besides what arrives: values that are not finite, and profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from gradscope.probes.backward.nonfinite import Watch, judge_failed_pass, judge_pass, watch_pass
from gradscope.probes.backward.profiles import Profiling, profile_pass

if TYPE_CHECKING:
    from gradscope.probes.records import BackwardRecord
    from gradscope.probes.tape import Tape


class PassLook:
    """The hooks that are in the graph while a pass runs, if there is a reason for any."""

    __slots__ = ("profiling", "record", "watch")

    def __init__(self, record: BackwardRecord, watch: Watch | None, profiling: Profiling | None) -> None:
        self.record = record
        self.watch = watch
        self.profiling = profiling

    def finish(self, tape: Tape) -> None:
        """The pass is over, and what arrived is known."""
        if self.profiling is not None:
            self.profiling.finish(tape)
        arrived = [(subject, tape.course(subject).norm) for subject in self.record.arrivals]
        judge_pass(tape, self.record, self.watch, arrived)

    def fail(self, tape: Tape, roots: Sequence[torch.Tensor]) -> None:
        """The pass has raised."""
        try:
            judge_failed_pass(tape, self.record, self.watch, roots)
        finally:
            for part in (self.watch, self.profiling):
                if part is not None:
                    part.remove()


def look_at_pass(
    tape: Tape, record: BackwardRecord, roots: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> PassLook:
    """Decide what to look at in a pass that is about to run; without `inputs`, it goes on to all leaves."""
    return PassLook(record, watch_pass(tape, record, roots), profile_pass(tape, roots, inputs))
