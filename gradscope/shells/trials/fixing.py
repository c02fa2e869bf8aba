"""Trying mends one after the other: each that helps is kept, and the next finding is looked at with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from gradscope.graph.facts import Finding, Help, Trial
from gradscope.reports.report import Report
from gradscope.rules import chosen, next_causes
from gradscope.shells.trials.files import Source, Unmendable, mended, read
from gradscope.shells.trials.outcome import is_same, outcome
from gradscope.shells.trials.runs import NotRun, Wanted, run

# Findings of one program that are looked at; mends that bring up new findings for ever end here.
_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Tried:
    """A finding whose mends were tried, with the lines of the sources that it stands in; `helped` says if one did."""

    finding: Finding
    sources: Mapping[str, Mapping[int, str]]
    helped: bool


@dataclass(slots=True)
class Fixing:
    """Mends of one program that are being tried.

    `seen` are the files of the user's as they ran, `now` with all mends that helped, and `report` is the one with them.
    """

    wanted: Wanted
    report: Report
    folder: Path
    timeout: float
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    tell: Callable[[str], None] = field(default=lambda _: None)
    seen: dict[str, Source] = field(init=False)
    now: dict[str, Source] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = dict(self._sources())
        self.now = self.seen

    def _sources(self) -> Iterator[tuple[str, Source]]:
        """The files that are still as they ran."""
        for file in self.report.run.whole:
            try:
                source = read(file, self.folder)
            except Unmendable:
                continue
            if source.numbered == self.report.run.sources.get(file):
                yield file, source

    @property
    def changed(self) -> dict[str, Source]:
        """The files that the mends which helped have changed."""
        return {file: source for file, source in self.now.items() if source != self.seen[file]}

    def all(self, rules: tuple[str, ...] = ()) -> list[Tried]:
        """Try the mends of all findings, or of those of some rules, until none is left that was not looked at."""
        found: list[Tried] = []
        for _ in range(_ROUNDS):
            waiting = (
                finding
                for finding in self.report.at_least("warning")
                if (not rules or finding.rule in rules) and not any(is_same(tried.finding, finding) for tried in found)
            )
            finding = next(waiting, None)
            if finding is None:
                break
            found += self.one(finding)
        return found

    def one(self, finding: Finding) -> list[Tried]:
        """Try the mends of one finding, and where none helps those of the next causes of the same trouble."""
        found: list[Tried] = []
        for cause in (finding, *next_causes(self.report.run, finding, chosen(self.select, self.ignore))):
            sources = self.report.run.sources
            tried = self._cause(cause, finding)
            if cause is finding or any(help_.tried is not None for help_ in tried.help):
                helped = any(help_.tried is not None and _is_good(help_.tried) for help_ in tried.help)
                found.append(Tried(tried, sources, helped))
                if helped or not any(help_.tried is not None for help_ in tried.help):
                    break
        return found

    def _cause(self, cause: Finding, trouble: Finding) -> Finding:
        """A finding with what came of its mends; after one that helps, the others are not tried."""
        helps = list(cause.help)
        for number, help_ in enumerate(helps):
            files = {edit.span.file for edit in help_.edits}
            if not files or not files <= self.now.keys():
                continue
            helps[number] = replace(help_, tried=self._try(help_, trouble))
            tried = helps[number].tried
            if tried is not None and _is_good(tried):
                break
        return replace(cause, help=tuple(helps))

    def _try(self, help_: Help, trouble: Finding) -> Trial:
        self.tell(f"trying: {help_.message}")
        sources = mended(self.now, help_.edits)
        changed = {str(self.folder / file): s.content for file, s in sources.items() if s != self.seen[file]}
        try:
            ran = run(replace(self.wanted, changed=changed), timeout=self.timeout)
        except NotRun:
            return Trial("broke", "then the program cannot be run")
        after = Report.of(ran.run, self.select, self.ignore) if ran.run is not None else None
        trial = outcome(trouble, self.report, after, self.timeout)
        if _is_good(trial) and after is not None:
            self.now, self.report = sources, after
        return trial


def with_first_tried(report: Report, fixing: Fixing) -> Report:
    """A report with the mends of its first finding tried; of its next causes, the one whose mend helps comes along."""
    first = next(iter(report.at_least("warning")), None)
    if first is None:
        return report
    tried = fixing.one(first)
    found = [each.finding for each in tried if each.finding.rule == first.rule or each.helped]
    rest = [finding for finding in report.findings if finding is not first]
    return dataclasses.replace(report, findings=(*found, *rest))


def _is_good(trial: Trial) -> bool:
    return trial.outcome in ("mended", "helped")
