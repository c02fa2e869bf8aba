"""What is told while a script still runs: findings that are sure, once each, and in silence how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable

from gradscope.graph.facts import Finding
from gradscope.probes.observation import Observation
from gradscope.probes.training.optimizers import FindingReached
from gradscope.reports.escaping import shown
from gradscope.reports.report import Report
from gradscope.shells.lines import Lines

_FIRST_LOOK = 8
_SLOW = 20.0  # seconds after which a run is looked at that has not come to the next look by its steps
_FEWEST = 2  # steps; before, what is not there yet may come
_SILENT = 10.0  # seconds without a word after which somebody may ask himself whether the script still runs
_RECORD = 1e-4  # seconds that freezing and judging take for each operation or node that is kept, measured
_FREE, _SHARE = 0.5, 0.05  # looks may always take so many seconds, and so much of the time that the run has taken


class Live:
    """Looks at a run after 8 steps, 16, 32 and so on, and where its steps are slow after some time.

    What two looks in a row have found is told, and is taken back where a later phase of the program proves it wrong:
    when what was to be trained gets its gradient. A look goes through all that is kept of the run. Where that is much,
    it waits until it is a small share of the run.

    A run for which nobody has written anything for long tells how far it has come, where `progress` asks for it.
    `until` says which findings end the program once they are told.
    """

    def __init__(
        self,
        lines: Lines | None,
        select: tuple[str, ...] = (),
        ignore: tuple[str, ...] = (),
        *,
        progress: bool = False,
        until: Callable[[Finding], bool] | None = None,
    ) -> None:
        self._lines = lines
        self.select, self.ignore = select, ignore
        self.told: dict[tuple[object, ...], Finding] = {}
        self._until = until
        self._before: set[tuple[object, ...]] = set()
        self._look = _FIRST_LOOK
        self._began = time.monotonic()
        self._due = _SLOW
        self._spent = 0.0  # seconds that looks have taken, as estimated
        self._silence = _SILENT if progress and lines is not None else float("inf")

    def step(self, observation: Observation) -> None:
        """A step has ended. Raises FindingReached where the program is to end at what was found."""
        steps, seconds = observation.steps_so_far, time.monotonic() - self._began
        if (steps >= self._look or (seconds >= self._due and steps >= _FEWEST)) and self._may_look(
            observation, seconds
        ):
            self._look = max(_FIRST_LOOK, 2 * steps)
            self._due = seconds + max(_SLOW, seconds / 2)
            self._tell(steps, Report.of(observation.run(confirm=False), self.select, self.ignore).findings)
        if seconds >= self._silence:
            self._progress(steps, seconds)

    def _may_look(self, observation: Observation, seconds: float) -> bool:
        spent = self._spent + _RECORD * observation.tape.records_kept()
        if spent > max(_FREE, _SHARE * seconds):
            return False
        self._spent = spent
        return True

    def _tell(self, steps: int, findings: tuple[Finding, ...]) -> None:
        found = {_key(finding): finding for finding in findings if finding.severity != "info"}
        for key, finding in found.items():
            if key in self._before and key not in self.told:
                self.told[key] = finding
                self._say(f"gradscope: step {steps}: {finding.severity}[{finding.rule}]{_said(finding)}")
        suffering = {name for finding in found.values() for name in finding.tensors}
        for key in [key for key in self.told if key not in found]:
            finding = self.told[key]
            if suffering.isdisjoint(finding.tensors):  # else it is told in another way
                del self.told[key]
                self._say(f"gradscope: step {steps}: no longer so: {finding.rule}{_said(finding)}")
        self._before = set(found)
        if self._until is not None and any(map(self._until, self.told.values())):
            raise FindingReached(0)

    def _progress(self, steps: int, seconds: float) -> None:
        """Tell how far the run has come, twice as long after the last time, unless the script speaks for itself."""
        assert self._lines is not None
        if time.monotonic() - self._lines.last < _SILENT or not self._lines.tell():
            return
        self._silence = 2 * seconds
        count = len(self.told)
        findings = "1 finding" if count == 1 else f"{count} findings"
        self._say(f"gradscope: {steps:,} steps, {findings}, {seconds:.0f} s")

    def _say(self, line: str) -> None:
        if self._lines is not None:
            self._lines.put(line)


def _said(finding: Finding) -> str:
    place = f" {finding.span.file}:{finding.span.line}" if finding.span is not None else ""
    return shown(f"{place}: {finding.message}")


def _key(finding: Finding) -> tuple[object, ...]:
    span = finding.span
    return finding.rule, span.file if span is not None else "", span.line if span is not None else 0
