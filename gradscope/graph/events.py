"""What happens to gradients between the operations, in the one order of time that operations and backwards have too.

An event's `at` comes from the same count as the ids of operations and `Backward.began`. While the program runs, a place
is where the line's code lies; in a frozen run it is a span.
"""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import msgspec

Place = TypeVar("Place")


class Event(msgspec.Struct, Generic[Place], frozen=True, tag_field="kind", gc=False):
    """Something that happens at a time and a place of the program."""

    at: int
    place: Place


class Cleared(Event[Place], frozen=True, tag="clear", gc=False):
    """The gradients of these tensors are set to None or to zero; `swept` with all of an optimizer or a module."""

    tensors: tuple[int, ...]
    swept: bool = False


class Clipped(Event[Place], frozen=True, tag="clip", gc=False):
    """The gradients of these tensors are made smaller, where they are larger than `limit` (by `norm`, or by value)."""

    tensors: tuple[int, ...]
    limit: float
    by_norm: bool = True


class Unscaled(Event[Place], frozen=True, tag="unscale", gc=False):
    """A GradScaler divides the gradients of an optimizer by its scale."""

    optimizer: int
    scale: float | None


class Updated(Event[Place], frozen=True, tag="update", gc=False):
    """An optimizer uses what `.grad` holds: a step, or one call of its closure."""

    optimizer: int


class Withheld(Event[Place], frozen=True, tag="withheld", gc=False):
    """A GradScaler leaves out the step of an optimizer, for gradients that are not finite."""

    optimizer: int
    scale: float | None


AnyEvent: TypeAlias = Cleared[Place] | Clipped[Place] | Unscaled[Place] | Updated[Place] | Withheld[Place]
