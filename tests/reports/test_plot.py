"""Gradient norms as a figure."""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterator
from typing import Any

import pytest

from gradscope.reports.plot import PlotError
from gradscope.reports.report import Report
from tests.runs import Book


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Matplotlib without a screen."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[plot]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def report(norms: dict[str, tuple[float | None, ...]]) -> Report:
    """A report on parameters with these gradient norms."""
    book = Book()
    leaves = [book.leaf(name, (2,), True, nn_parameter=True, gradient_norms=norm) for name, norm in norms.items()]
    book.step(book.op("sum", *leaves, result="loss"))
    return Report(book.run(), ())


def test_rows_are_parameters_and_columns_steps(pyplot: Any) -> None:
    """Each parameter is a row by name, each step a column, on a logarithmic scale."""
    axes = report({"a.weight": (1.0, 10.0, 100.0), "b.weight": (0.1, None, 0.0)}).plot()
    (image,) = axes.get_images()
    shades = image.get_array()
    assert shades.shape == (2, 3)
    assert list(shades[0]) == [1.0, 10.0, 100.0]
    assert (shades[1][0], shades[1][2]) == (0.1, 0.1)
    assert math.isnan(shades.data[1][1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a.weight", "b.weight"]
    assert (image.norm.vmin, image.norm.vmax) == (0.1, 100.0)
    axes.figure.canvas.draw()


def test_it_draws_into_axes_that_are_given(pyplot: Any) -> None:
    """With `ax`, nothing else is opened."""
    _, axes = pyplot.subplots()
    assert report({"w": (1.0,)}).plot(axes) is axes
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize(
    "norms", [{}, {"w": (0.0, 0.0)}, {"$w^$_": (None,)}, {f"w{i}": (1.0,) * 256 for i in range(99)}]
)
def test_any_norms_can_be_drawn(pyplot: Any, norms: dict[str, tuple[float | None, ...]]) -> None:
    """No parameter, zeros, nothing finite, strange names, very many rows: a figure comes of it."""
    axes = report(norms).plot()
    axes.figure.canvas.draw()
    assert len(axes.get_yticklabels()) <= 40


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where matplotlib is missing, one line says so."""
    original = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PlotError, match="matplotlib is not installed"):
        report({"w": (1.0,)}).plot()
