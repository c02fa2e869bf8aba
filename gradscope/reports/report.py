"""The report that users hold in their hands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Finding, Run, Severity
from gradscope.reports.document import Document, GraphSize, TensorRow, document
from gradscope.reports.text import text
from gradscope.rules import chosen, judge

if TYPE_CHECKING:
    from gradscope.reports.dot import Style

_ORDER: tuple[Severity, ...] = ("info", "warning", "error")


class FindingsRaised(GradscopeError):
    """Raised by `Report.raise_for_findings`; its text is the explanation."""

    exit_code = 1


@dataclass(frozen=True)
class Report:
    """What gradscope has to say about a run. `str(report)` is the report as text."""

    run: Run
    findings: tuple[Finding, ...]
    failures: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Report:
        """Judge a run by all rules, or by those selected and not ignored. Raises UnknownRule."""
        return cls(run, *judge(run, chosen(select, ignore)))

    @cached_property
    def document(self) -> Document:
        """The report as data, in the shape of its JSON."""
        return document(self.run, self.findings, self.failures)

    @property
    def tensors(self) -> tuple[TensorRow, ...]:
        """The tensors that have a name: role, leaf or not, gradients that arrived, how far they moved."""
        return self.document.tensors

    @property
    def graph(self) -> GraphSize:
        """How large the graph is."""
        return self.document.graph

    @property
    def ok(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.at_least("warning")

    def at_least(self, level: Severity) -> tuple[Finding, ...]:
        """The findings of this severity or worse."""
        return tuple(finding for finding in self.findings if _ORDER.index(finding.severity) >= _ORDER.index(level))

    def raise_for_findings(self, level: Severity = "error") -> None:
        """Raise FindingsRaised with the explanation if there is a finding of this severity or worse."""
        if self.at_least(level):
            raise FindingsRaised(str(self))

    def to_json(self) -> str:
        """The report as JSON, schema `gradscope.report/1`."""
        return msgspec.json.format(msgspec.json.encode(self.document), indent=1).decode()

    def to_text(self, *, every_row: bool = False, colour: bool = False) -> str:
        """The report as text."""
        return text(self.run, self.findings, self.document, every_row=every_row, colour=colour)

    def to_html(self) -> str:
        """The report as one HTML page: findings, table, charts and the graph, to be opened without any network."""
        from gradscope.reports.html import to_html

        return to_html(self.run, self.findings, self.document)

    def render(
        self,
        path: str | Path,
        style: Style = "gradscope",
        *,
        depth: int | None = None,
        open: Sequence[str] = (),  # noqa: A002 - the word of the command line
    ) -> None:
        """Draw the graph as `.png`, `.svg`, `.pdf` or `.dot`, or write the page as `.html`; see `gradscope.render`."""
        from gradscope.reports.drawing import draw_run, write_page

        if Path(path).suffix.lower() == ".html":
            write_page(self.to_html(), Path(path))
            return
        draw_run(self.run, Path(path), self.findings, style, depth=depth, opened=open)

    def __str__(self) -> str:
        return self.to_text()
