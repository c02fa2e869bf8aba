"""Programs that never call backward: their outputs are differentiated for them, `.grad` untouched."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradscope.probes.backward.backward import WALK_LIMIT
from gradscope.probes.backward.walker import walk
from gradscope.probes.records import BackwardRecord, Subject
from gradscope.probes.tape import Tape, first_line
from gradscope.probes.training.courses import norms_known


def unconsumed(tape: Tape) -> list[tuple[Subject, torch.Tensor]]:
    """The live differentiable results that no operation has taken."""
    found = []
    for subject in list(tape.known.values()):
        tensor = subject.ref()
        if tensor is not None and not subject.consumed and not subject.leaf and tensor.requires_grad:
            found.append((subject, tensor))
    return found


def confirm_outputs(tape: Tape) -> None:
    """Where the program called no backward, differentiate its outputs, once."""
    if not tape.backward_count and not tape.confirmed:
        found = unconsumed(tape)
        if found:
            confirm(tape, [tensor for _, tensor in found])


def confirm(tape: Tape, outputs: Sequence[torch.Tensor]) -> str | None:
    """Ask autograd for the gradients of the sums of these outputs. Returns what it answers in their place, if it does.

    Where the graph has been freed by a backward there is nothing left to ask: then the walk alone is recorded.
    """
    tape.confirmed = True
    outputs = [tensor for tensor in outputs if tensor.requires_grad] or outputs
    subjects = [tape.subject(tensor) for tensor in outputs]
    seen = walk(outputs, tape.owner, WALK_LIMIT, sequences=True, saved=not tape.active)
    record = BackwardRecord(
        "confirmation", tuple(subject.held() for subject in subjects), subjects[-1].site, tape.thread(), seen
    )
    reached = {subject.serial for subject in seen.leaves.values()}
    leaves = list(tape.watched())
    for subject, _ in leaves:
        if seen.complete or subject.serial in reached:
            tape.course(subject).predicted = subject.serial in reached
    tape.step.backwards.append(record)
    ones = [torch.ones_like(tensor) for tensor in outputs]
    differentiable = [tensor.requires_grad for tensor in outputs]
    if not leaves or not all(differentiable) or tape.gathered:
        return None  # FSDP's hooks would gather parameters, and the other ranks do not answer
    try:
        gradients = torch.autograd.grad(
            outputs, [tensor for _, tensor in leaves], grad_outputs=ones, retain_graph=True, allow_unused=True
        )
    except RuntimeError as error:
        record.failed = True
        return first_line(error)
    pairs = zip(leaves, gradients, strict=True)
    arrived = [(subject, gradient) for (subject, _), gradient in pairs if gradient is not None]
    for (subject, _), norm in zip(arrived, norms_known([gradient for _, gradient in arrived]), strict=True):
        tape.course(subject).arrive(norm)
    for subject, _ in leaves:
        tape.course(subject).count()
    record.arrivals = tuple(subject for subject, _ in arrived)
    return None
