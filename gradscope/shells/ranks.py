"""One report of a run in several processes: rank 0 speaks for all, and a rank that rank 0 cannot hear for itself."""

from __future__ import annotations

import sys
from typing import TextIO

import msgspec

from gradscope.probes.program.exchange import Exchange, Place
from gradscope.probes.program.scripts import Outcome
from gradscope.reports.merging import Others, RankReport, rank_report, read_rank
from gradscope.reports.report import Report
from gradscope.shells.commands.delivery import Delivery
from gradscope.shells.commands.streams import colours


class Ranks:
    """The part of one rank in the merged report."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.exchange = Exchange(place)

    def begin(self) -> None:
        """The script has ended."""
        self.exchange.begin()

    def end(self) -> None:
        """Everything is told."""
        self.exchange.end()

    def deliver(self, delivery: Delivery, outcome: Outcome, stream: TextIO | None) -> int:
        """On rank 0 hand the merged report over, elsewhere hand this rank's to rank 0.

        Returns 1 on rank 0 where there is a finding at the level of `--fail-on`, else 0. A rank whose script raised,
        and of which rank 0 does not speak in time, tells its report on standard error.
        """
        report = Report.of(outcome.run, delivery.select, delivery.ignore)
        if self.place.rank == 0:
            others = self._others(outcome.error is not None)
            failed = delivery.hand_over(report.with_ranks(others), stream)
            self.exchange.told(other.rank for other in others.reports)
            return failed
        self.exchange.post(rank_report(self.place.rank, report.document, report.findings, report.run.sources))
        if outcome.error is not None and not self.exchange.is_told():
            colour = colours(sys.stderr, delivery.colour)
            sys.stderr.write(f"gradscope: the report of rank {self.place.rank}, which rank 0 did not take:\n")
            sys.stderr.write(report.to_text(every_row=delivery.every_row, colour=colour))
            sys.stderr.flush()
        return 0

    def _others(self, raised: bool) -> Others:
        found = self.exchange.gather(raised, lambda data: _read(data) is None or _raised(data))
        reports = [read for data in found.values() if (read := _read(data)) is not None]
        return Others(self.place.world, tuple(sorted(reports, key=lambda report: report.rank)))


def _read(data: bytes) -> RankReport | None:
    try:
        return read_rank(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _raised(data: bytes) -> bool:
    report = _read(data)
    return report is not None and report.exception is not None
