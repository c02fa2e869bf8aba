"""The depth of recursion that a program has without us.

A script stands on our own frames, and Python counts these as well. So while it runs, the limit is higher by their
number, which is nowhere to be seen: what the script reads of the limit and sets it to is as it would be.
"""

from __future__ import annotations

import _thread
import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from gradscope.probes.patches import patched

_DEPTH = re.compile(r"at the recursion depth (\d+)")
_MEASURING = compile("measure()", __file__, "exec")
_set_limit, _limit = sys.setrecursionlimit, sys.getrecursionlimit
_given = 0  # levels by which the limit is higher than the program knows


def run_at_foot(code: CodeType, variables: dict[str, Any]) -> None:
    """Run the code of a program, which may go as deep as if nothing lay below it."""
    found: list[int] = []
    exec(_MEASURING, {"measure": lambda: _measure(found)})
    with _limit_raised_by(found[0] - _depth_on_nothing() if found else 0):
        exec(code, variables)


@contextmanager
def _limit_raised_by(levels: int) -> Iterator[None]:
    global _given
    if levels <= 0 or _given:
        yield
        return

    def wrap_limit(original: Callable[[], int]) -> Callable[[], int]:
        @functools.wraps(original)
        def getrecursionlimit() -> int:
            return original() - _given

        return getrecursionlimit

    def wrap_setting(original: Callable[[int], None]) -> Callable[[int], None]:
        @functools.wraps(original)
        def setrecursionlimit(limit: Any, /) -> None:
            original(limit + _given if isinstance(limit, int) and limit > 0 else limit)

        return setrecursionlimit

    before = _limit()
    with patched(sys, "getrecursionlimit", wrap_limit), patched(sys, "setrecursionlimit", wrap_setting):
        _given = levels
        _set_limit(before + levels)
        try:
            yield
        finally:
            _given = 0
            _set_limit(before)


def at_bare_depth(call: Callable[[], None], taken: int) -> None:
    """Call from so deep that a thread, of which we have `taken` so many levels, may go no deeper than in Python."""
    if taken >= _given:
        call()
    else:
        at_bare_depth(call, taken + 1)


def _measure(found: list[int]) -> None:
    try:
        _set_limit(1)
    except RecursionError as error:  # it tells how deep we are
        told = _DEPTH.search(str(error))
        if told is not None:
            found.append(int(told[1]))


def _depth_on_nothing() -> int:
    """How deep the same is in a thread, which stands on nothing, as a script does."""
    found: list[int] = []
    done = _thread.allocate_lock()

    def module() -> None:
        try:
            (lambda: _measure(found))()
        finally:
            done.release()

    done.acquire()
    _thread.start_new_thread(module, ())
    done.acquire()
    return found[0]
