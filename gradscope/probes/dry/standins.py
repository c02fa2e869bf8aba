"""What stood in for what in a dry run, counted by line."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradscope.graph.facts import StandIn
from gradscope.probes.forward.callsites import CallSites, Site

_MOST = 50  # lines that are told of each kind: what comes after them is counted with the last


@dataclass
class StandIns:
    """Counts what was asked for and what was given in its place, by the user's line."""

    sites: CallSites
    counts: dict[tuple[str, str, Site | None], int] = field(default_factory=dict)

    def note(self, what: str, instead: str) -> None:
        """Something was taken for something else at the running line of the user's."""
        key = (what, instead, self.sites.caller())
        if key not in self.counts and len(self.counts) >= _MOST:
            key = (what, instead, None)
        self.counts[key] = self.counts.get(key, 0) + 1

    def facts(self) -> tuple[StandIn, ...]:
        """What was noted, in its order."""
        lines: dict[tuple[str, str, str | None, int | None], StandIn] = {}
        for (what, instead, site), count in self.counts.items():
            span = self.sites.span(site) if site is not None else None
            place = (span.file, span.line) if span is not None else (None, None)
            key = (what, instead, *place)
            before = lines[key].count if key in lines else 0
            lines[key] = StandIn(what, instead, before + count, span)
        return tuple(lines.values())
