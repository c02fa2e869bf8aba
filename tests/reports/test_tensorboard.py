"""A report as events of TensorBoard, read back from the files that the real writer made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from gradscope.graph.facts import Received
from gradscope.reports.report import Report
from tests.runs import Book

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard", "ignore::DeprecationWarning:google")


def written(report: Report, folder: Path, step: int | None = None) -> Any:
    """The events of a report."""
    reason = "tensorboard is not installed: pip install '.[tensorboard]'"
    pytest.importorskip("tensorboard", reason=reason)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    report.to_tensorboard(writer, step)
    writer.close()
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def report(steps: int = 3, **norms: tuple[float | None, ...]) -> Report:
    """A report on parameters with these gradient norms, of so many steps."""
    book = Book()
    received = Received(steps, steps)
    leaves = [
        book.leaf(name, (2,), True, nn_parameter=True, gradient_norms=norm, received=received)
        for name, norm in norms.items()
    ]
    book.step(book.op("sum", *leaves, result="loss"))
    return Report(book.run(), ())


def test_norms_are_scalars_and_histograms(tmp_path: Path) -> None:
    """Each parameter is a series from step 0 on, each step a histogram over all; what is not finite is NaN."""
    events = written(report(w=(1.0, 10.0, 100.0), b=(0.002, None, 0.0)), tmp_path)
    assert set(events.Tags()["scalars"]) == {"gradscope/grad_norm/w", "gradscope/grad_norm/b"}
    series = [(event.step, event.value) for event in events.Scalars("gradscope/grad_norm/w")]
    assert series == [(0, 1.0), (1, 10.0), (2, 100.0)]
    assert math.isnan(events.Scalars("gradscope/grad_norm/b")[1].value)
    histograms = events.Histograms("gradscope/log10_grad_norm")
    assert [(event.step, event.histogram_value.num) for event in histograms] == [(0, 2), (1, 1), (2, 1)]
    first = histograms[0].histogram_value
    assert (first.max, round(first.min, 3)) == (0, -2.699)
    assert sum(first.bucket) == 2


def test_the_series_ends_at_a_step_that_is_given(tmp_path: Path) -> None:
    """`step` is that of the latest norms and of the text."""
    events = written(report(w=(1.0, 2.0, 3.0)), tmp_path, step=500)
    assert [event.step for event in events.Scalars("gradscope/grad_norm/w")] == [498, 499, 500]
    (tag,) = events.Tags()["tensors"]
    (text,) = events.Tensors(tag)
    assert text.step == 500


def test_a_series_that_was_thinned_out_keeps_its_steps(tmp_path: Path) -> None:
    """Of a long run every second, fourth, ... norm is kept."""
    events = written(report(steps=10, w=(1.0, 2.0, 3.0)), tmp_path)
    assert [event.step for event in events.Scalars("gradscope/grad_norm/w")] == [0, 4, 8]


def test_the_report_is_a_text(tmp_path: Path) -> None:
    """Also where nothing was observed: the text is there to be read."""
    empty = report()
    events = written(empty, tmp_path)
    (tag,) = events.Tags()["tensors"]
    (text,) = events.Tensors(tag)
    assert tag.startswith("gradscope/report")
    assert text.tensor_proto.string_val[0].decode() == "\n".join("    " + line for line in str(empty).splitlines())
    assert events.Tags()["scalars"] == []
