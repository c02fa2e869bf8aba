"""What `torch.utils.checkpoint` runs again in backward: which calls it makes there, in case they are others.

No mode is on while the engine runs, so nobody records the second run; and it cannot be had once more, for the program
may have changed by it. A mode of ours listens for as long as it takes. It writes down places and shapes and keeps no
tensor.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch.compiler import is_compiling

from gradscope.probes.backward.failing import identity
from gradscope.probes.forward.callsites import Site
from gradscope.probes.program import stacks
from gradscope.probes.program.tracebacks import hidden
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unasked

_MOST = 5_000  # calls of one run that are remembered


@dataclass(slots=True)
class Recompute:
    """A function: the call of `checkpoint`, numbers around the operations of its first run, and its latest calls."""

    site: Site | None
    began: int
    ended: int | None = None
    calls: list[tuple[Any, Site, tuple[int, ...]]] = field(default_factory=list)
    raised: tuple[int, type, str] | None = None  # what came out of it


@contextmanager
def watch_recomputes(tape: Tape) -> Iterator[None]:
    """Listen to each function that checkpointing runs again, of the kind that is not reentrant."""

    def wrap_init(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def init(self: Any, frame: Any) -> None:
            original(self, frame)
            if tape.active and not is_compiling():
                self.__gradscope__ = heard = Recompute(tape.sites.here(), tape.next_operation())
                frame.recompute_fn = _listening(tape, frame.recompute_fn, heard)

        return init

    def wrap_exit(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def leave(self: Any, *raised: Any) -> Any:
            heard = vars(self).pop("__gradscope__", None)
            if heard is not None and tape.active:
                heard.ended = tape.next_operation()
            return original(self, *raised)

        return leave

    hook = torch.utils.checkpoint._checkpoint_hook
    with patched(hook, "__init__", wrap_init), patched(hook, "__exit__", wrap_exit):
        yield


def _listening(tape: Tape, run: Callable[..., Any], heard: Recompute) -> Callable[..., Any]:
    @functools.wraps(run)
    def recompute(*args: Any) -> Any:
        if not tape.active or is_compiling():
            return run(*args)
        heard.calls, tape.recompute = [], heard
        try:
            with hidden, _Listener(tape, heard):
                return run(*args)
        except Exception as error:
            heard.raised = identity(error)
            raise

    return recompute


class _Listener(stacks.HiddenMode):
    def __init__(self, tape: Tape, heard: Recompute) -> None:
        super().__init__()
        self.tape, self.heard = tape, heard

    def __enter__(self) -> _Listener:
        stacks.push(self)
        return self

    def __exit__(self, *raised: object) -> None:
        stacks.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with hidden:
            result = func(*args, **(kwargs or {}))
        if not is_compiling():
            try:
                self._note(func, result, sys._getframe(1))
            except Exception as error:
                self.tape.fail("probe of recomputing", error)
        return result

    def _note(self, func: Any, result: Any, frame: FrameType) -> None:
        made = next(_tensors(result), None)
        site = self.tape.sites.find(frame) if made is not None and len(self.heard.calls) < _MOST else None
        if site is not None and made is not None:
            with unasked():
                self.heard.calls.append((func, site, tuple(made.shape)))


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for item in result:
            yield from _tensors(item)
