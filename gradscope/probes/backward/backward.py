"""The gradient flow: every pass of the autograd engine, what it started from and where gradients arrived."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch.compiler import is_compiling

from gradscope.folds.accounts import NO_GRADIENT, Discards, Pass, Stamp
from gradscope.probes.backward.refusals import refusal
from gradscope.probes.backward.targets import look_at_targets
from gradscope.probes.backward.twins import look_at_twins
from gradscope.probes.backward.walker import walk
from gradscope.probes.forward.recorder import resume
from gradscope.probes.looks import PassLook, look_at_pass
from gradscope.probes.program.tracebacks import hide
from gradscope.probes.records import BackwardRecord, Subject
from gradscope.probes.tape import Tape, is_one_of_few
from gradscope.probes.tensors.attributes import gradient_of, gradients_of, stamp_of, version
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import capturing, unobserved, unwatched
from gradscope.probes.training.courses import norms_known

WALK_LIMIT = 200_000
_NAMED = 1_000  # tensors that one line of backwards remembers to have reached


class _State(NamedTuple):
    """The leaves before a pass, columns of one length: the gradient of each by its stamp, and how often it changed."""

    leaves: list[tuple[Subject, torch.Tensor]]
    stamps: list[Stamp]
    versions: list[int]


def watch_backward(tape: Tape) -> AbstractContextManager[None]:
    """See every backward, however it was called.

    `Tensor.backward`, `torch.autograd.backward` and `torch.autograd.grad` meet in `_engine_run_backward`, which
    `torch.autograd` looks up in its own module at each call; checkpointing, DDP and trainers come by as well.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
            with unwatched():
                seen = _entered(tape, t_outputs, args, kwargs)
            try:
                result = original(t_outputs, *args, **kwargs)
            except BaseException as error:
                if seen is not None:
                    with unwatched():
                        _failed(tape, seen[0], seen[2], t_outputs, error)
                hide(error)
                raise
            if seen is not None:
                with unwatched():
                    _after(tape, *seen, _inputs(args, kwargs), result)
            return result

        return run_backward

    return patched(torch.autograd, "_engine_run_backward", wrap, always=True)


def _entered(
    tape: Tape, roots: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[BackwardRecord, _State, PassLook] | None:
    if not tape.active or is_compiling() or capturing():
        return None
    kind: Literal["backward", "grad"] = "backward" if kwargs.get("accumulate_grad", True) else "grad"
    seen = _before(tape, kind, roots, _inputs(args, kwargs))
    if seen is not None:
        if kind == "backward" and (args[2] if len(args) > 2 else kwargs.get("create_graph")):
            tape.cyclic = seen[0].site
        seen[0].retained = bool(args[1] if len(args) > 1 else kwargs.get("keep_graph", False))
    return seen


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[3] if len(args) > 3 else kwargs.get("inputs", ())


def _before(
    tape: Tape, kind: Literal["backward", "grad"], roots: Any, inputs: Any
) -> tuple[BackwardRecord, _State, PassLook] | None:
    if tape.thread() in tape.backwards_running:
        return None  # a pass within a pass (checkpointing, hooks) is a part of the outer one
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None  # a transform of torch.func at work: its tensors are wrappers without values to read
    resume(tape)  # where an optimizer has raised
    try:
        with unobserved():
            root_tensors = [root for root in roots if isinstance(root, torch.Tensor)]
            record = BackwardRecord(
                kind, tuple(tape.subject(root).held() for root in root_tensors), tape.sites.here(), tape.thread()
            )
            record.began = tape.next_operation()
            for root in root_tensors:
                tape.differentiated(root, kind)
            tape.growth.differentiated(root[1] for root in record.roots)
            if tape.walking and is_one_of_few(tape.backward_count):
                tape.name_all()
                record.walk = walk(root_tensors, tape.owner, WALK_LIMIT, sequences=True, saved=True)
                _predict(tape, record)
                if kind == "backward":
                    look_at_targets(tape, root_tensors)
            leaves = tape.watched() if kind == "backward" else []
            if tape.is_shared:
                leaves = [leaf for leaf in leaves if tape.readable(leaf[0])]
            stamps = [
                NO_GRADIENT if (gradient := tensor.grad) is None else (id(gradient), version(gradient))
                for _, tensor in leaves
            ]
            state = _State(leaves, stamps, [version(tensor) for _, tensor in leaves])
            look = look_at_pass(tape, record, root_tensors, inputs)
            tape.backwards_running.add(record.thread)
            return record, state, look
    except Exception as error:
        tape.fail("backward probe", error)
        return None


def _predict(tape: Tape, record: BackwardRecord) -> None:
    assert record.walk is not None
    reached = {subject.serial for subject in record.walk.leaves.values()}
    for subject, _ in tape.watched():
        course = tape.course(subject)
        if record.walk.complete or subject.serial in reached:
            course.predicted = bool(course.predicted) or subject.serial in reached


def _after(tape: Tape, record: BackwardRecord, state: _State, look: PassLook, inputs: Any, result: Any) -> None:
    tape.backwards_running.discard(record.thread)
    try:
        with unobserved():
            arrived: list[tuple[Subject, torch.Tensor, torch.Tensor | None]] = []
            if record.kind == "backward":
                source = Pass(record.site)
                for (subject, tensor), stamp, own, gradient in _now(tape, state):
                    if gradient is not None and stamp_of(gradient) != stamp:
                        arrived.append((subject, tensor, gradient))
                        course = tape.course(subject)
                        held = course.optimizer is not None
                        course.account.arrive(source, stamp, stamp_of(gradient), tape.step.index, held)
                    elif gradient is None and version(tensor) != own:
                        # A post-accumulate hook has used the gradient up already, as optimizers in backward do.
                        arrived.append((subject, tensor, None))
            else:
                for tensor, gradient in zip(inputs, result or (), strict=False):
                    if isinstance(tensor, torch.Tensor) and gradient is not None and tensor.is_leaf:
                        arrived.append((tape.subject(tensor), tensor, gradient))
            if record.kind == "backward" and source.waiting:
                discards = tape.discards.setdefault(record.site, Discards())
                discards.passes += 1
                if len(discards.serials) < _NAMED:
                    discards.serials.update(subject.serial for subject, _, _ in arrived)
            record.arrivals = tuple(subject for subject, _, _ in arrived)
            _count(tape, arrived)
            if is_one_of_few(tape.backward_count):
                look_at_twins(tape, arrived)
            look.finish(tape)
            tape.end_backward(record)
    except Exception as error:
        tape.fail("backward probe", error)


def _now(tape: Tape, state: _State) -> Iterator[tuple[tuple[Subject, torch.Tensor], Stamp, int, torch.Tensor | None]]:
    """The leaves after a pass, with what they were before it and the gradient that each has now."""
    if tape.is_shared:
        for leaf, stamp, own in zip(*state, strict=True):
            if tape.readable(leaf[0]):
                yield leaf, stamp, own, gradient_of(leaf[1])
        return
    # A hook may have made a non-leaf of one.
    now = gradients_of([tensor for _, tensor in state.leaves])
    yield from [
        (leaf, stamp, own, gradient)
        for leaf, stamp, own, gradient in zip(*state, now, strict=True)
        if (version(leaf[1]) != own if gradient is None else (id(gradient), version(gradient)) != stamp)
    ]


def _failed(tape: Tape, record: BackwardRecord, look: PassLook, roots: Any, error: BaseException) -> None:
    tape.backwards_running.discard(record.thread)
    record.failed = True
    try:
        with unobserved():
            root_tensors = [root for root in roots if isinstance(root, torch.Tensor)]
            look.fail(tape, root_tensors)
            record.refusal = refusal(tape, root_tensors, error)
    except Exception as failure:
        tape.fail("backward probe", failure)
    tape.step.backwards.append(record)


def _count(tape: Tape, arrived: Sequence[tuple[Subject, torch.Tensor, torch.Tensor | None]]) -> None:
    read = norms_known([gradient for _, _, gradient in arrived])
    for (subject, tensor, _), norm in zip(arrived, read, strict=True):
        course = tape.course(subject)
        course.arrive(norm)
        course.begin(tensor)
