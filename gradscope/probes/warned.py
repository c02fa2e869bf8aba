"""Warnings that are raised while our handlers are on the stack, put back on the line that they are for.

Who warns names the place by its distance on the stack, and our frames lie in between. The text is the same but
the place is wrong, and Python shows a warning once for each place. So where the place was counted through frames
that are there because of us, it is counted again without them, and the warning is issued for what comes out.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_PROBES = os.path.dirname(os.path.abspath(__file__)) + os.sep
_OVERRIDES = os.path.join("torch", "overrides.py")
_ISSUING = threading.local()  # one for all observations: of two at once, only the inner one counts again


@contextmanager
def warnings_in_place() -> Iterator[None]:
    """While this is on, warnings are shown for the places for which they would be shown without us.

    `_showwarnmsg` is where every warning comes by, shown or recorded; `showwarning` belongs to the user, and
    `warnings.catch_warnings(record=True)` takes it away for a while.
    """
    original = warnings._showwarnmsg  # type: ignore[attr-defined]

    def show(message: warnings.WarningMessage) -> None:
        places = None if getattr(_ISSUING, "now", False) else _places(sys._getframe(1), message)
        if places is None:
            original(message)
            return
        wrong, right = places
        _forget(wrong, message)
        _ISSUING.now = True
        try:
            warnings.warn_explicit(
                message.message,
                message.category,
                right.f_code.co_filename,
                right.f_lineno,
                right.f_globals.get("__name__"),
                right.f_globals.setdefault("__warningregistry__", {}),
                source=message.source,
            )
        finally:
            _ISSUING.now = False

    warnings._showwarnmsg = show  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if warnings._showwarnmsg is show:  # type: ignore[attr-defined]
            warnings._showwarnmsg = original  # type: ignore[attr-defined]


def _places(frame: FrameType | None, message: warnings.WarningMessage) -> tuple[FrameType, FrameType] | None:
    """The frame that a warning names and the one that it would name without us; None where that is the same."""
    every: list[FrameType] = []
    theirs: list[FrameType] = []
    reached: int | None = None
    while frame is not None and (reached is None or len(theirs) < reached):
        code = frame.f_code
        if reached is None:
            every.append(frame)
            if code.co_filename == message.filename and frame.f_lineno == message.lineno:
                reached = len(every)
        outer = frame.f_back
        if not code.co_filename.startswith(_PROBES):
            theirs.append(frame)
        elif outer is not None and _asks(outer):
            # A Python function of torch's asks the mode first, and stands on the stack a second time for it.
            for asking in (outer, outer.f_back):
                if reached is None and asking is not None:
                    every.append(asking)
                    if asking.f_code.co_filename == message.filename and asking.f_lineno == message.lineno:
                        reached = len(every)
            outer = outer.f_back and outer.f_back.f_back
        frame = outer
    if reached is None or len(theirs) < reached or theirs[reached - 1] is every[reached - 1]:
        return None
    return every[reached - 1], theirs[reached - 1]


def _asks(frame: FrameType) -> bool:
    return frame.f_code.co_name == "handle_torch_function" and frame.f_code.co_filename.endswith(_OVERRIDES)


def _forget(frame: FrameType, message: warnings.WarningMessage) -> None:
    """Python remembers what it has shown for a place; for the wrong place it must not."""
    text, category = str(message.message), message.category
    registry: dict[Any, Any] = frame.f_globals.get("__warningregistry__", {})
    for key in ((text, category, message.lineno), (text, category, 0), (text, category)):  # of the various filters
        registry.pop(key, None)
    once: dict[Any, Any] = warnings.onceregistry  # type: ignore[attr-defined]
    once.pop((text, category), None)
