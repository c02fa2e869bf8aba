"""What is told while a script still runs: findings that are sure, once each, and on a terminal how far it has come."""

from __future__ import annotations

import time
from typing import TextIO

from gradscope.graph.facts import Finding
from gradscope.probes.observation import Observation
from gradscope.reports.escaping import shown
from gradscope.reports.report import Report

_FIRST_LOOK = 8
_SLOW = 2.0  # seconds after which a run is long enough for a line of progress
_PAUSE = 0.5
_RECORD = 1e-4  # seconds that freezing and judging take for each operation or node that is kept, measured
_FREE, _SHARE = 0.5, 0.05  # looks may always take so many seconds, and so much of the time that the run has taken


class Live:
    """Looks at a run after 8 steps, 16, 32 and so on. What two looks in a row have found is told.

    A look goes through all that is kept of the run. Where that is much, it waits until it is a small share of the run.
    It is taken back where a later phase of the program proves it wrong: when what was to be trained gets its gradient.

    The line of progress ends where it began, so that what the script prints next overwrites it.
    """

    def __init__(self, stream: TextIO, select: tuple[str, ...] = (), ignore: tuple[str, ...] = ()) -> None:
        self.stream = stream
        self.select, self.ignore = select, ignore
        self.told: dict[tuple[object, ...], Finding] = {}
        self._before: set[tuple[object, ...]] = set()
        self._look = _FIRST_LOOK
        self._began = self._shown = time.monotonic()
        self._spent = 0.0  # seconds that looks have taken, as estimated
        self._drawn = False
        self._terminal = stream.isatty()

    def step(self, observation: Observation) -> None:
        """A step has ended."""
        steps, now = observation.steps_so_far, time.monotonic()
        if steps >= self._look and self._may_look(observation, now - self._began):
            self._look = 2 * steps
            self._tell(steps, Report.of(observation.run(confirm=False), self.select, self.ignore).findings)
            now = time.monotonic()
        if self._terminal and now - self._began >= _SLOW and now - self._shown >= _PAUSE:
            self._shown = now
            self._progress(steps, now - self._began)

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
                self._write(f"gradscope: step {steps}: {finding.severity}[{finding.rule}]{_said(finding)}\n")
        suffering = {name for finding in found.values() for name in finding.tensors}
        for key in [key for key in self.told if key not in found]:
            finding = self.told[key]
            if suffering.isdisjoint(finding.tensors):  # else it is told in another way
                del self.told[key]
                self._write(f"gradscope: step {steps}: no longer so: {finding.rule}{_said(finding)}\n")
        self._before = set(found)

    def _progress(self, steps: int, seconds: float) -> None:
        count = len(self.told)
        findings = "1 finding" if count == 1 else f"{count} findings"
        self._write(f"gradscope: {steps:,} steps, {findings}, {seconds:.0f} s\r")
        self._drawn = True

    def end(self) -> None:
        """Take the line of progress away."""
        if self._drawn:
            self._write("")
        self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(("\x1b[K" if self._terminal else "") + text)
            self.stream.flush()
        except (OSError, ValueError):
            self._look = self._shown = float("inf")  # type: ignore[assignment]  # nobody reads it any more


def _said(finding: Finding) -> str:
    place = f" {finding.span.file}:{finding.span.line}" if finding.span is not None else ""
    return shown(f"{place}: {finding.message}")


def _key(finding: Finding) -> tuple[object, ...]:
    span = finding.span
    return finding.rule, span.file if span is not None else "", span.line if span is not None else 0
