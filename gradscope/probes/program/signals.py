"""Signals that arrive while we are at work: what the program's handler raises is no failure of ours."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import CodeType


def pass_on(error: BaseException) -> None:
    """Raise the exception again where a handler of signals has raised it, as a limit of time does."""
    if _raised_by(set(_handlers()), error):
        raise error


def _raised_by(codes: set[CodeType], error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _handlers() -> Iterator[CodeType]:
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler):
            for function in (handler, type(handler).__call__):
                code = getattr(function, "__code__", None)
                if isinstance(code, CodeType):
                    yield code
