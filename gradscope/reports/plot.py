"""Gradient norms as a figure, with matplotlib where it is installed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradscope.errors import GradscopeError
from gradscope.reports.document import Document, TensorRow
from gradscope.reports.escaping import spelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 40  # parameters whose names can be read below each other


class PlotError(GradscopeError):
    """There is no matplotlib to draw with."""


def plot(report: Document, ax: Axes | None = None) -> Axes:
    """|grad| as a map: a row for each parameter, in the order of the table, a column for each step, shades by log10.

    Steps are those whose norms were kept, at most 256 for each parameter. Zero gradients are the darkest shade, those
    that are missing or not finite are left white. Raises PlotError where matplotlib is missing.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.colors import LogNorm
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise PlotError("matplotlib is not installed: install torch-gradscope[plot], or matplotlib") from None
    rows = [row for row in report.tensors if row.role in ("parameter", "input") and row.grad_norm]
    steps = max((len(row.grad_norm) for row in rows), default=1)
    norms = [norm for row in rows for norm in row.grad_norm if norm]
    least, largest = min(norms, default=1.0), max(norms, default=1.0)
    if ax is None:
        height = max(1.8, min(12.0, 0.9 + 0.2 * len(rows)))
        _, ax = pyplot.subplots(figsize=(8.0, height), layout="constrained")
    scale = LogNorm(least, largest if largest > least else least * 10)
    values = [
        [*(_shade(norm, least) for norm in row.grad_norm), *[math.nan] * (steps - len(row.grad_norm))] for row in rows
    ]
    edges = (0.5, steps + 0.5, max(1, len(rows)) - 0.5, -0.5)
    image = ax.imshow(
        values or [[math.nan]], extent=edges, aspect="auto", norm=scale, cmap="cividis", interpolation="nearest"
    )
    ax.figure.colorbar(image, ax=ax, label="|grad|")
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _name_rows(ax, rows)
    return ax


def _shade(norm: float | None, least: float) -> float:
    return math.nan if norm is None else max(norm, least)


def _name_rows(ax: Axes, rows: list[TensorRow]) -> None:
    every = max(1, -(-len(rows) // _NAMED))
    places = range(0, len(rows), every)
    # A name is text: dollar signs begin no formula.
    ax.set_yticks(list(places), [spelled(rows[place].name).replace("$", r"\$") for place in places])
    ax.tick_params(axis="y", labelsize=8)
