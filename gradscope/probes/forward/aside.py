"""Out of Dynamo's sight: what it compiles, guards and breaks at has to be what it would be without us.

Dynamo guards on the function modes that are on and inlines their handlers, it takes other ways under a mode, it traces
whatever torch's functions are at the moment, and it compiles every frame that is entered. So while it watches the
frames of a thread nothing of ours is at work in there: the recorders are off the stack of modes, what we have replaced
in torch is as it was, and what is left of ours lets everything pass. What it has compiled is called with Dynamo
switched off, as are the functions that the program has excepted; there the recorders are back.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from gradscope.probes import FOLDER
from gradscope.probes.forward.recorder import Recorder
from gradscope.probes.program import stacks
from gradscope.probes.tensors.patches import patched, put_back, take_out
from gradscope.probes.tensors.quiet import here


class _Thread(threading.local):
    def __init__(self) -> None:
        self.taken: list[tuple[int, Recorder]] = []  # the recorders that stepped aside, and their places on the stack
        self.bare = False  # what we have replaced in torch is as it was, for this thread
        self.excepted: list[tuple[int, bool]] = []  # calls of excepted functions: frame, and whether Dynamo watched


_here = _Thread()


def _step_aside() -> None:
    """Take the recorders of this thread off the stack of modes; the modes of the program's stay."""
    here.watched = True
    if not _here.bare:
        _here.bare = True
        take_out()
    modes = stacks.modes()
    ours = [(place, mode) for place, mode in enumerate(modes) if isinstance(mode, Recorder)]
    if ours:
        for _ in modes:
            stacks.pop()
        for mode in modes:
            if not isinstance(mode, Recorder):
                stacks.push(mode)
        _here.taken += ours


def _step_back(within: bool = False) -> None:
    """Put the recorders of this thread back where they were.

    And what was replaced in torch, unless this is `within` what Dynamo watches: each such change is dear.
    """
    here.watched = False
    if _here.bare and not within:
        _here.bare = False
        put_back()
    taken, _here.taken = _here.taken, []
    if taken:
        modes = stacks.modes()
        for _ in modes:
            stacks.pop()
        for place, recorder in taken:
            modes.insert(place, recorder)
        for mode in modes:
            stacks.push(mode)


@contextmanager
def away() -> Iterator[None]:
    """Nothing of ours is at work in this thread, whatever Dynamo switches on and off in here."""
    outer, watched, bare = here.away, here.watched, _here.bare
    here.away = True
    _step_aside()
    try:
        yield
    finally:
        here.away = outer
        if not watched:
            _step_back(within=bare)


class Callback:
    """What Dynamo calls for frames that it has not met, with nothing of ours in the way."""

    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback = callback

    def __getattr__(self, name: str) -> Any:
        """Dynamo asks for the backend behind a callback."""
        return getattr(self.callback, name)

    def __call__(self, frame: Any, *args: Any) -> Any:
        """Have a frame compiled, or learn what else to do with it."""
        if frame.f_code.co_filename.startswith(FOLDER):
            skip, unchanged = torch._dynamo.eval_frame.skip_code, torch._dynamo.types.ConvertFrameReturn
            skip(frame.f_code)
            return unchanged()
        with away():
            return self.callback(frame, *args)


def watch_callback(module: Any) -> AbstractContextManager[None]:
    """See wherever Dynamo switches itself on or off, which its `eval_frame` does through one function."""
    module.skip_code(Callback.__getattr__.__code__)
    return patched(module, "_maybe_set_eval_frame", _watched, always=True)


def watch_tracing(module: Any) -> AbstractContextManager[None]:
    """Be away also where a function is traced that nobody calls, as for `torch.export`."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def compile_frame(*args: Any, **kwargs: Any) -> Any:
            with away():
                return original(*args, **kwargs)

        return compile_frame

    return patched(module, "compile_frame", wrap, always=True)


def _watched(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def set_callback(callback: Any) -> Any:
        if here.away:
            return original(callback)
        frame = sys._getframe(1)
        if frame.f_code.co_qualname.startswith("DisableContext"):
            if _here.excepted and _here.excepted[-1][0] == id(frame):
                # It ends, and all is as it was: under `fullgraph` Dynamo itself is off already where it begins.
                if _here.excepted.pop()[1]:
                    _step_aside()
                return original(callback)
            _here.excepted.append((id(frame), here.watched))
        if callback is None:
            prior = original(None)
            _step_back(within=bool(_here.excepted))
            return prior
        _step_aside()
        return original(Callback(callback) if callable(callback) and not isinstance(callback, Callback) else callback)

    return set_callback
