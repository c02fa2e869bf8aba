"""In which mode a module has run for the steps of each optimizer."""

from __future__ import annotations

from typing import Generic, TypeVar

Switch = TypeVar("Switch")


class ModeCount(Generic[Switch]):
    """The modes of a module that behaves differently in training, while gradients were kept.

    `counts` has for each optimizer the steps in which it ran in training mode, and those in which it ran in evaluation
    mode only; `switched` tells for each what had put it into that mode before the last such step.
    """

    __slots__ = ("_latest", "_ran", "counts", "operation", "switched")

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.counts: dict[int, list[int]] = {}
        self.switched: dict[int, Switch | None] = {}
        self._ran: set[bool] = set()
        self._latest: Switch | None = None

    def run(self, training: bool, switched: Switch | None) -> bool:
        """It runs, put into its mode by `switched`. Gives whether that is for the first time since the last step."""
        first = not self._ran
        self._ran.add(training)
        if not training:
            self._latest = switched
        return first

    def step(self, optimizer: int) -> None:
        """An optimizer has stepped."""
        if not self._ran:
            return
        counts = self.counts.setdefault(optimizer, [0, 0])
        if True in self._ran:
            counts[0] += 1
        else:
            counts[1] += 1
            self.switched[optimizer] = self._latest
        self._ran.clear()
