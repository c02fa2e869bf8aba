"""Warnings that torch raises while our handler is on the stack, put back on the user's line.

Under a function mode, torch's warnings point at the line of the handler that passed the call on. The text is the
same but the place is wrong, and Python shows a warning once for each place. So a warning that names one of our
files is issued again for the frame that made the call.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from gradscope.probes import functions, modules, recorder

_OURS = {os.path.abspath(str(module.__file__)): module.__dict__ for module in (recorder, functions, modules)}


@contextmanager
def warnings_in_place() -> Iterator[None]:
    """While this is on, a warning that would be shown for a line of ours is shown for the user's."""
    original = warnings.showwarning

    def show(
        message: Any,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        own = _OURS.get(filename)
        frame = _caller(sys._getframe(1)) if own is not None else None
        if own is None or frame is None:
            original(message, category, filename, lineno, file, line)
            return
        # Python remembers that it has shown this text for our line: it would never show it for another of the user's.
        own.pop("__warningregistry__", None)
        warnings.warn_explicit(
            message,
            category,
            frame.f_code.co_filename,
            frame.f_lineno,
            frame.f_globals.get("__name__"),
            frame.f_globals.setdefault("__warningregistry__", {}),
        )

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = original


def _caller(frame: FrameType | None) -> FrameType | None:
    """The frame that called the function which our handler passed on."""
    while frame is not None and frame.f_code.co_filename not in _OURS:
        frame = frame.f_back
    while frame is not None and frame.f_code.co_filename in _OURS:
        frame = frame.f_back
    # A Python function of torch's asks the mode first: below the handler it stands on the stack a second time.
    if frame is not None and frame.f_code.co_name == "handle_torch_function" and frame.f_back is not None:
        frame = frame.f_back.f_back
    return frame
