"""Small charts of gradient norms as SVG elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT, _EDGE = 120.0, 24.0, 3.0
_DECADES = 2.0  # at least: what hardly changes shall look flat


def chart(norms: Sequence[float | None]) -> str:
    """The norms from left to right on a logarithmic scale; empty without any.

    A norm of zero is a ring on the ground, one that is not finite (None) a cross at the top.
    """
    if not norms:
        return ""
    positive = [norm for norm in norms if norm]
    high = math.log10(max(positive, default=1.0))
    low = math.log10(min(positive, default=1.0))
    missing = max(0.0, _DECADES - (high - low)) / 2
    low, high = low - missing, high + missing
    ground = _HEIGHT - _EDGE

    def across(place: int) -> float:
        return _EDGE + place * (_WIDTH - 2 * _EDGE) / max(1, len(norms) - 1)

    lines: list[list[str]] = [[]]
    marks = []
    for place, norm in enumerate(norms):
        x = across(place)
        if norm:
            share = (math.log10(norm) - low) / (high - low)
            lines[-1].append(f"{x:.1f},{ground - share * (_HEIGHT - 2 * _EDGE):.1f}")
            continue
        lines.append([])
        if norm is None:
            marks.append(f'<path class="cross" d="M{x - 2:.1f} 1l4 4m0-4l-4 4"/>')
        else:
            marks.append(f'<circle class="zero" cx="{x:.1f}" cy="{ground:.1f}" r="2"/>')
    drawn = [
        f'<polyline points="{" ".join(line)}"/>'
        if len(line) > 1
        else '<circle cx="{}" cy="{}" r="2"/>'.format(*line[0].split(","))
        for line in lines
        if line
    ]
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}" role="img">'
        f"<title>{_said(norms)}</title>{''.join([*drawn, *marks])}</svg>"
    )


def _said(norms: Sequence[float | None]) -> str:
    finite = [norm for norm in norms if norm is not None]
    zero, broken = sum(norm == 0 for norm in finite), len(norms) - len(finite)
    parts = [f"{len(norms)} gradients"]
    if finite:
        parts.append(f"|grad| from {min(finite):.1e} to {max(finite):.1e}")
    if zero:
        parts.append(f"{zero} zero")
    if broken:
        parts.append(f"{broken} not finite")
    return ", ".join(parts)
