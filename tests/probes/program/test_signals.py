"""Handlers of signals that run while we are at work."""

from __future__ import annotations

import signal

import pytest

from gradscope.probes.forward.callsites import CallSites
from gradscope.probes.tape import Tape


class OutOfTime(Exception):
    pass


def out_of_time(*_: object) -> None:
    """A handler as a limit of time sets it."""
    raise OutOfTime


class Limit:
    def __call__(self, *_: object) -> None:
        """The same as an object."""
        raise OutOfTime


def interrupted(tape: Tape) -> None:
    """A probe at work."""
    try:
        signal.raise_signal(signal.SIGALRM)
    except Exception as error:
        tape.fail("probe", error)


@pytest.mark.parametrize("handler", [out_of_time, Limit()])
def test_what_a_handler_raises_goes_on_to_the_program(handler: object) -> None:
    """A signal that arrives within a probe ends the program's loop, and is no failure of the probe."""
    tape = Tape(CallSites())
    before = signal.signal(signal.SIGALRM, handler)  # type: ignore[arg-type]
    try:
        with pytest.raises(OutOfTime):
            interrupted(tape)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not tape.failures
    tape.fail("probe", OutOfTime())
    assert list(tape.failures) == ["probe failed: OutOfTime: "]
