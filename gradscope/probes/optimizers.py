"""Optimizers: what they hold, when they step, and how far their tensors move."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradscope.probes.callsites import Site
from gradscope.probes.courses import Course, measure, norms
from gradscope.probes.inspections import settle_modes
from gradscope.probes.nonfinite import settle
from gradscope.probes.patches import patched
from gradscope.probes.profiles import suspect
from gradscope.probes.quiet import unobserved
from gradscope.probes.recorder import tensors
from gradscope.probes.tape import OptimizerMark, Tape


class StepsReached(SystemExit):
    """Raised out of `optimizer.step()` to end the script after the steps that were asked for.

    A SystemExit, so that `finally` blocks run, `except Exception` lets it pass and a thread ends in silence.
    """


@contextmanager
def watch_optimizers(tape: Tape, limit: int | None = None) -> Iterator[None]:
    """Follow every optimizer; after `limit` steps of any of them, end the script."""

    def wrap(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def initialise(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            try:
                original(self, *args, **kwargs)
            except BaseException:
                if tape.active:
                    _refused(tape, self, args, kwargs)
                raise
            if tape.active:
                add_optimizer(tape, self, tape.sites.caller())

        return initialise

    def before(optimizer: Optimizer, *_: Any) -> None:
        if tape.active and not torch.compiler.is_compiling():
            add_optimizer(tape, optimizer, None)

    def after(optimizer: Optimizer, *_: Any) -> None:
        if tape.active and not torch.compiler.is_compiling():
            _stepped(tape, optimizer)
            if limit is not None and tape.step_count >= limit:
                raise StepsReached(0)

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        with patched(Optimizer, "__init__", wrap):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def add_optimizer(tape: Tape, optimizer: Optimizer, site: Site | None) -> OptimizerMark | None:
    """Know an optimizer, and look again at what it holds: groups may have been added."""
    try:
        with unobserved():
            mark = tape.optimizer_mark(optimizer)
            if mark is None:
                mark = OptimizerMark(len(tape.optimizers) + 1, type(optimizer).__name__, weakref.ref(optimizer), site)
                tape.optimizers.append(mark)
                tape.name_all()
            for tensor in (tensor for group in optimizer.param_groups for tensor in group["params"]):
                subject = tape.keep(tensor, site)
                course = tape.course(subject)
                course.optimizer = mark.serial
                if subject.serial not in mark.subjects:
                    mark.subjects[subject.serial] = subject
                course.begin(tensor)
                waiting = not course.arrived and (course.supplied or not course.steps)
                if waiting and tape.readable(subject) and tensor.grad is not None:
                    _supplied(course, tensor.grad)
            return mark
    except Exception as error:
        tape.fail("optimizer probe", error)
        return None


def _supplied(course: Course, gradient: torch.Tensor) -> None:
    """A gradient that no backward brought is there before a step: somebody has written it by hand."""
    norm = norms([gradient])[0]
    if norm:
        course.supplied = True
        course.arrive(norm)


def _refused(tape: Tape, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Any) -> None:
    """An optimizer could not be made of what it was offered: a non-leaf among it, most likely."""
    try:
        with unobserved():
            site = tape.sites.caller()
            mark = OptimizerMark(len(tape.optimizers) + 1, type(optimizer).__name__, weakref.ref(optimizer), site)
            mark.refused = True
            for tensor in tensors((args, kwargs)):
                subject = tape.keep(tensor, site)
                mark.subjects[subject.serial] = subject
            tape.optimizers.append(mark)
    except Exception as error:
        tape.fail("optimizer probe", error)


def _stepped(tape: Tape, optimizer: Optimizer) -> None:
    try:
        with unobserved():
            mark = tape.optimizer_mark(optimizer)
            if mark is None:
                return
            mark.steps += 1
            stepped: list[tuple[Course, torch.Tensor]] = []
            for subject in mark.subjects.values():
                course = tape.course(subject)
                if course.optimizer == mark.serial:
                    course.count()
                    tensor = subject.ref()
                    if tensor is not None:
                        stepped.append((course, tensor))
            measure(stepped)
            for subject in list(tape.leaves.values()):
                if subject.course is not None and subject.course.optimizer is None and subject.ref() is not None:
                    subject.course.count()
            settle_modes(tape, mark.serial)
            settle(tape, mark.subjects)
            suspect(tape, mark)
            tape.step_count += 1
            tape.end_step(mark.serial)
    except Exception as error:
        tape.fail("optimizer probe", error)
