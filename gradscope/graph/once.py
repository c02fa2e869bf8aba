"""Questions to a run that are answered once, however many rules ask them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Concatenate, ParamSpec, TypeVar

from gradscope.graph.facts import Run

_Rest = ParamSpec("_Rest")
_Answer = TypeVar("_Answer")

_latest: list[tuple[Run, dict[Hashable, Any]]] = []  # of one run only: answers are as large as what they speak of


def once(question: Callable[Concatenate[Run, _Rest], _Answer]) -> Callable[Concatenate[Run, _Rest], _Answer]:
    """Remember what a function answers for the run that is judged now; nobody may change its answer."""

    @functools.wraps(question)
    def asked(run: Run, /, *rest: _Rest.args, **named: _Rest.kwargs) -> _Answer:
        if not _latest or _latest[0][0] is not run:
            _latest[:] = [(run, {})]
        answers, key = _latest[0][1], (question, rest, *named.items())
        if key not in answers:
            answers[key] = question(run, *rest, **named)
        answer: _Answer = answers[key]
        return answer

    return asked


def forget() -> None:
    """Let go of the run that was judged last."""
    _latest.clear()
