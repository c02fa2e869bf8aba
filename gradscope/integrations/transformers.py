"""transformers: a callback that explains the first steps of `Trainer.train`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback

from gradscope.integrations.watch import FailOn, Watch
from gradscope.reports.report import Report


class GradscopeCallback(TrainerCallback):
    """Observes the first `steps` optimizer steps of a training, then steps out and tells what it saw.

        callback = GradscopeCallback()
        Trainer(model=model, args=args, train_dataset=data, callbacks=[callback]).train()
        callback.report

    The report is handed as text to `log` (None: to nobody) in the process of rank 0. With `fail_on`, a finding of that
    severity or worse raises `gradscope.reports.report.FindingsRaised` out of `train`. `select` and `ignore` are rules.
    An exception of a training step is explained in the report as well.
    """

    def __init__(
        self,
        steps: int = 20,
        *,
        fail_on: FailOn = "never",
        log: Callable[[str], object] | None = print,
        select: Iterable[str] = (),
        ignore: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self._watch = Watch(steps, fail_on=fail_on, log=log, select=select, ignore=ignore)
        self._unguard: Callable[[], None] = _nothing

    @property
    def report(self) -> Report | None:
        """The report; None until the observation has ended."""
        return self._watch.report

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer is made, the loop is about to begin."""
        optimizer = kwargs["optimizer"]
        self._unguard()
        self._watch.begin(kwargs["model"], [getattr(optimizer, "optimizer", optimizer)])  # past accelerate's wrapper
        trainer = _trainer(sys._getframe(1))
        if trainer is not None:
            self._unguard = _guarded(trainer, self._watch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer has stepped."""
        if self._watch.running():
            try:
                self._watch.step(tell=state.is_world_process_zero)
            finally:
                if not self._watch.running():
                    self._unguard()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The training was shorter than the steps that were asked for."""
        self._unguard()
        self._watch.end(tell=state.is_world_process_zero)


def _nothing() -> None:
    """There is no guard to take away."""


def _trainer(frame: FrameType | None) -> Trainer | None:
    """The trainer that calls its callbacks now: it does not hand itself to them."""
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back
    return None


def _guarded(trainer: Trainer, watch: Watch) -> Callable[[], None]:
    """End the observation where a training step raises, which callbacks are not told; gives what undoes this."""
    original = trainer.training_step
    before = vars(trainer).get("training_step")

    @functools.wraps(original)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            undo()
            watch.end(error, tell=trainer.is_world_process_zero())
            raise

    def undo() -> None:
        if vars(trainer).get("training_step") is not training_step:
            return
        if before is None:
            del trainer.training_step
        else:
            trainer.training_step = before

    trainer.training_step = training_step
    return undo
