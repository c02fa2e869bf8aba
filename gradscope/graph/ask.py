"""Questions to a run, each answered once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Concatenate, ParamSpec, TypeVar

from gradscope.graph.facts import Run

_Answer = TypeVar("_Answer")
_About = ParamSpec("_About")


class Ask:
    """A run that is being judged, and what has been found out about it so far.

    A question is a function of an `Ask`, and of what else it is about: `ask(cuts)`, `ask(rounds, optimizer.id)`. The
    answer is kept for as long as the `Ask` lives, so it must not be changed by who gets it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._answers: dict[Hashable, Any] = {}

    def __call__(
        self, question: Callable[Concatenate[Ask, _About], _Answer], *about: _About.args, **more: _About.kwargs
    ) -> _Answer:
        """The answer to a question. What it is about must be hashable."""
        key = (question, about, *sorted(more.items()))
        if key not in self._answers:
            self._answers[key] = question(self, *about, **more)
        answer: _Answer = self._answers[key]
        return answer
