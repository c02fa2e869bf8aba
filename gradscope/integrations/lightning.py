"""Lightning: a callback that explains the first steps of `Trainer.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:  # the same library under its older name
    from pytorch_lightning.callbacks import Callback

from gradscope.integrations.watch import FailOn, Watch
from gradscope.reports.report import Report


class GradscopeCallback(Callback):
    """Observes the first `steps` optimizer steps of a fit, then steps out and tells what it saw.

        callback = GradscopeCallback()
        Trainer(callbacks=[callback]).fit(model, data)
        callback.report

    Automatic and manual optimisation, accumulated gradients and several optimizers are counted as they step. The
    report is handed as text to `log` (None: to nobody) in the process of rank 0. With `fail_on`, a finding of that
    severity or worse raises `gradscope.reports.report.FindingsRaised` out of `fit`. `select` and `ignore` are rules.
    What ends a fit before its time, an exception or Ctrl-C, is explained in the report as well.
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
        self._stepped = 0

    @property
    def report(self) -> Report | None:
        """The report; None until the observation has ended."""
        return self._watch.report

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The model lies on its device and its optimizers are made."""
        self._stepped = trainer.global_step
        self._watch.begin(pl_module, trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a batch in which some optimizer has stepped."""
        if self._watch.running() and trainer.global_step > self._stepped:
            self._stepped = trainer.global_step
            self._watch.step(tell=trainer.is_global_zero)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The fit was shorter than the steps that were asked for."""
        self._watch.end(tell=trainer.is_global_zero)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Something was raised, by the user's code or by another callback."""
        self._watch.end(exception, tell=trainer.is_global_zero)
