"""Awaiting something within a context that holds only while it runs, and not while it waits."""

from __future__ import annotations

import functools
import types
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any


@types.coroutine
def await_within(
    context: Callable[[], AbstractContextManager[Any]], awaitable: Awaitable[Any]
) -> Generator[Any, Any, Any]:
    """What a coroutine, or a step of an async generator, gives; each of its turns runs in a new context.

    While it waits the event loop runs others, which have nothing to do with it.
    """
    turns: Any = awaitable.__await__()
    turn = functools.partial(turns.send, None)
    while True:
        try:
            with context():
                waiting = turn()
        except StopIteration as end:
            return end.value
        try:
            turn = functools.partial(turns.send, (yield waiting))
        except GeneratorExit:
            turns.close()
            raise
        except BaseException as error:
            turn = functools.partial(turns.throw, error)
