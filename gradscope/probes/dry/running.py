"""A dry run: the modes, the plain surroundings and the end, put in before all other probes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gradscope.graph.facts import Dry
from gradscope.probes import stacks
from gradscope.probes.dry.ending import SECONDS, Enough
from gradscope.probes.dry.modes import LeavingMode, ValueMode
from gradscope.probes.dry.standins import StandIns
from gradscope.probes.dry.surroundings import plain_surroundings
from gradscope.probes.optimizers import StepsReached
from gradscope.probes.quiet import unobserved
from gradscope.probes.tape import Tape


class DryRun:
    """Fake tensors for all that the program makes, and stand-ins for what it reads.

    With `ends`, the program is ended as soon as enough was seen, or after a minute.
    """

    def __init__(self, tape: Tape, *, ends: bool) -> None:
        self._tape = tape
        self._noted = StandIns(tape.sites)
        self._ends = ends
        self._enough = Enough(tape)
        self._process = os.getpid()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._reason: str | None = None
        self._before: list[Callable[[], None]] = []

    def facts(self) -> Dry:
        """What is told of it."""
        return Dry(self._noted.facts(), self._reason)

    def step_ended(self) -> None:
        """An optimizer has stepped. Raises StepsReached where that was the last step that is needed."""
        if self._ends and self._enough.steps():
            self._reason = "every optimizer had made 3 steps and one more"
            raise StepsReached(0)

    def _tick(self) -> None:
        if self._ends and self._enough.time and self._reason is None:
            self._reason = f"{SECONDS:.0f} seconds had passed"
            raise StepsReached(0)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The dry run itself: for this thread, and for those that it starts."""
        with ExitStack() as stack:
            stack.callback(self._put_back)
            stack.enter_context(plain_surroundings(self._noted, self._modes))
            stack.enter_context(self._modes())
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

        def put_back() -> None:
            for tensor, gradient in params:
                tensor.grad = gradient
            optimizer.state.clear()
            optimizer.state.update(state)

        self._before.append(put_back)

    def _put_back(self) -> None:
        for put_back in self._before:
            put_back()
        self._before.clear()
        with unobserved():
            for _, tensor in self._tape.watched():
                if not isinstance(tensor, FakeTensor) and isinstance(tensor.grad, FakeTensor):
                    tensor.grad = None


def is_fake(value: Any) -> bool:
    """Whether a tensor is one of a dry run."""
    return isinstance(value, FakeTensor)
