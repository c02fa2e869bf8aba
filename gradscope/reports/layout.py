"""The child process that runs Graphviz: DOT from standard input, a picture into a file.

It is run by its path, as `python layout.py SECONDS ENGINE FORMAT TARGET [NAME=VALUE ...]`, so that nothing else of
the package is imported, and least of all torch.
"""

from __future__ import annotations

import math
import re
import signal
import sys

_FINEST_DPI = 144.0
_COARSEST_DPI = 24.0
_MOST_PIXELS = 25e6
_POINTS_PER_INCH = 72.0


def main(seconds: str, engine: str, form: str, target: str, *settings: str) -> None:
    """Lay one graph out and write it; the settings become attributes of the graph.

    After so many seconds of the processor the system ends this process: a busy machine takes nothing from a layout.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
    import pygraphviz  # type: ignore[import-untyped]

    graph = pygraphviz.AGraph(string=_without_empty_lines(sys.stdin.buffer.read().decode("utf-8")))
    for setting in settings:
        name, _, value = setting.partition("=")
        graph.graph_attr[name] = value
    graph.layout(prog=engine)
    if form == "png":
        graph.graph_attr["dpi"] = f"{_dpi(graph.graph_attr['bb']):.0f}"
    # Given a name, pygraphviz opens the file in a way that early releases of Python 3.11 refuse.
    with open(target, "wb") as file:
        graph.draw(file, format=form, prog="nop2")


def _without_empty_lines(dot: str) -> str:
    """A blank on each first line of a label that is empty: drawing one crashes the Graphviz in pygraphviz 2.0."""
    return re.sub(r'(label=")(?=\\n|\n)', r"\1 ", dot)


def _dpi(box: str) -> float:
    """As fine as a picture of bounded size can be: a pixel costs memory and time."""
    left, bottom, right, top = (float(number) for number in box.split(","))
    area = max(1.0, (right - left) * (top - bottom)) / _POINTS_PER_INCH**2
    return min(_FINEST_DPI, max(_COARSEST_DPI, math.sqrt(_MOST_PIXELS / area)))


if __name__ == "__main__":
    main(*sys.argv[1:])
