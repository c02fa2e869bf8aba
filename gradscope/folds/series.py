"""A series of numbers of any length, of which only so many are kept."""

from __future__ import annotations


class Series:
    """At most `most` numbers, evenly spread over all that came: every `stride`-th is kept."""

    __slots__ = ("most", "points", "seen", "stride")

    def __init__(self, most: int) -> None:
        self.most = most
        self.points: list[float] = []
        self.stride = 1
        self.seen = 0

    def add(self, value: float) -> None:
        """Append a number, and thin the series out once it is full."""
        if self.seen % self.stride == 0:
            self.points.append(value)
            if len(self.points) >= self.most:
                self.points = self.points[::2]
                self.stride *= 2
        self.seen += 1

    def take_back(self) -> None:
        """Forget the number that was appended last."""
        self.seen -= 1
        if self.seen % self.stride == 0 and self.points:
            self.points.pop()
