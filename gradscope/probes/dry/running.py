"""A dry run: the modes, the plain surroundings and the end, put in before all other probes."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gradscope.graph.facts import Dry
from gradscope.probes.dry.ending import SECONDS, STEPS, Enough
from gradscope.probes.dry.modes import LeavingMode, ValueMode
from gradscope.probes.dry.standins import StandIns
from gradscope.probes.dry.surroundings import plain_surroundings
from gradscope.probes.program import stacks
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.training.optimizers import StepsReached

_TIME_IS_UP = f"{SECONDS:.0f} seconds had passed"
_LATE = 2.0  # seconds that a program has for its next call of torch, before it is interrupted


class DryRun:
    """Fake tensors for all that the program makes, and stand-ins for what it reads.

    Where it `ends`, the program is ended as soon as enough was seen, or after a minute.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        tape.fake = True
        self._noted = StandIns(tape.sites)
        self.ends = False
        self._enough = Enough(tape)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._reason: str | None = None
        self._left = self._woken = False
        self._before: list[Callable[[], None]] = []

    def facts(self) -> Dry:
        """What is told of it."""
        return Dry(self._noted.facts(), self._reason)

    def step_ended(self) -> None:
        """An optimizer has stepped. Raises StepsReached where that was the last step that is needed."""
        if self.ends and self._reason is None and self._enough.steps():
            self._end(f"every optimizer had made {STEPS} steps and one more")

    def _tick(self) -> None:
        if self._reason is not None:
            self._leave()
        elif self.ends and self._enough.time:
            self._end(_TIME_IS_UP)

    def _end(self, reason: str) -> None:
        self._reason = reason
        self._leave()

    def _leave(self) -> None:
        """End the program from its main thread: others may have somebody who waits for them."""
        if threading.current_thread() is threading.main_thread() and not self._left:
            self._left = True  # what is done on the way out is done
            raise StepsReached(0)

    @property
    def interrupted(self) -> bool:
        """Whether the interrupt that has ended the program was ours."""
        return self._woken

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """Interrupt a program that runs into its time without calling torch: it may wait for ever."""

        def wake() -> None:
            if not self._left:
                self._woken, self._reason = True, self._reason or _TIME_IS_UP
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        timer = threading.Timer(SECONDS + _LATE, wake)
        timer.daemon = True
        if self.ends:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The dry run itself: for this thread, and for those that it starts."""
        with ExitStack() as stack:
            stack.callback(self._put_back)
            stack.enter_context(self._watchdog())
            stack.enter_context(plain_surroundings(self._noted))
            stack.enter_context(self._modes())
            yield

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Each thread that starts has the modes too, below those that were put in before."""

        def wrap(original: Callable[..., None]) -> Callable[..., None]:
            @functools.wraps(original)
            def bootstrap(thread: threading.Thread, *args: Any) -> None:
                with self._modes():
                    original(thread, *args)

            return bootstrap

        with patched(threading.Thread, "_bootstrap_inner", wrap, always=True):
            yield

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """The modes, which count for one thread."""
        leaving = LeavingMode(self._noted)
        with self._fake, ValueMode(self._fake, self._noted, self._tick):
            stacks.push(leaving)
            try:
                yield
            finally:
                stacks.pop()

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Put back at the end what an optimizer and its tensors hold now: they are the caller's, and real."""
        params = [(tensor, tensor.grad) for group in optimizer.param_groups for tensor in group["params"]]
        state = {key: dict(values) for key, values in optimizer.state.items()}
        # torch computes with tensors of one element for real, also with those that count steps.
        counts = [
            (value, value.clone())
            for values in state.values()
            for value in values.values()
            if isinstance(value, torch.Tensor) and value.numel() == 1
        ]

        def put_back() -> None:
            for value, count in counts:
                value.copy_(count)
            for tensor, gradient in params:
                tensor.grad = gradient
            optimizer.state.clear()
            optimizer.state.update(state)

        self._before.append(put_back)

    def _put_back(self) -> None:
        with unobserved():
            for put_back in self._before:
                put_back()
            self._before.clear()
            for _, tensor in self._tape.watched():
                if not isinstance(tensor, FakeTensor) and isinstance(tensor.grad, FakeTensor):
                    tensor.grad = None
