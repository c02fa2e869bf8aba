"""Whether gradients are clipped while they are there: between the backward that brings them and the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

Place = TypeVar("Place")
# Where a clip lies: `in time`; `early`, before the backward; `late`, after the step that used what it clips; `scaled`,
# before the gradients were divided by the scale of a GradScaler.
Timing: TypeAlias = Literal["in time", "early", "late", "scaled"]

State: TypeAlias = Literal["fresh", "used", "none"]  # of a gradient: not used yet, used already, or not there


@dataclass(slots=True)
class ClipLine:
    """How often one line's clips had which timing for the uses of one leaf's gradient, and the latest limit and scale.

    `first` says that it was there before any backward: what it lies after is then the step before.
    """

    limit: float
    first: bool = False
    scale: float | None = None
    uses: dict[Timing, int] = field(default_factory=dict)


class Clips(Generic[Place]):
    """The clips of one leaf's gradient.

    A use counts for the line whose clip was the last that worked on what is used, else for the last that had nothing of
    it to work on. So clipping after each of several backwards is in time, and clipping once more after the step is no
    fault. `awaits` says that nothing has ever arrived, `used` that what `.grad` holds has been used.
    """

    __slots__ = ("_done", "_missed", "lines")

    def __init__(self) -> None:
        self.lines: dict[Place, ClipLine] = {}
        self._done: Place | None = None  # the line that has clipped all that is in `.grad`
        self._missed: tuple[Place, Timing] | None = None

    def clip(self, place: Place, limit: float, state: State, *, arrived: bool) -> None:
        """A line clips the gradient, of which one has `arrived` before, or never any."""
        line = self.lines.get(place)
        if line is None:
            line = self.lines[place] = ClipLine(limit, first=not arrived)
        line.limit = limit
        if state == "fresh":
            self._done = place
        else:
            self._missed = place, "late" if state == "used" and not line.first else "early"

    def arrive(self) -> None:
        """A backward adds to the gradient, which nobody has clipped yet."""
        self._done = None

    def unscale(self, scale: float | None) -> None:
        """The gradient is divided by a scale: until here it was too large by that."""
        if self._done is not None:
            self.lines[self._done].scale = scale
            self._missed, self._done = (self._done, "scaled"), None

    def clear(self) -> None:
        """The gradient is thrown away, together with what a clip has made of it."""
        if self._done is not None:
            self._missed, self._done = (self._done, "early"), None
        elif self._missed is not None and self._missed[1] == "scaled":
            self._missed = None

    def use(self) -> None:
        """The gradient is used: that of a step or of an update by hand."""
        latest: tuple[Place, Timing] | None = (self._done, "in time") if self._done is not None else self._missed
        if latest is not None:
            place, timing = latest
            uses = self.lines[place].uses
            uses[timing] = uses.get(timing, 0) + 1
        self._done = self._missed = None
