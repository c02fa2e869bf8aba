"""What pictures are made of: boxes, arrows and frames, before anything is written as DOT or for the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from gradscope.graph.facts import Span, Tensor
from gradscope.graph.naming import shape_text
from gradscope.graph.roles import Role

Kind = Literal["operation", "group"] | Role
Arrival = Literal["some", "zero", "nonfinite", "none"]


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradients of a tensor, or of several: the least and the largest median |grad|, and whether any arrived.

    `arrival` is the worst of them: `nonfinite`, `none`, `zero` (all that arrived were zero), `some`.
    """

    least: float | None
    largest: float | None
    arrival: Arrival
    steps: int = 0

    @classmethod
    def over(cls, several: Iterable[Gradient | None]) -> Gradient | None:
        """What holds of several tensors together; None where none of them was judged."""
        found = [one for one in several if one is not None]
        if not found:
            return None
        least = [one.least for one in found if one.least is not None]
        largest = [one.largest for one in found if one.largest is not None]
        worst = max((one.arrival for one in found), key=_WORSE.index)
        return cls(min(least, default=None), max(largest, default=None), worst, max(one.steps for one in found))


_WORSE: tuple[Arrival, ...] = ("some", "zero", "none", "nonfinite")


@dataclass(frozen=True, slots=True)
class Vertex:
    """One box of the picture: an operation, a tensor, or a closed group of them.

    `details` are small lines under the title. `frozen` marks a parameter that asks for no gradient, `cut_off` what lies
    behind a cut: no gradient comes back to it; `refused` is the operation with which the script ended. `count` above 1
    says that so many alike are drawn as one. `gradient` is that of a leaf which somebody trains, `saved` the bytes kept
    for backward where they were read, `elements` how many numbers a tensor holds. `cluster` is the id of the open group
    around the box, `module` the path of its module.
    """

    id: str
    kind: Kind
    title: str
    details: tuple[str, ...] = ()
    module: str | None = None
    span: Span | None = None
    frozen: bool = False
    count: int = 1
    cut_off: bool = False
    refused: bool = False
    gradient: Gradient | None = None
    saved: int | None = None
    elements: int = 0
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow in the direction of the data, from what makes a value to what uses it.

    At a `cut` the gradient is lost; `span` is the line that loses it.
    """

    tail: str
    head: str
    kind: Literal["gradient", "data", "cut"]
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """An open group, drawn as a frame around its boxes and further frames; `parent` is the frame around it.

    `path` is that of the group, or of the first of `count` groups that are alike.
    """

    id: str
    path: str
    title: str
    detail: str = ""
    parent: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is drawn, with one line about it where there is something to say."""

    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    note: str | None = None
    clusters: tuple[Cluster, ...] = ()


def tensor_box(tensor: Tensor, role: dict[int, Role]) -> Vertex:
    """The box of a tensor, with what was confirmed of its gradient."""
    kind = role[tensor.id]
    shape = shape_text(tensor.shape)
    title, details = (tensor.name, (shape,)) if tensor.name else (shape, ())
    frozen = kind == "parameter" and not tensor.requires_grad
    return Vertex(
        f"t{tensor.id}",
        kind,
        title,
        details,
        span=tensor.made,
        frozen=frozen,
        gradient=None if frozen else gradient_of(tensor),
        elements=math.prod(tensor.shape),
    )


def gradient_of(tensor: Tensor) -> Gradient | None:
    """What was confirmed of a tensor's gradient; None where nobody waited for one."""
    received = tensor.received
    if received is None or not received.of:
        return None
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    median = statistics.median(norms) if norms else None
    arrival: Arrival = "some"
    if not received.steps:
        arrival = "none"
    elif received.nonfinite:
        arrival = "nonfinite"
    elif received.zero == received.steps:
        arrival = "zero"
    return Gradient(median, median, arrival, received.of)


def arrows(edges: dict[tuple[str, str], bool]) -> Iterator[Edge]:
    """Arrows from pairs of boxes, each with whether a gradient comes back along it."""
    for (tail, head), history in edges.items():
        yield Edge(tail, head, "gradient" if history else "data")


def common_module(modules: Iterable[str | None]) -> str | None:
    """The innermost module that holds all of these paths; None where one of them is outside of all modules."""
    common: list[str] | None = None
    for module in modules:
        parts = module.split(".") if module else []
        if common is None:
            common = parts
        length = next((i for i, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b), len(parts))
        common = common[:length]
    return ".".join(common or ()) or None
