"""Words that pictures and the page put beside boxes."""

from __future__ import annotations

from pathlib import PurePath

from gradscope.graph.facts import Span
from gradscope.reports.boxes import Gradient


def place_words(span: Span, script: str | None) -> str:
    """`line 12` of the script, `model.py:12` of another file."""
    if span.file == script:
        return f"line {span.line}"
    return f"{PurePath(span.file).name}:{span.line}"


def gradient_words(gradient: Gradient | None) -> str | None:
    """What arrived: `|grad| 8.0e+00`, a range for several tensors, or that nothing did."""
    if gradient is None:
        return None
    steps = f"{gradient.steps:,} step" if gradient.steps == 1 else f"{gradient.steps:,} steps"
    if gradient.arrival == "none":
        return f"no gradient in {steps}"
    if gradient.arrival == "zero":
        return "|grad| 0 in every step"
    if gradient.arrival == "nonfinite":
        return "|grad| not finite"
    if gradient.least is None or gradient.largest is None:
        return None
    if gradient.least == gradient.largest:
        return f"|grad| {gradient.largest:.1e}"
    return f"|grad| {gradient.least:.1e} .. {gradient.largest:.1e}"


def saved_words(saved: int | None) -> str | None:
    """Bytes kept for backward: `saves 1.5 MB`."""
    if not saved:
        return None
    size = float(saved)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"saves {size:.3g} {unit}"
        size /= 1000
    return f"saves {size:.3g} GB"
