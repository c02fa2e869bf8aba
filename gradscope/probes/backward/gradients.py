"""What the program itself does with `.grad`: reads it, computes with it, clears it, replaces it, masks it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradscope.folds.accounts import NO_GRADIENT
from gradscope.graph.events import Cleared
from gradscope.probes.forward.callsites import Site
from gradscope.probes.records import Subject, ValueRecord
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.attributes import gradient_of, stamp_of
from gradscope.probes.tensors.quiet import capturing
from gradscope.probes.tensors.shards import values_of

READ = vars(torch._C.TensorBase)["grad"].__get__
SET = vars(torch._C.TensorBase)["grad"].__set__
SET_DATA = vars(torch._C.TensorBase)["data"].__set__
_ALIASES = frozenset({vars(torch._C.TensorBase)["data"].__get__, Tensor.detach, torch.detach})
_LOOKS = frozenset(
    {"norm", "linalg_vector_norm", "_foreach_norm", "sum", "mean", "max", "min", "std", "item", "tolist", "numpy"}
)
_UNSCALE = torch._amp_foreach_non_finite_check_and_unscale_  # by what it finds, a GradScaler steps or skips
_HELD_BY_US = 3  # references to a gradient while `_kept` looks at it, if nobody else has one
_FILLS = frozenset({"fill_", "copy_", "set_", "normal_", "uniform_", "_foreach_copy_"})  # a gradient of another origin
_MASKS = 4  # edits of one gradient that are compared with what was there before, and then
_EVERY = 8  # every eighth of them: a mask may be made in the middle of a run


def cleared(tape: Tape, leaf: Any, value: Any, site: Site | None) -> None:
    """`leaf.grad = value` is about to be done."""
    if not isinstance(leaf, Tensor):
        return
    subject = tape.seen(leaf)
    if subject is None or subject.course is None or not tape.readable(subject):
        return
    account = subject.course.account
    if value is not None or _kept(leaf):
        account.use_by_hand()
    if value is None:
        _clear(tape, subject, site)
    else:
        account.clear(site, subject.course.optimizer is not None)
        account.stamp = NO_GRADIENT


def uncounted(tape: Tape, func: Any, tensors: Sequence[Tensor], inputs: Sequence[ValueRecord]) -> None:
    """A call gave nothing and changed nothing by torch's count: `leaf.data = value`, or a GradScaler's check."""
    if type(func) is type(SET_DATA) and func == SET_DATA and tensors:
        leaf = tape.seen(tensors[0])
        if leaf is not None:
            tape.moved_by_hand(leaf, tensors[0])
    elif func is _UNSCALE:
        factor = float(tensors[-1])  # one over the scale, which comes last
        for _, subject, _ in inputs:
            if subject.gradient_of:
                tape.looked_at_by_hand(subject.gradient_of)
                leaf = tape.leaves.get(subject.gradient_of)
                if leaf is not None and leaf.course is not None and leaf.course.norm is not None:
                    leaf.course.norm *= factor  # as large as it is used: a scale that grows is no gradient that does


def _kept(leaf: Tensor) -> bool:
    """Whether the program holds the gradient itself, as `grads = [p.grad for p in params]` does."""
    gradient = gradient_of(leaf)
    return gradient is not None and sys.getrefcount(gradient) > _HELD_BY_US


def nonzero_before(tape: Tape, tensors: Sequence[Tensor], inputs: Sequence[ValueRecord]) -> int | None:
    """How many elements of a gradient are not zero before the program's own line works on it, for the first times."""
    subject = inputs[0][1]
    leaf = tape.leaves.get(subject.gradient_of)
    if leaf is None or leaf.course is None or not _is_dense(tensors[0]) or capturing():
        return None
    leaf.course.edits += 1
    if leaf.course.edits > _MASKS and leaf.course.edits % _EVERY:
        return None
    values = values_of(tensors[0])
    return None if values is None else int(torch.count_nonzero(values))


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def followed(
    tape: Tape,
    name: str,
    func: Any,
    tensors: Sequence[Tensor],
    inputs: Sequence[ValueRecord],
    outputs: Sequence[ValueRecord],
    changed: Sequence[Tensor],
    before: int | None,
    site: Site | None,
) -> None:
    """An operation took gradients: note whether it computed with them, cleared them or masked them."""
    changed_subjects = {subject.serial for tensor in changed if (subject := tape.seen(tensor)) is not None}
    for place, (_, subject, _) in enumerate(inputs):
        if not subject.gradient_of:
            continue
        if func in _ALIASES:
            for _, made, _ in outputs:
                made.gradient_of = subject.gradient_of
        elif subject.serial in changed_subjects:
            _changed(tape, name, subject, tensors[place], before if place == 0 else None, site)
        elif name in _LOOKS:
            tape.looked_at_by_hand(subject.gradient_of)
        elif _computed(subject, outputs):
            tape.used_by_hand(subject.gradient_of)


def _computed(subject: Subject, outputs: Sequence[ValueRecord]) -> bool:
    """Whether a result holds as much as the gradient did; a norm for a log does not."""
    size = _size(subject)
    return any(made.gradient_of != subject.gradient_of and _size(made) >= size for _, made, _ in outputs)


def _size(subject: Subject) -> int:
    size = 1
    for length in subject.shape:
        size *= length
    return size


def _changed(tape: Tape, name: str, subject: Subject, tensor: Tensor, before: int | None, site: Site | None) -> None:
    """A gradient was changed in place: set to zero, or masked, or merely scaled."""
    leaf = tape.leaves.get(subject.gradient_of)
    if leaf is None or leaf.course is None or leaf.shape != subject.shape:
        return
    if name in ("zero_", "_foreach_zero_") or (before is not None and name == "fill_" and _is_zero(tensor)):
        _clear(tape, leaf, site)
        return
    account = leaf.course.account
    if account.users and not account.pending and name not in _FILLS:
        # What a step has used is still there: it is added to, unless it is nothing by now.
        if _is_zero(tensor):
            _clear(tape, leaf, site)
            return
        account.changed((id(tensor), account.stamp[1]), stamp_of(tensor))
    if before is not None:
        values = values_of(tensor)
        if values is not None and int(torch.count_nonzero(values)) < before:
            account.masked_at = site
    account.mask(site)


def _clear(tape: Tape, leaf: Subject, site: Site | None) -> None:
    """A line of the program's own clears the gradient of a leaf."""
    tape.cleared(leaf, site)
    tape.note(Cleared(tape.next_operation(), site, (leaf.serial,)))


def _is_zero(tensor: Tensor) -> bool:
    values = values_of(tensor)
    return values is not None and not bool(values.any())
