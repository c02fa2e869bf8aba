"""Walking the autograd graph: `walk` against a bare loop, each graph in a process of its own, as it may crash."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.ratios import Row, child, seconds
from gradscope.probes.backward.walker import walk
from gradscope.probes.forward.callsites import CallSites
from gradscope.probes.tape import Tape


def rows(quick: bool) -> Iterator[Row]:
    """Deep and wide graphs; a process that dies shows as an infinite ratio."""
    for size in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
        for shape in ("deep", "wide"):
            try:
                ratio = float(child("benchmarks.walking", shape, size))
            except subprocess.CalledProcessError:
                ratio = float("inf")
            yield Row(f"walk of {size:,} nodes, {shape}", "a loop over next_functions", ratio, 2.0)


def _deep(size: int) -> torch.Tensor:
    value = torch.zeros((), requires_grad=True)
    for _ in range(size):
        value = value + 1.0
    return value


def _wide(size: int) -> torch.Tensor:
    start = torch.zeros((), requires_grad=True)
    return torch.stack([start + 1.0 for _ in range(size)])


def _bare(root: torch.Tensor) -> int:
    nodes = [root.grad_fn]
    seen = {root.grad_fn}
    for node in nodes:
        assert node is not None
        for target, _ in node.next_functions:
            if target is not None and target not in seen:
                seen.add(target)
                nodes.append(target)
    return len(seen)


def _measure(shape: str, size: int) -> float:
    torch.set_num_threads(1)
    roots = [(_deep if shape == "deep" else _wide)(size)]
    tape = Tape(CallSites())
    gc.disable()  # as `walk` does for itself
    ratios = []
    for _ in range(max(3, 200_000 // size)):
        walked = seconds(lambda: walk(roots, tape.subject))
        ratios.append(walked / seconds(lambda: _bare(roots[0])))
    assert len(walk(roots, tape.subject)) == _bare(roots[0])
    roots.clear()  # a deep graph that was touched is deleted by recursion: here a process dies
    return median(ratios)


if __name__ == "__main__":
    print(_measure(sys.argv[1], int(sys.argv[2])))
