"""Tracebacks as Python would have shown them without us."""

from __future__ import annotations

import os
from types import CodeType, TracebackType

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def without_ours(trace: TracebackType | None) -> TracebackType | None:
    """A traceback as Python would have shown it without us.

    Our frames go; and where a Python function of torch's was entered twice, once to ask the function mode and
    once to do its work, the asking goes as well.
    """
    frames: list[TracebackType] = []
    while trace is not None:
        if not os.path.abspath(trace.tb_frame.f_code.co_filename).startswith(_HERE):
            frames.append(trace)
        elif frames and _asks(frames[-1].tb_frame.f_code):
            del frames[-2:]
        trace = trace.tb_next
    result: TracebackType | None = None
    for kept in reversed(frames):
        result = TracebackType(result, kept.tb_frame, kept.tb_lasti, kept.tb_lineno)
    return result


def _asks(code: CodeType) -> bool:
    return code.co_name == "handle_torch_function" and code.co_filename.endswith(os.path.join("torch", "overrides.py"))


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
