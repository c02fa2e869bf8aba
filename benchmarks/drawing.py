"""Pictures of three models by gradscope, torchviz and, where it is installed, torchview: time, boxes and size.

`python -m benchmarks.drawing` prints the table. All are laid out and drawn by the same Graphviz, as PNG. The time is
from the output, which exists, to the file; torchview runs the model itself, which is in its time, and in gradscope's is
the confirmation, one `torch.autograd.grad` through the model.
"""

from __future__ import annotations

import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torchviz  # type: ignore[import-untyped]
from torch import Tensor, nn

import gradscope
from benchmarks.models import MODELS
from benchmarks.ratios import Row, seconds
from gradscope.reports.drawing import DrawingError, draw

_LIMIT = 120.0  # seconds for one layout


def rows(quick: bool) -> Iterator[Row]:
    """Time and area of our picture against those of torchviz."""
    for name, make in MODELS.items():
        if quick and name == "GPT-2's size":
            continue
        model, data = make()
        ours, theirs = _measured("gradscope", model, data), _measured("torchviz", model, data)
        if ours.pixels and theirs.pixels:
            yield Row(f"picture of {name}, seconds", "torchviz", ours.seconds / theirs.seconds)
            yield Row(f"picture of {name}, pixels", "torchviz", ours.pixels / theirs.pixels)


class _Picture:
    """What one tool made: seconds, boxes, and the size of the PNG."""

    def __init__(self, took: float, boxes: int, path: Path) -> None:
        self.seconds, self.boxes = took, boxes
        self.width, self.height = struct.unpack(">II", path.read_bytes()[16:24]) if path.exists() else (0, 0)
        self.pixels = self.width * self.height
        self.bytes = path.stat().st_size if path.exists() else 0


def _measured(tool: str, model: nn.Module, data: Tensor) -> _Picture:
    loss = model(data).square().mean()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.png")
        dot: list[str] = []

        def work() -> None:
            if tool == "gradscope":
                report = gradscope.explain(loss, model=model)
                report.render(path)
                report.render(path.with_suffix(".dot"))
                dot.append(path.with_suffix(".dot").read_text())
                return
            dot.append(_dot(tool, model, data, loss))
            try:
                draw(dot[0], path, _LIMIT)
            except DrawingError as error:
                print(f"{tool}: {error}", file=sys.stderr)

        took = seconds(work)
        boxes = len(re.findall(r"^\s*\w+ \[", dot[0], re.MULTILINE)) - dot[0].count("legend")
        return _Picture(took, boxes, path)


def _dot(tool: str, model: nn.Module, data: Tensor, loss: Tensor) -> str:
    if tool == "torchviz":
        return str(torchviz.make_dot(loss, params=dict(model.named_parameters())).source)
    import torchview  # type: ignore[import-not-found]

    return str(torchview.draw_graph(model, input_data=data, device="cpu").visual_graph.source)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    sys.setrecursionlimit(100_000)  # torchviz walks by recursion
    tools = ["gradscope", "torchviz"]
    try:
        import torchview  # noqa: F401

        tools.append("torchview")
    except ImportError:
        print("torchview is not installed: its rows are left out", file=sys.stderr)
    print(f"{'model':<18} {'tool':<10} {'seconds':>7} {'boxes':>6} {'pixels':>13} {'kB':>6}")
    for name, make in MODELS.items():
        model, data = make()
        for tool in tools:
            made = _measured(tool, model, data)
            size = f"{made.width}x{made.height}" if made.pixels else "none"
            print(f"{name:<18} {tool:<10} {made.seconds:>7.2f} {made.boxes:>6} {size:>13} {made.bytes // 1000:>6}")


if __name__ == "__main__":
    main()
