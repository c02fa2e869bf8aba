"""Optimizers: what they hold, when they clear and step, what their steps use, and how far their tensors move."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gradscope.folds.accounts import Account, Pass
from gradscope.folds.movement import is_due
from gradscope.graph.events import Cleared, Updated
from gradscope.graph.facts import Ending
from gradscope.probes.backward.nonfinite import settle
from gradscope.probes.backward.profiles import suspect, suspect_dead
from gradscope.probes.forward.callsites import Site
from gradscope.probes.forward.inspections import settle_modes
from gradscope.probes.forward.modules import add_root
from gradscope.probes.forward.recorder import pause, resume, tensors
from gradscope.probes.program.scopes import attributes, maker_of, modules_around, parameters_of
from gradscope.probes.program.tracebacks import hidden, hide
from gradscope.probes.records import OptimizerMark
from gradscope.probes.tape import Tape, is_one_of_few
from gradscope.probes.tensors.attributes import gradient_of, stamp_of
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import capturing, unobserved
from gradscope.probes.training.closures import watched_closure
from gradscope.probes.training.courses import Course, measure, norms_known
from gradscope.probes.training.movement import Held, after_step, before_step
from gradscope.probes.training.overwriting import before_next_step, begin_anew
from gradscope.probes.training.scalers import note_withheld


class StepsReached(SystemExit):
    """Raised out of `optimizer.step()` to end the script after the steps that were asked for.

    A SystemExit, so that `finally` blocks run, `except Exception` lets it pass and a thread ends in silence.
    """

    ending: Ending = "steps"


class FindingReached(StepsReached):
    """Raised in the same place to end the script at what was found in it."""

    ending = "finding"


@contextmanager
def watch_optimizers(
    tape: Tape, limit: int | None = None, step_ended: Callable[[], None] | None = None
) -> Iterator[None]:
    """Follow every optimizer; after `limit` steps of any of them, end the script. `step_ended` may end it as well."""

    def wrap(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def initialise(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            try:
                original(self, *args, **kwargs)
            except BaseException as error:
                if tape.active:
                    _refused(tape, self, args, kwargs)
                hide(error)
                raise
            if tape.active:
                add_optimizer(tape, self, maker_of(self, tape.sites))
                _name_models(tape, self)

        return initialise

    def wrap_clear(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def zero_grad(self: Optimizer | torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            if not tape.active or torch.compiler.is_compiling():
                return original(self, *args, **kwargs)
            _cleared(tape, self)
            if _is_of_torch(self):
                pause(tape, out=True)
            try:
                with hidden:
                    return original(self, *args, **kwargs)
            finally:
                resume(tape)

        return zero_grad

    def wrap_load(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def load_state_dict(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            with hidden:
                original(self, *args, **kwargs)
            mark = tape.optimizer_mark(self) if tape.active else None
            if mark is not None:
                begin_anew(tape, mark)

        return load_state_dict

    def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not tape.active or torch.compiler.is_compiling() or capturing():
            return None
        if not tape.optimizers:
            tape.reopen()
        mark = add_optimizer(tape, optimizer, None)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if mark is None:
            return None
        of_torch = _is_of_torch(optimizer)
        if closure is None:
            _use(tape, mark)
            if of_torch:
                pause(tape, out=_is_alone(optimizer))
            return None

        def used() -> None:
            _use(tape, mark)
            if of_torch:
                pause(tape)

        mark.moment = None
        watched = watched_closure(closure, lambda: resume(tape), used)
        if of_torch:
            pause(tape)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def after(optimizer: Optimizer, *_: Any) -> None:
        if tape.active and not torch.compiler.is_compiling() and not capturing():
            resume(tape)
            mark = tape.optimizer_mark(optimizer) if _is_withheld(optimizer) else None
            if mark is not None:
                note_withheld(tape, mark, None)
                return
            _stepped(tape, optimizer)
            if limit is not None and tape.step_count >= limit:
                raise StepsReached(0)
            if step_ended is not None:
                step_ended()

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        with (
            patched(Optimizer, "__init__", wrap),
            patched(Optimizer, "zero_grad", wrap_clear),
            patched(Optimizer, "load_state_dict", wrap_load),
            patched(torch.nn.Module, "zero_grad", wrap_clear),
        ):
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
                if not tape.optimizers:
                    tape.backlog.catch_up(rest=False)
                    tape.growth.begin(list(tape.known.values()), tape.step.index)
                tape.optimizers.append(mark)
                if is_one_of_few(len(tape.optimizers) - 1):
                    tape.name_all()
            for tensor in (tensor for group in _groups(optimizer) for tensor in group["params"]):
                held = mark.holds(tape, tensor)
                if held is not None and held.course is not None and held.course.optimizer == mark.serial:
                    continue
                subject = tape.keep(tensor, site)
                course = tape.course(subject)
                before, course.optimizer = course.optimizer, mark.serial  # first: other threads may be counting
                if before is None and not course.steps:
                    course.of = 0  # steps of other optimizers, before anybody was to train it
                if subject.serial not in mark.subjects:
                    mark.subjects[subject.serial] = subject
                course.begin(tensor)
            return mark
    except Exception as error:
        tape.fail("optimizer probe", error)
        return None


def _name_models(tape: Tape, optimizer: Optimizer) -> None:
    """Name what an optimizer is given while it is still where it was: layers may be replaced before the first call."""
    try:
        with unobserved():
            held = {id(tensor) for group in _groups(optimizer) for tensor in group["params"]}
            for name, module in modules_around(tape.sites):
                mark = tape.mark(module)
                if mark.root is None and any(id(tensor) in held for _, tensor in parameters_of(module)):
                    add_root(tape, module, None)
                    tape.hints[id(mark)] = name.removeprefix("self.")
    except Exception as error:
        tape.fail("optimizer probe", error)


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups of an optimizer; one that wraps another has none itself, and asks that one for them."""
    groups: list[dict[str, Any]] | None = attributes(optimizer).get("param_groups")
    return optimizer.param_groups if groups is None else groups


def _is_of_torch(owner: object) -> bool:
    return type(owner).__module__.startswith("torch.optim.")


def _is_alone(optimizer: Optimizer) -> bool:
    """Whether no hooks but those of one observation run around its step."""
    return len(_global_optimizer_pre_hooks) == len(_global_optimizer_post_hooks) == 1 and not (
        optimizer._optimizer_step_pre_hooks
    )


def _cleared(tape: Tape, owner: Optimizer | torch.nn.Module) -> None:
    """`zero_grad()` of an optimizer or a module is about to clear what its tensors hold."""
    try:
        with unobserved():
            site = tape.sites.caller()
            if isinstance(owner, Optimizer):
                mark = tape.optimizer_mark(owner)
                if mark is not None:
                    mark.cleared_at = site
                owned = [tensor for group in _groups(owner) for tensor in group["params"]]
            else:
                owned = [tensor for _, tensor in parameters_of(owner)]
            cleared = []
            for tensor in owned:
                subject = tape.seen(tensor)
                if subject is not None and tape.readable(subject) and gradient_of(tensor) is not None:
                    tape.cleared(subject, site, swept=True)
                    cleared.append(subject.serial)
            tape.note(Cleared(tape.next_operation(), site, tuple(cleared), swept=True))
    except Exception as error:
        tape.fail("optimizer probe", error)


def _use(tape: Tape, mark: OptimizerMark) -> None:
    """A step is about to use what `.grad` of its tensors holds."""
    if not tape.active:
        return
    try:
        with unobserved():
            optimizer = mark.ref()
            if optimizer is None:
                return
            mark.stepped_at = tape.sites.caller()
            looked_at: list[Held] | None = [] if is_due(mark.steps) else None
            fed, used, robbed = False, set[Pass[Site]](), list[Account[Site]]()
            handed = list[torch.Tensor]()
            for group in _groups(optimizer):
                rate = group.get("lr")
                for tensor in group["params"]:
                    subject = mark.holds(tape, tensor)
                    if subject is None or not tape.readable(subject):
                        continue
                    course = tape.course(subject)
                    if course.overwritten is not None:
                        before_next_step(course, tensor, mark)
                    account, gradient = course.account, gradient_of(tensor)
                    stamp = stamp_of(gradient)
                    supplied = not account.pending and gradient is not None and stamp != account.stamp
                    if supplied and gradient is not None:
                        supplied = _supplied(course, gradient)
                    used.update(account.pending)
                    if account.thrown:
                        robbed.append(account)
                    if tensor.requires_grad or supplied or account.pending:
                        fresh = account.use(mark.serial, stamp, supplied)
                    else:
                        fresh = False
                    fed = fed or fresh
                    if looked_at is not None and gradient is not None:
                        looked_at.append(Held(course, tensor, fresh, float(rate) if rate is not None else None))
                    if supplied:
                        handed.append(tensor)
            _use_where_it_came_from(tape, mark, handed)
            for account in robbed:
                account.rob(used)
            mark.uses += 1
            mark.fed += fed
            tape.note(Updated(tape.next_operation(), mark.stepped_at, mark.serial))
            if looked_at is not None and mark.moment is None:
                mark.moment = before_step(looked_at)
    except Exception as error:
        tape.fail("optimizer probe", error)


def _use_where_it_came_from(tape: Tape, mark: OptimizerMark, handed: list[torch.Tensor]) -> None:
    """Gradients that were handed over as they are, `a.grad = b.grad`: the step uses those of the other tensors."""
    given = {id(gradient_of(tensor)): tensor for tensor in handed}
    for source, other in tape.watched() if handed else ():
        gradient = gradient_of(other) if tape.readable(source) else None
        if gradient is not None and given.get(id(gradient), other) is not other:
            tape.course(source).account.use(mark.serial, stamp_of(gradient), supplied=False)


def _supplied(course: Course, gradient: torch.Tensor) -> bool:
    """Whether there is a gradient before a step that no backward brought: somebody has written it by hand.

    One of zeros counts for none; one without values may be any.
    """
    norm = norms_known([gradient])[0]
    if norm is None:
        course.supplied = True
        return True
    if norm:
        course.supplied = True
        course.arrive(norm)
    return bool(norm)


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
            mark.in_a_row = 0
            if mark.steps == 1:
                mark.stateful = any(attributes(optimizer).get("state", {}).values())
            moment, mark.moment = mark.moment, None
            if moment is not None:
                after_step(moment)
            measured = {held.course for held in moment.held} if moment is not None else set()
            others: list[tuple[Course, torch.Tensor]] = []
            died: list[int] = []
            for subject in mark.subjects.values():
                course = tape.course(subject)
                if course.optimizer == mark.serial:
                    if course.count():
                        died.append(subject.serial)
                    tensor = subject.ref()
                    if tensor is not None:
                        tape.stepped(tensor, subject)
                        if course not in measured:
                            others.append((course, tensor))
            if moment is not None:
                measure(others)
            for subject in [subject for subject in list(tape.leaves.values()) if _waits(subject.course)]:
                if subject.course is not None and subject.ref() is not None:
                    subject.course.count()
            settle_modes(tape, mark.serial)
            settle(tape, mark.subjects)
            suspect(tape, mark)
            if died:
                suspect_dead(tape, died)
            tape.step_count += 1
            tape.end_step(mark.serial, mark.stepped_at)
    except Exception as error:
        tape.fail("optimizer probe", error)


def _is_withheld(optimizer: Optimizer) -> bool:
    """Whether a GradScaler has left it to a fused step to do nothing, since gradients are not finite."""
    found = attributes(optimizer).get("found_inf")
    return isinstance(found, torch.Tensor) and bool(found.item())


def _waits(course: Course | None) -> bool:
    """Whether no optimizer holds a tensor."""
    return course is not None and course.optimizer is None
