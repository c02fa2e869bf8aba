"""An observation that callbacks begin, count and end, while somebody else runs the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from gradscope.graph.facts import Severity
from gradscope.probes.observation import Observation
from gradscope.probes.program.scripts import crash_of
from gradscope.reports.report import ORDER, Report
from gradscope.rules import chosen

FailOn = Severity | Literal["never"]


class Watch:
    """Observes the first `steps` optimizer steps of a training, then takes every probe out.

    The report is held as `report`, and handed as text to `log` (None: to nobody). With a finding of the severity
    `fail_on` or worse, `step` and `end` raise FindingsRaised. `select` and `ignore` are names of rules.
    Raises ValueError if `steps` is less than 1 or there is no such severity, and UnknownRule.
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
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if fail_on not in (*ORDER, "never"):
            raise ValueError(f"fail_on must be one of {', '.join((*ORDER, 'never'))}, not {fail_on!r}")
        self.select, self.ignore = tuple(select), tuple(ignore)
        chosen(self.select, self.ignore)
        self.steps = steps
        self.fail_on: FailOn = fail_on
        self.log = log
        self.report: Report | None = None
        self._observation: Observation | None = None
        self._left = 0

    def running(self) -> bool:
        """Whether the probes are in."""
        return self._observation is not None

    def begin(self, model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Put the probes in. A report of an earlier training is forgotten."""
        self.stop()
        self.report = None
        self._left = self.steps
        observation = Observation({})
        observation.add_model(model)
        for optimizer in optimizers:
            observation.add_optimizer(optimizer)
        observation.start()
        self._observation = observation

    def step(self, *, tell: bool = True) -> None:
        """An optimizer has stepped; after the last one that was asked for, the observation ends as by `end`."""
        self._left -= 1
        if self._left <= 0:
            self.end(tell=tell)

    def end(self, error: BaseException | None = None, *, tell: bool = True) -> None:
        """Take the probes out and make the report; `error` is what ended the training before its time.

        Without `tell` the report is not handed to `log`. With an `error`, nothing else is raised. Does nothing where
        the observation has ended already.
        """
        observation = self._observation
        if observation is None:
            return
        self.stop()
        if error is None:
            run = observation.run()
        elif isinstance(error, KeyboardInterrupt):
            run = observation.run("interrupt")
        else:
            run = observation.run("exception", crash=crash_of(error, observation))
        self.report = Report.of(run, self.select, self.ignore)
        if tell and self.log is not None:
            self.log(str(self.report))
        if error is None and self.fail_on != "never":
            self.report.raise_for_findings(self.fail_on)

    def stop(self) -> None:
        """Take the probes out, without a report."""
        observation, self._observation = self._observation, None
        if observation is not None:
            observation.stop()
