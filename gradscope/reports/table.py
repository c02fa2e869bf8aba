"""The table of the tensors: a row each, or one for many of a module."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from gradscope.graph.naming import shape_text
from gradscope.reports.cells import cells, distinct, left, right
from gradscope.reports.document import Document, TensorRow, median_norm
from gradscope.reports.frames import WIDTH

ROWS = 20
_NAME = 32  # cells of a name in a table that is to be pasted; a wide terminal has more room
_SHORTEST = 16
_COLUMNS = ("tensor", "shape", "role", "leaf", "requires", "got grad", "|grad|", "moved")
_COURSE = 6
_FLAT = math.log(4)  # a course within a factor of 4 is drawn as nearly flat
BLOCKS = "\N{LOWER ONE EIGHTH BLOCK}\u2582\u2583\u2584\u2585\u2586\u2587\N{FULL BLOCK}"
_LETTERS = "_.:-=+*#"


def table_text(report: Document, *, every_row: bool = False, unicode: bool = False, width: int = WIDTH) -> str:
    """The table of the tensors of a plain report.

    A non-leaf has no gradient to count: there the row names the `grad_fn` that made it.
    Where there is room, rows end with the course of |grad| over the steps, on a logarithmic scale.
    """
    rows = report.tensors
    if not rows:
        return ""
    stepped = _has_stepped(report)
    folded = list(rows) if every_row else fold(rows)
    written = [_cells(row, stepped) if isinstance(row, TensorRow) else row for row in folded]
    courses = [_course(row, unicode) if isinstance(row, TensorRow) else "" for row in folded]
    with_course = any(courses) and _total(_fitted(written, width - _COURSE - 2)) <= width - _COURSE - 2
    written = _fitted(written, width - _COURSE - 2 if with_course else width)
    # A row of fewer cells ends with a text that runs over the columns which are left.
    widths = _widths(written)
    lines = []
    for row, course in zip([columns(_COLUMNS, dry=report.run.dry), *written], ["course", *courses], strict=True):
        whole = len(row) == len(_COLUMNS)
        padded = [
            (right if place in _NUMBERS and whole else left)(cell, widths[place]) for place, cell in enumerate(row)
        ]
        if with_course and whole:
            padded.append(course)
        lines.append("  ".join(padded).rstrip())
    hidden = len(rows) - sum(isinstance(row, TensorRow) for row in folded)
    if hidden:
        lines.append(f"({hidden} tensors are folded by module; --all shows each)")
    lines += _total_of_parameters(rows)
    return "\n".join(lines)


def _has_stepped(report: Document) -> bool:
    """Whether anything could have moved: an optimizer has stepped, or a backward was followed by another."""
    held = any(row.optimizer is not None for row in report.tensors)
    moved = any(row.moved or row.from_zero for row in report.tensors)
    return moved or report.run.steps > (0 if held else 1)


def _total_of_parameters(rows: Sequence[TensorRow]) -> list[str]:
    """How many numbers there are to learn; nothing where one tensor is all."""
    parameters = [row for row in rows if row.role == "parameter"]
    if len(parameters) < 2 or any(size < 0 for row in parameters for size in row.shape):
        return []
    frozen = sum(math.prod(row.shape) for row in parameters if not row.requires_grad)
    total = sum(math.prod(row.shape) for row in parameters)
    return [f"({total:,} parameters in {len(parameters)} tensors{f', {frozen:,} of them frozen' if frozen else ''})"]


def columns(names: tuple[str, ...], *, dry: bool) -> tuple[str, ...]:
    """The heads of columns, those of a dry run where it is one."""
    return tuple("predicted" if dry and name == "got grad" else name for name in names)


_Cells = tuple[str, ...]
_NUMBERS = frozenset({5, 6, 7})


def _widths(rows: list[_Cells]) -> list[int]:
    """The width of each column; a text that runs over several widens none."""
    whole = [row if len(row) == len(_COLUMNS) else row[:-1] for row in [_COLUMNS, *rows]]
    return [max(cells(row[place]) for row in whole if len(row) > place) for place in range(len(_COLUMNS))]


def _total(rows: list[_Cells]) -> int:
    widths = _widths(rows)
    return sum(widths) + 2 * (len(widths) - 1)


def _fitted(rows: list[_Cells], width: int) -> list[_Cells]:
    """The rows with their names shortened as far as it takes to keep to a width."""
    widest = _widths(rows)
    room = max(_SHORTEST, widest[0] - (_total(rows) - width))
    names = distinct((row[0] for row in rows), min(_NAME, room) if width <= WIDTH else room)
    return [(names[row[0]], *row[1:]) for row in rows]


def _cells(row: TensorRow, stepped: bool) -> _Cells:
    kind = (
        row.name,
        shape_text(row.shape),
        row.role,
        "yes" if row.leaf else "no",
        "yes" if row.requires_grad else "no",
    )
    if row.grad_fn is not None:
        return (*kind, f"by {row.grad_fn}")
    return (*kind, received_text(row), _norm(median_norm(row)), moved_text(row, stepped=stepped))


def received_text(row: TensorRow) -> str:
    """In how many steps a gradient arrived: `20/20`; `z20/20`: all were zero, `20/20 z3`: 3 were; `!`: not finite."""
    if row.received is None:
        return "-" if row.predicted is None or row.role != "parameter" else "yes" if row.predicted else "no"
    counted = {"z": row.received.zero, "!": row.received.nonfinite}
    before = "".join(mark for mark, count in counted.items() if count and count == row.received.steps)
    behind = "".join(f" {mark}{count}" for mark, count in counted.items() if 0 < count < row.received.steps)
    return f"{before}{row.received.steps}/{row.received.of}{behind}"


def _course(row: TensorRow, unicode: bool) -> str:
    """The norms of a gradient over the steps as a few characters; `!` for one that was not finite, " " for zero."""
    norms = row.grad_norm
    if len(norms) < 3:
        return ""
    marks = BLOCKS if unicode else _LETTERS
    places = min(_COURSE, len(norms))
    chunks = [norms[len(norms) * place // places : len(norms) * (place + 1) // places] for place in range(places)]
    means = [None if None in chunk else statistics.fmean(norm or 0.0 for norm in chunk) for chunk in chunks]
    logs = [math.log(mean) for mean in means if mean]
    middle = (min(logs, default=0.0) + max(logs, default=0.0)) / 2
    span = max(max(logs, default=0.0) - min(logs, default=0.0), _FLAT)
    scale = len(marks) - 1
    return "".join(
        "!" if mean is None else " " if mean == 0 else marks[round(((math.log(mean) - middle) / span + 0.5) * scale)]
        for mean in means
    )


def _norm(norm: float | None) -> str:
    return "-" if norm is None else f"{norm:.1e}"


def moved_text(row: TensorRow, *, stepped: bool = True) -> str:
    """How far a parameter moved: `18.5%`, `from 0`, `no` where it could have, `frozen`."""
    if row.role != "parameter":
        return "-"
    if not row.requires_grad:
        return "frozen" if not row.moved else f"{row.moved:.1%}"
    if row.from_zero:
        return "from 0"
    if row.moved is None:
        return "-"
    if row.moved == 0:
        return "no" if stepped else "-"
    return f"{row.moved:.1%}"


def fold(rows: Sequence[TensorRow]) -> list[TensorRow | _Cells]:
    """Rows of one module and role become one, at the depth that leaves at most `ROWS` of them.

    The buffers of one module, as the running statistics of a norm, always do: they tell a reader of gradients little.
    """
    if len(rows) <= ROWS:
        return _with_folded_buffers(rows)
    deepest = max(row.name.count(".") for row in rows)
    for depth in range(deepest, -1, -1):
        groups: dict[tuple[str, str], list[TensorRow]] = {}
        for row in rows:
            path = row.name.split(".")
            here = min(depth, len(path) - 1) if row.role == "buffer" and len(path) > 1 else depth
            key = ".".join(path[:here]) if row.role in ("parameter", "buffer") and len(path) > here else row.name
            groups.setdefault((key, row.role), []).append(row)
        if len(groups) <= ROWS or depth == 0:
            return [group[0] if len(group) == 1 else _folded(key, group) for (key, _), group in groups.items()]
    return list(rows)


def _with_folded_buffers(rows: Sequence[TensorRow]) -> list[TensorRow | _Cells]:
    owners: dict[str, list[TensorRow]] = {}
    for row in rows:
        owner, dot, _ = row.name.rpartition(".")
        owners.setdefault(owner if row.role == "buffer" and dot else f"{row.name} {row.role}", []).append(row)
    return [group[0] if len(group) == 1 else _folded(owner, group) for owner, group in owners.items()]


def _folded(path: str, rows: Sequence[TensorRow]) -> _Cells:
    counts = [row.received for row in rows if row.received is not None]
    reached = sum(row.received.steps > 0 for row in rows if row.received is not None and row.requires_grad)
    norms = [norm for norm in map(median_norm, rows) if norm is not None]
    moving = [row for row in rows if row.moved or row.from_zero]
    measured = any(row.moved is not None or row.from_zero for row in rows if row.role == "parameter")
    trainable = sum(row.requires_grad for row in rows)
    frozen = rows[0].role == "parameter" and not trainable and not moving
    return (
        f"{path}.*" if path else "*",
        f"{len(rows)} tensors",
        rows[0].role,
        "yes" if all(row.leaf for row in rows) else "no",
        "yes" if trainable == len(rows) else "no" if not trainable else f"{trainable} of {len(rows)}",
        f"{reached} of {trainable}" if counts and trainable else "-",
        _norm(sorted(norms)[len(norms) // 2]) if norms else "-",
        "frozen" if frozen else f"{len(moving)} of {len(rows)}" if measured else "-",
    )
