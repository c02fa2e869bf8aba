"""The depth of recursion that a program has without us.

A script stands on our own frames, and each module of it that runs within another has one of ours below it. Python
counts these as well. So the limit is higher by their number, which is nowhere to be seen: what the script reads of
the limit and sets it to is as it would be.
"""

from __future__ import annotations

import _thread
import functools
import operator
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import CodeType
from typing import Any

from gradscope.probes.tensors.patches import patched

_DEPTH = re.compile(r"at the recursion depth (\d+)")
_MEASURING = compile("measure()", __file__, "exec")
set_limit, _limit = sys.setrecursionlimit, sys.getrecursionlimit
_A_LEVEL = [None]


class _Levels:
    """What the program knows as its limit, and by how many levels the limit is higher than that."""

    def __init__(self) -> None:
        self.known = 0  # 0 as long as the limit is left alone
        self.foot = 0  # frames of ours that the program stands on
        self.spent: list[None] = []  # an entry for each frame of ours that a module runs in, of all threads

    def limit(self) -> int:
        """Where the limit is to be."""
        return self.known + self.foot + len(self.spent)

    def spend(self, levels: int = 1) -> bool:
        """Frames of ours go below what the program does: let it go as deep as without; False at the very end."""
        if not self.known:
            return False
        self.spent += _A_LEVEL * levels
        try:
            set_limit(self.known + self.foot + len(self.spent))
        except RecursionError:
            del self.spent[-levels:]
            return False
        return True

    def regain(self, levels: int = 1) -> None:
        """Those frames are over."""
        del self.spent[-levels:]
        try:  # noqa: SIM105 - costs less, and no level
            set_limit(self.known + self.foot + len(self.spent))
        except RecursionError:  # at the very end again: the frame around it sets the limit in its turn
            pass

    def set(self, known: int, foot: int = 0) -> None:
        """Have the limit where the program sets it, with so many more frames of ours below the program."""
        set_limit(known + self.foot + foot + len(self.spent))
        self.known = known
        self.foot += foot


LEVELS = _Levels()


def run_at_foot(code: CodeType, variables: dict[str, Any]) -> None:
    """Run the code of a program, which may go as deep as if nothing lay below it."""
    found: list[int] = []
    exec(_MEASURING, {"measure": lambda: _measure(found)})
    with limit_kept(max(found[0] - _depth_on_nothing(), 0) if found else 0):
        limit = LEVELS.known
        try:
            exec(code, variables)
        finally:
            LEVELS.set(limit)


@contextmanager
def limit_kept(foot: int = 0) -> Iterator[None]:
    """While this is on, our frames are made up for; `foot` of them lie below the program already."""
    with nullcontext() if LEVELS.known else _limit_hidden():
        LEVELS.set(LEVELS.known, foot)
        try:
            yield
        finally:
            LEVELS.set(LEVELS.known, -foot)


@contextmanager
def _limit_hidden() -> Iterator[None]:
    def wrap_limit(original: Callable[[], int]) -> Callable[[], int]:
        return functools.wraps(original)(lambda: LEVELS.known)

    def wrap_setting(original: Callable[[int], None]) -> Callable[[int], None]:
        @functools.wraps(original)
        def setrecursionlimit(limit: Any, /) -> None:
            number = operator.index(limit)
            if number <= 0:
                original(number)  # which says what is wrong
            LEVELS.set(number)

        return setrecursionlimit

    with (
        patched(sys, "getrecursionlimit", wrap_limit, always=True),
        patched(sys, "setrecursionlimit", wrap_setting, always=True),
    ):
        LEVELS.known = _limit()
        try:
            yield
        finally:
            set_limit(LEVELS.known)
            LEVELS.known = 0


def at_bare_depth(call: Callable[[], None], taken: int) -> None:
    """Call from so deep that a thread, of which we have `taken` so many levels, may go no deeper than in Python."""
    if taken >= LEVELS.foot:
        call()
    else:
        at_bare_depth(call, taken + 1)


def stack_is_used_up() -> bool:
    """Whether the program is so deep that ours fails for it; calls between C and Python count as levels, too."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth > _limit() // 3


def _measure(found: list[int]) -> None:
    try:
        set_limit(1)
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
