"""The report that users hold in their hands."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Finding, Run, Severity
from gradscope.graph.texts import encoded
from gradscope.reports.document import Document, GraphSize, TensorRow, document
from gradscope.reports.escaping import printable_json, shown
from gradscope.reports.frames import WIDTH
from gradscope.reports.merging import Others, merged, merged_findings, merged_sources
from gradscope.reports.text import text
from gradscope.rules import chosen, judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradscope.reports.dot import Style
    from gradscope.reports.tensorboard import Writer

ORDER: tuple[Severity, ...] = ("info", "warning", "error")


class FindingsRaised(GradscopeError):
    """Raised by `Report.raise_for_findings`; its text is the explanation."""

    exit_code = 1


@dataclass(frozen=True, repr=False)
class Report:
    """What gradscope has to say about a run. `str(report)` is the report as text."""

    run: Run
    findings: tuple[Finding, ...]
    failures: tuple[str, ...] = ()
    others: Others | None = None
    not_asked: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Report:
        """Judge a run by all rules, or by those selected and not ignored. Raises UnknownRule."""
        judgement = judge(run, chosen(select, ignore))
        not_asked = {rule.name: need.value for rule, need in judgement.not_asked}
        return cls(run, judgement.findings, judgement.failures, not_asked=not_asked)

    def with_ranks(self, others: Others) -> Report:
        """The report of rank 0 with what the other ranks found."""
        run = replace(self.run, sources=merged_sources(self.run.sources, others))
        return Report(run, merged_findings(self.findings, others), self.failures, others, self.not_asked)

    @cached_property
    def document(self) -> Document:
        """The report as data, in the shape of its JSON."""
        own = document(self.run, self.findings, self.failures, self.not_asked)
        return merged(own, self.others) if self.others is not None else own

    @property
    def tensors(self) -> tuple[TensorRow, ...]:
        """The tensors that have a name: role, leaf or not, gradients that arrived, how far they moved."""
        return self.document.tensors

    @property
    def graph(self) -> Graph:
        """The graph: how large it is, and in a notebook its picture."""
        return Graph(self)

    @property
    def ok(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.at_least("warning")

    def at_least(self, level: Severity) -> tuple[Finding, ...]:
        """The findings of this severity or worse. Raises ValueError if there is no such severity."""
        if level not in ORDER:
            raise ValueError(f'the level must be "info", "warning" or "error", not {level!r}')
        return tuple(finding for finding in self.findings if ORDER.index(finding.severity) >= ORDER.index(level))

    def raise_for_findings(self, level: Severity = "error") -> None:
        """Raise FindingsRaised with the explanation if there is a finding of this severity or worse.

        Raises ValueError if there is no such level.
        """
        if self.at_least(level):
            raise FindingsRaised(str(self))

    def to_json(self) -> str:
        """The report as JSON, schema `gradscope.report/1`."""
        return printable_json(msgspec.json.format(encoded(self.document), indent=1).decode())

    def to_text(
        self, *, every_row: bool = False, colour: bool = False, unicode: bool = False, width: int = WIDTH
    ) -> str:
        """The report as text, its table in so many columns."""
        return text(
            self.run, self.findings, self.document, every_row=every_row, colour=colour, unicode=unicode, width=width
        )

    def to_html(self) -> str:
        """The report as one HTML page: findings, table, charts and the graph, to be opened without any network."""
        from gradscope.reports.html import to_html

        return to_html(self.run, self.findings, self.document)

    def to_sarif(self) -> str:
        """The report as SARIF 2.1.0, for code scanning and editors."""
        from gradscope.reports.sarif import sarif

        return sarif(self.document)

    def to_concise(self) -> str:
        """A line for each finding, `file:line:column: severity[rule] message`, as editors read them."""
        from gradscope.reports.concise import concise

        return concise(self.document)

    def to_markdown(self, *, every_row: bool = False) -> str:
        """The report as Markdown, for a comment on a pull request."""
        from gradscope.reports.markdown import markdown

        return markdown(self.run, self.findings, self.document, every_row=every_row)

    def to_github(self) -> str:
        """The report as workflow commands of GitHub Actions, an annotation a finding."""
        from gradscope.reports.github import github

        return github(self.document)

    def render(
        self,
        path: str | Path,
        style: Style = "gradscope",
        *,
        depth: int | None = None,
        open: Sequence[str] = (),  # noqa: A002 - the word of the command line
    ) -> None:
        """Draw the graph as `.png`, `.svg`, `.pdf` or `.dot`, or write the page as `.html`; see `gradscope.render`."""
        from gradscope.reports.dot import STYLES
        from gradscope.reports.drawing import DrawingError, draw_run, write_page

        if style not in STYLES:
            raise DrawingError(f"there is no style {style!r}: it is {' or '.join(map(repr, STYLES))}")
        if depth is not None and depth < 1:
            raise DrawingError(f"depth must be at least 1, the outermost groups alone, not {depth}")
        if Path(path).suffix.lower() == ".html":
            write_page(self.to_html(), Path(path))
            return
        draw_run(self.run, Path(path), self.findings, style, depth=depth, opened=open)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how |grad| of each parameter went over the steps, with matplotlib; see `gradscope.reports.plot`."""
        from gradscope.reports.plot import plot

        return plot(self.document, ax)

    def to_tensorboard(self, writer: Writer, step: int | None = None) -> None:
        """Write the report to TensorBoard: the norms of gradients as scalars and histograms, the findings as text.

        `writer` is a `torch.utils.tensorboard.SummaryWriter`. The series of norms end at the number `step`, or without
        it begin at 0. A histogram, over the decimal logarithm of the norms, shows all parameters of a step at once.
        """
        from gradscope.reports.tensorboard import write_events

        write_events(self, writer, step)

    def __repr__(self) -> str:
        """One line: what ran, how far, and what was found; the whole of it is `str(report)`."""
        told = [
            f"{finding.severity}[{finding.rule}]" + (f" {span.file}:{span.line}" if (span := finding.span) else "")
            for finding in self.findings
        ]
        counted = f"{self.run.step_count} steps" if self.run.step_count != 1 else "1 step"
        return shown(f"<Report on {self.run.script or 'output'}, {counted}: {', '.join(told) or 'no findings'}>")

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return framed(self.to_html())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": self.to_text(), "text/html": self._repr_html_()}


@dataclass(frozen=True)
class Graph:
    """The graph of a report. In a notebook it shows itself as a picture.

    `operations` and `edges` count those of the latest step that was kept, `parameters` those of the run.
    """

    report: Report

    @property
    def size(self) -> GraphSize:
        """How large the graph is."""
        return self.report.document.graph

    @property
    def operations(self) -> int:
        """Operations of the latest step that was kept."""
        return self.size.operations

    @property
    def edges(self) -> int:
        """Data edges between these operations."""
        return self.size.edges

    @property
    def parameters(self) -> int:
        """Parameters of the run."""
        return self.size.parameters

    def to_svg(self, *, depth: int | None = None, open: Sequence[str] = ()) -> str:  # noqa: A002
        """The picture as SVG, opened as `Report.render` does. Raises DrawingError."""
        with tempfile.TemporaryDirectory(prefix="gradscope-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "graph.svg")
            self.report.render(path, depth=depth, open=open)
            return path.read_text(encoding="utf-8")

    def __repr__(self) -> str:
        size = self.size
        return f"Graph(operations={size.operations}, edges={size.edges}, parameters={size.parameters})"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        bundle = {"text/plain": repr(self)}
        try:
            bundle["image/svg+xml"] = self.to_svg()
        except GradscopeError as error:
            bundle["text/plain"] += f"\n{error}"
        return bundle


def framed(page: str) -> str:
    """A page as a part of another one, apart from its styles and scripts."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts" title="gradscope report" width="100%" '
        'height="720" style="border: 1px solid #8088a0; border-radius: 6px"></iframe>'
    )
