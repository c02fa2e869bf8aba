"""Exceptions of the program, shown as without us."""

from __future__ import annotations

import pytest

from gradscope.probes import tracebacks


def raising(file: str) -> object:
    """A function that fails, of a file of that name."""
    scope: dict[str, object] = {}
    exec(compile("def fail():\n    raise RecursionError", file, "exec"), scope)
    return scope["fail"]


@pytest.mark.parametrize("ours", [True, False])
def test_what_was_raised_within_our_frames_alone_is_not_shown(ours: bool) -> None:
    """An exception that the program never saw is no context of its own; one of the program's stays."""
    fail = raising(f"{tracebacks._HERE}made_up.py" if ours else "train.py")
    assert callable(fail)
    try:
        fail()
    except RecursionError as error:
        first = error
        first.__traceback__ = error.__traceback__.tb_next if error.__traceback__ is not None else None
        second = ValueError("the program's own")
        second.__context__ = first
    tracebacks.clean(second)
    assert second.__context__ is (None if ours else first)
