"""The course of one followed tensor over the run: gradients that arrived, and how far its value moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from gradscope.folds.accounts import Account
from gradscope.folds.movement import POINTS, Moves
from gradscope.folds.series import Series
from gradscope.graph.limits import ZEROS_FOR_GOOD
from gradscope.probes.forward.callsites import Site
from gradscope.probes.tensors.attributes import gradient_of
from gradscope.probes.tensors.quiet import detached
from gradscope.probes.tensors.shards import has_values, local, values_of

if TYPE_CHECKING:
    from gradscope.probes.training.overwriting import Overwritten

SAMPLE, _RUN = 4_096, 8
_PIECE = 1 << 18  # elements that are copied at a time
_RESULTS = 512  # norms that lie side by side
_WIDE = (torch.float32, torch.float64)
_ALL = slice(None)


class Runs(NamedTuple):
    """Elements of a flat tensor of `size`: runs of neighbours, one every `stride`.

    Memory is read by the line: single elements, evenly spread, would cost as much as reading half of the tensor.
    """

    size: int
    stride: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view, runs x elements; empty if the tensor has another size by now."""
        if not tensor.is_contiguous():
            tensor = tensor.reshape(-1)
        if tensor.numel() != self.size:
            return tensor.new_empty(0)
        return tensor.as_strided((SAMPLE // _RUN, _RUN), (self.stride, 1), tensor.storage_offset())


Selection: TypeAlias = slice | torch.Tensor | Runs


class Course:
    """Counts for one tensor. A step is counted when its optimizer has stepped (see `count`)."""

    __slots__ = (
        "account", "arrived", "change", "counted", "edits", "frozen_at", "masked_before", "masks_looked_at", "moves",
        "nonfinite", "norm", "norms", "of", "optimizer", "overwritten", "predicted", "sample", "start", "steps",
        "supplied", "withheld", "zero", "zeros",
    )  # fmt: skip

    def __init__(self) -> None:
        self.account: Account[Site] = Account()
        self.optimizer: int | None = None
        self.predicted: bool | None = None
        self.arrived = self.counted = False
        self.norm: float | None = None
        self.norms = Series(POINTS)
        self.steps = self.of = self.zero = self.nonfinite = 0
        self.zeros = 0  # gradients in a row that were exactly 0, the latest among them
        self.sample: tuple[Selection, torch.Tensor] | None = None
        self.start: float | None = None
        self.change: float | None = None
        self.supplied = False
        self.moves = Moves()
        self.masks_looked_at = self.edits = 0
        self.frozen_at: Site | None = None
        self.overwritten: Overwritten | None = None
        # Elements whose gradient was set to zero at the latest look and which moved, and what they were before it.
        self.masked_before: tuple[torch.Tensor, torch.Tensor] | None = None
        self.withheld: tuple[int, ...] = (0, 0, 0, 0)  # steps, with a gradient, with one that is zero or not finite

    def arrive(self, norm: float | None) -> None:
        """A gradient arrived; its norm is None where it could not be read."""
        self.arrived = True
        self.norm = norm

    def count(self) -> bool:
        """Close a step, and note whether a gradient arrived since the last one.

        Gives whether it has died with this step: so many zeros in a row have followed gradients other than zero.
        """
        self.of += 1
        self.counted, self.arrived = self.arrived, False
        if not self.counted:
            return False
        self.steps += 1
        if self.norm is None:
            return False
        self.norms.add(self.norm)
        if self.norm == 0:
            self.zero += 1
            self.zeros += 1
            return self.zeros == ZEROS_FOR_GOOD and self.zero < self.steps
        self.zeros = 0
        self.nonfinite += not math.isfinite(self.norm)
        return False

    def withhold(self) -> None:
        """Close a step that was not taken: it is counted apart, and no part of the course of gradients."""
        known = self.arrived and self.norm is not None
        zero, nonfinite = known and self.norm == 0, known and not math.isfinite(self.norm or 0)
        noted = 1, self.arrived, zero, nonfinite
        self.withheld = tuple(count + more for count, more in zip(self.withheld, noted, strict=True))
        self.counted = self.arrived = False

    def uncount(self) -> None:
        """Open the latest step again: it was closed too early, before its optimizer was known."""
        self.of -= 1
        if self.counted:
            self.steps -= 1
            if self.norm is not None:
                self.zero -= self.norm == 0
                self.zeros = max(0, self.zeros - 1)
                self.nonfinite -= not math.isfinite(self.norm)
                self.norms.take_back()
        self.arrived = self.counted

    def begin(self, tensor: torch.Tensor) -> None:
        """Remember the value from which movement is measured.

        Small tensors are copied; of larger ones a selection of `SAMPLE` elements is, half of it from rows that
        have a gradient where most have none, as in the table of an embedding.
        """
        if self.sample is not None:
            return
        part = values_of(tensor)
        if part is not None and part.layout is torch.strided and not part.is_nested and part.numel() > 0:
            index = _selection(part, tensor)
            first = pick(part, index).clone()
            self.sample = index, first
            self.start = _norm(first)

    def measure(self, tensor: torch.Tensor) -> None:
        """Measure how far the value has moved since `begin`."""
        measure([(self, tensor)])


def measure(courses: Iterable[tuple[Course, torch.Tensor]]) -> None:
    """Measure how far the values of tensors have moved since `begin`, all in one pass."""
    measure_picked((course, pick(tensor, course.sample[0])) for course, tensor in courses if course.sample is not None)


def measure_picked(courses: Iterable[tuple[Course, torch.Tensor]]) -> None:
    """The same for elements that have been picked already."""
    measured: list[Course] = []
    nows: list[torch.Tensor] = []
    firsts: list[torch.Tensor] = []
    for course, now in courses:
        first = course.sample[1] if course.sample is not None else now
        if now.shape == first.shape:
            measured.append(course)
            nows.append(now if now.device == first.device else now.to(first.device))
            firsts.append(first)
    for course, norm in zip(measured, norms(differences(nows, firsts)), strict=True):
        course.change = norm


def _selection(tensor: torch.Tensor, owner: torch.Tensor) -> Selection:
    """Which elements to look at, of the flat tensor: runs cost least, indices reach the rows that matter.

    `owner` has the gradient; it is the tensor itself unless that is a shard.
    """
    size = tensor.numel()
    if size <= SAMPLE:
        return _ALL
    # An odd distance does not fall on the same columns in every row.
    stride = (size - _RUN) // (SAMPLE // _RUN) - 1 | 1
    even = Runs(size, stride) if stride > _RUN else slice(None, None, size // SAMPLE)
    gradient = gradient_of(owner)
    gradient = values_of(gradient) if gradient is not None else None
    if gradient is None or gradient.layout is not torch.strided or tensor.dim() < 2 or gradient.numel() != size:
        return even
    seen = pick(gradient, even)
    if torch.count_nonzero(seen) * 2 > seen.numel():
        return even
    row = size // tensor.shape[0]
    rows = gradient.reshape(tensor.shape[0], row).any(dim=1).nonzero().reshape(-1)[: max(1, SAMPLE // 2 // row)]
    columns = torch.arange(0, row, -(-row // (SAMPLE // 2)), device=tensor.device)
    spread = torch.arange(0, size, 2 * -(-size // SAMPLE) | 1, device=tensor.device)
    return torch.cat([spread, (rows[:, None] * row + columns).reshape(-1)])


def pick(tensor: torch.Tensor, selection: Selection) -> torch.Tensor:
    """The elements that a course looks at; none where there are no values by now."""
    part = values_of(tensor)
    if part is None:
        return torch.empty(0, device="cpu")
    if selection is _ALL:
        return part.reshape(-1)
    return selection.of(part) if isinstance(selection, Runs) else part.reshape(-1)[selection]


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor) if _is_wide(tensor) else Meter(torch.float32).norm(tensor))


def _is_wide(tensor: torch.Tensor) -> bool:
    """Whether its type is one whose squares neither overflow nor vanish at once."""
    return tensor.is_complex() or tensor.dtype in _WIDE


class Meter:
    """Takes 2-norms in a type of its own, piece by piece.

    Pieces are copied into one buffer and norms written into another. Copies made and freed between results that stay
    would leave gaps in the heap, together as large as all that was copied.
    """

    __slots__ = ("_dtype", "_results", "_rooms")

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._rooms: dict[torch.device, torch.Tensor] = {}
        self._results: dict[torch.device, tuple[torch.Tensor, int]] = {}

    def norm(self, tensor: torch.Tensor) -> torch.Tensor:
        """The norm as a scalar on the tensor's device."""
        pieces = _pieces(tensor)
        room = self._rooms.get(tensor.device)
        needed = max(piece.numel() for piece in pieces)
        if room is None or len(room) < needed:
            room = self._rooms[tensor.device] = torch.empty(needed, dtype=self._dtype, device=tensor.device)
        result = self._result(tensor.device)
        if len(pieces) == 1:
            torch.linalg.vector_norm(_copy(tensor, room), out=result)
            return result
        parts = torch.empty(len(pieces), dtype=self._dtype, device=tensor.device)
        for part, piece in zip(parts, pieces, strict=True):
            torch.linalg.vector_norm(_copy(piece, room), out=part)
        torch.linalg.vector_norm(parts, out=result)
        return result

    def _result(self, device: torch.device) -> torch.Tensor:
        results, used = self._results.get(device, (None, 0))
        if results is None or used == len(results):
            results, used = torch.empty(_RESULTS, dtype=self._dtype, device=device), 0
        self._results[device] = results, used + 1
        return results[used]


def _copy(piece: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    copy: torch.Tensor = room[: piece.numel()].view(piece.shape)
    return copy.copy_(piece)


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Views of a tensor that together are all of it, of at most `_PIECE` elements each."""
    if tensor.numel() <= _PIECE:
        return (tensor,)
    # A transposed tensor is as good as one that is not.
    tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    if tensor.is_contiguous():
        return list(torch.split(tensor.view(-1), _PIECE))
    longest = max(range(tensor.dim()), key=tensor.shape.__getitem__)
    size = max(1, tensor.shape[longest] * _PIECE // tensor.numel())
    return [piece for part in torch.split(tensor, size, longest) for piece in _pieces(part)]


def differences(after: list[torch.Tensor], before: list[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The difference of each pair."""
    return torch._foreach_sub(after, before) if after else ()


def norms_known(gradients: Sequence[torch.Tensor | None]) -> list[float | None]:
    """The same as `norms`, with None for what has no values and for what is gone."""
    known = [gradient is not None and has_values(local(gradient)) for gradient in gradients]
    read = iter(
        norms([gradient for gradient, told in zip(gradients, known, strict=True) if told and gradient is not None])
    )
    return [next(read) if told else None for told in known]


def norms(gradients: Sequence[torch.Tensor]) -> list[float]:
    """2-norms of gradients, dense or sparse, in one pass; zero and non-finite results are told exactly.

    The sum of squares of tiny or huge numbers leaves the range of float32 before the numbers do, so a norm
    that came out as zero or not finite is taken again after scaling by the largest magnitude.
    """
    if _are_alike(gradients):
        return list(map(_exact, gradients, torch.stack(torch._foreach_norm(list(gradients))).tolist()))
    dense = [_values(gradient) for gradient in gradients]
    filled = [gradient for gradient in dense if gradient.numel() > 0]
    if not filled:
        return [0.0] * len(dense)
    together = [gradient for gradient in filled if _is_wide(gradient)]
    found: Sequence[torch.Tensor] = torch._foreach_norm(together) if together else ()
    if len(together) < len(filled):
        wide, meter = iter(found), Meter(torch.float32)
        found = [next(wide) if _is_wide(gradient) else meter.norm(gradient) for gradient in filled]
    if len({(norm.device, norm.dtype) for norm in found}) > 1:
        found = [norm.to(found[0].device, torch.float64) for norm in found]
    raw = iter(torch.stack(list(found)).tolist())
    return [_exact(gradient, next(raw)) if gradient.numel() > 0 else 0.0 for gradient in dense]


def _are_alike(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the norms of these can be taken at once, without a look at each."""
    kinds = {(type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.is_nested) for tensor in tensors}
    if len(kinds) != 1:
        return False
    kind, dtype, _, layout, nested = kinds.pop()
    return kind is torch.Tensor and dtype in _WIDE and layout is torch.strided and not nested


def _exact(tensor: torch.Tensor, norm: float) -> float:
    return norm if 0 < norm < math.inf or tensor.numel() == 0 else _scaled_norm(tensor)


def _values(gradient: torch.Tensor) -> torch.Tensor:
    gradient = detached(local(gradient))
    if gradient.layout is torch.sparse_coo:
        return gradient.coalesce().values()
    return gradient.values() if gradient.is_nested or gradient.layout is torch.sparse_csr else gradient


def _scaled_norm(gradient: torch.Tensor) -> float:
    largest = float(torch.linalg.vector_norm(gradient, math.inf))
    if largest == 0 or not math.isfinite(largest):
        return largest
    wide = torch.complex128 if gradient.is_complex() else torch.float64
    parts = [torch.linalg.vector_norm(piece.to(wide) / largest) for piece in _pieces(gradient)]
    return largest * float(torch.linalg.vector_norm(torch.stack(parts)))
