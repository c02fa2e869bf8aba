"""Tracebacks as Python would have shown them without us.

Our frames are taken out of an exception as it leaves them (`hidden`). What remains are frames of torch's which are
there because of us: a Python function of torch's asks the function mode first, and is entered a second time for its
work. These are left out where a traceback or a stack is read off, which Python, `logging`, torch's anomaly mode and
most others do by the generators of the module `traceback`.
"""

from __future__ import annotations

import functools
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType, TracebackType
from typing import Any

from gradscope.probes import FOLDER
from gradscope.probes.program.recursion import run_at_foot
from gradscope.probes.tensors.patches import patched

_OVERRIDES = os.path.join("torch", "overrides.py")
_AGAIN = 3  # functions of torch's that are entered again for one that asks


def is_ours(code: CodeType) -> bool:
    """Whether this is code of a probe."""
    return code.co_filename.startswith(FOLDER)


def asks(code: CodeType) -> bool:
    """Whether this is the function by which Python functions of torch's ask the function modes."""
    return code.co_name == "handle_torch_function" and code.co_filename.endswith(_OVERRIDES)


def without_ours(trace: TracebackType | None) -> TracebackType | None:
    """A traceback as Python would have shown it without us.

    Our frames go; and where a Python function of torch's was entered twice, once to ask the function mode and
    once to do its work, the asking goes as well.
    """
    entries: list[TracebackType] = []
    while trace is not None:
        if not is_ours(trace.tb_frame.f_code):
            entries.append(trace)
        trace = trace.tb_next
    entries.reverse()
    codes = [entry.tb_frame.f_code for entry in entries]
    asking = {place for place, code in enumerate(codes) if asks(code) and _asks_a_mode(entries, place)}
    result: TracebackType | None = None
    for place in _kept(codes, asking):
        entry = entries[place]
        result = TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result


def _asks_a_mode(entries: Sequence[TracebackType], place: int) -> bool:
    """Whether the mode that was asked here was ours: the frame of another would stand next."""
    code, line = entries[place].tb_frame.f_code, entries[place].tb_lineno
    inner = entries[place - 1].tb_frame.f_code.co_name if place else ""
    return ".__torch_function__(" in linecache.getline(code.co_filename, line) and inner != "__torch_function__"


def _kept(codes: Sequence[CodeType], asking: Collection[int]) -> list[int]:
    """Which of these, the innermost first, would be there if the functions at `asking` had not been called."""
    kept: list[int] = []
    place = 0
    while place < len(codes):
        if place not in asking:
            kept.append(place)
        else:
            outer = codes[place + 1 : place + 2 + _AGAIN]
            place += _entered_again(outer, [codes[done] for done in kept[-_AGAIN:]])
        place += 1
    return kept


def _entered_again(outer: Sequence[CodeType], inner: Sequence[CodeType]) -> int:
    """How many of those around one that asks are there for the asking alone: they were entered again within it.

    What called it is one, together with what chose that for its arguments; or it did nothing but ask, as for `unique`.
    """
    for asking in (0, 1):
        for count in range(1, len(outer) - asking + 1):
            if list(outer[asking : asking + count]) == list(inner[-count:]):
                return asking + count
    return 0


def frames_without_ours(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those around it, outwards, as they would be without us."""
    frames: list[FrameType] = []
    asking: set[int] = set()
    ours = False
    while frame is not None and frame.f_code is not run_at_foot.__code__:  # below stands who runs the program
        if ours and asks(frame.f_code):
            asking.add(len(frames))
        ours = is_ours(frame.f_code)
        if not ours:
            frames.append(frame)
        frame = frame.f_back
    return (frames[place] for place in _kept([each.f_code for each in frames], asking))


@contextmanager
def tracebacks_without_ours() -> Iterator[None]:
    """While this is on, the module `traceback` shows neither tracebacks nor stacks with our frames in them."""

    def wrap_stack(original: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
        def walk_stack(f: Any) -> Iterator[Any]:
            if f is None and sys.version_info < (3, 14):
                return _from_caller()
            if not isinstance(f, FrameType):
                return original(f)
            return ((frame, frame.f_lineno) for frame in frames_without_ours(f))

        return walk_stack

    def wrap_trace(original: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
        def walk_tb(tb: Any) -> Iterator[Any]:
            return original(without_ours(tb) if isinstance(tb, TracebackType) else tb)

        return walk_tb

    def wrap_hook(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def excepthook(exctype: Any, value: Any, traceback: Any, /) -> None:
            if isinstance(value, BaseException):
                clean(value)
            original(exctype, value, traceback)

        return excepthook

    default = wrap_hook(sys.__excepthook__)  # one for both names: programs ask whether they are the same
    hooked = sys.excepthook is sys.__excepthook__
    with (
        patched(sys, "__excepthook__", lambda _: default, always=True),
        patched(sys, "excepthook", lambda original: default if hooked else original, always=True),
        patched(traceback, "walk_stack", wrap_stack, always=True),
        patched(traceback, "walk_tb", wrap_trace, always=True),
        patched(traceback, "_walk_tb_with_full_positions", wrap_trace, always=True),
    ):
        yield


def hide(error: BaseException) -> None:
    """An exception is about to leave a frame of ours: as if it had not come through it."""
    error.__traceback__ = without_ours(error.__traceback__)


def _from_caller() -> Iterator[tuple[FrameType, int]]:
    """What `traceback.walk_stack` gives without a frame: it counts from where `StackSummary.extract` is called."""
    frame: FrameType | None = sys._getframe()
    for _ in range(4):
        frame = frame.f_back if frame is not None else None
    for found in frames_without_ours(frame):
        yield found, found.f_lineno


class _Hidden:
    """Around what the program runs by us: what it raises leaves as by `hide`."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            hide(error)


hidden = _Hidden()


def clean(error: BaseException) -> None:
    """Take our frames out of an exception's traceback, and of those that it came from.

    What was raised within our frames alone is taken out as a whole: a stack that ends there would have ended
    in the program a little later.
    """
    waiting, seen = [error], {id(error)}
    while waiting:
        current = waiting.pop()
        current.__traceback__ = without_ours(current.__traceback__)
        context = current.__context__
        if context is not None and context.__traceback__ is not None and without_ours(context.__traceback__) is None:
            current.__context__ = context.__context__ if context.__context__ is not current else None
        for other in (current.__cause__, current.__context__, *getattr(current, "exceptions", ())):
            if isinstance(other, BaseException) and id(other) not in seen:
                seen.add(id(other))
                waiting.append(other)
