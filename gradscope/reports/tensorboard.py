"""A report as events of TensorBoard: gradient norms as scalars and histograms, findings as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gradscope.reports.document import TensorRow
from gradscope.reports.escaping import spelled

if TYPE_CHECKING:
    from gradscope.reports.report import Report

_TAG = "gradscope"


class Writer(Protocol):
    """What is asked of `torch.utils.tensorboard.SummaryWriter`, and of those that are like it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """One number of a series."""

    def add_histogram_raw(
        self,
        tag: str,
        min: float,  # noqa: A002 - the words of the writer
        max: float,  # noqa: A002
        num: int,
        sum: float,  # noqa: A002
        sum_squares: float,
        bucket_limits: Sequence[float],
        bucket_counts: Sequence[float],
        global_step: int,
    ) -> Any:
        """One histogram of a series."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> Any:
        """A text in Markdown."""


def write_events(report: Report, writer: Writer, step: int | None) -> None:
    """See `Report.to_tensorboard`."""
    rows = [row for row in report.tensors if row.role in ("parameter", "input") and row.grad_norm]
    latest = max((_steps(row)[-1] for row in rows), default=0)
    first = 0 if step is None else step - latest
    sizes: dict[int, list[float]] = {}
    for row in rows:
        tag = f"{_TAG}/grad_norm/{spelled(row.name)}"
        for place, norm in zip(_steps(row), row.grad_norm, strict=True):
            writer.add_scalar(tag, math.nan if norm is None else norm, first + place)
            if norm:
                sizes.setdefault(place, []).append(math.log10(norm))
    for place, logarithms in sorted(sizes.items()):
        _histogram(writer, f"{_TAG}/log10_grad_norm", logarithms, first + place)
    writer.add_text(f"{_TAG}/report", _fenced(str(report)), first + latest)


def _steps(row: TensorRow) -> list[int]:
    """The numbers, from 0, of the steps whose norms were kept: of a long series every second, fourth, ... one is."""
    kept, seen = len(row.grad_norm), row.received.steps if row.received is not None else 0
    stride = 1
    while stride * kept < seen:
        stride *= 2
    return [stride * place for place in range(kept)]


def _histogram(writer: Writer, tag: str, values: list[float], step: int) -> None:
    """A bucket for each decade."""
    low, high = math.floor(min(values)), math.floor(max(values)) + 1
    counts = [0] * (high - low)
    for value in values:
        counts[math.floor(value) - low] += 1
    writer.add_histogram_raw(
        tag,
        min=min(values),
        max=max(values),
        num=len(values),
        sum=sum(values),
        sum_squares=sum(value * value for value in values),
        bucket_limits=[float(limit) for limit in range(low + 1, high + 1)],
        bucket_counts=[float(count) for count in counts],
        global_step=step,
    )


def _fenced(text: str) -> str:
    """As it stands: TensorBoard reads Markdown, in which four spaces begin code."""
    return "\n".join("    " + line for line in text.splitlines())
