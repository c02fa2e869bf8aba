"""What the program writes over between two steps: looked at before the write, and before the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gradscope.folds.overwrites import Overwrites
from gradscope.graph import ops
from gradscope.probes.tensors.quiet import capturing, unobserved
from gradscope.probes.training.courses import Course, norms, pick

if TYPE_CHECKING:
    from gradscope.probes.forward.callsites import Site
    from gradscope.probes.records import OptimizerMark
    from gradscope.probes.tape import Tape

_SETS_DATA: Any = torch.Tensor.data.__set__  # type: ignore[attr-defined]
# What fills its first argument anew, whole.
WRITERS = frozenset(
    function
    for name in (*ops.FILLS, "_foreach_copy_")
    for owner in (torch.Tensor, torch.nn.init, torch)
    if callable(function := getattr(owner, name, None))
) | {_SETS_DATA}


class Overwritten:
    """Writes over one tensor for one optimizer: their counts, and the sampled values around the latest one."""

    __slots__ = ("base", "counts", "left", "optimizer")

    def __init__(self, optimizer: int, base: torch.Tensor) -> None:
        self.optimizer = optimizer
        self.counts: Overwrites[Site] = Overwrites()
        self.base = base  # where the steps since the last write began
        self.left: torch.Tensor | None = None  # where they had led to, before the write


def about_to_write(tape: Tape, written: Any, site: Site) -> None:
    """The program is about to write over a tensor, or several."""
    if isinstance(written, (tuple, list)):
        for tensor in written:
            about_to_write(tape, tensor, site)
        return
    subject = tape.origin(written) if isinstance(written, torch.Tensor) else None
    tensor = subject.ref() if subject is not None else None
    if subject is None or tensor is None or not _is_trained(subject.course) or not tape.readable(subject):
        return
    course = subject.course
    assert course is not None
    assert course.sample is not None
    assert course.optimizer is not None
    index, first = course.sample
    over = course.overwritten
    if over is None or over.optimizer != course.optimizer:
        # At the first sight the steps have led here from the start.
        over = course.overwritten = Overwritten(course.optimizer, first)
    if over.counts.open or over.counts.is_done or capturing():
        return
    with unobserved():
        over.left = pick(tensor, index).clone()
    over.counts.begin(site)


def _is_trained(course: Course | None) -> bool:
    """Whether an optimizer has moved it, with gradients that arrived."""
    return course is not None and course.optimizer is not None and course.steps > 0 and course.sample is not None


def before_next_step(course: Course, tensor: torch.Tensor, mark: OptimizerMark) -> None:
    """A step is about to move a tensor: judge what was written over since the last one."""
    over = course.overwritten
    if over is None or over.left is None or course.sample is None or over.optimizer != mark.serial:
        return
    now, left, base = pick(tensor, course.sample[0]), over.left, over.base
    over.left = None
    if not (now.shape == left.shape == base.shape and now.device == left.device == base.device):
        course.overwritten = None
        return
    progress, gone = norms([left - base, now - left])
    over.counts.judge(progress, gone, float((now == left).float().mean()), mark.steps)
    over.base = now.clone()


def begin_anew(tape: Tape, mark: OptimizerMark) -> None:
    """An optimizer's state is loaded: what is written over along with it is put back on purpose."""
    for subject in mark.subjects.values():
        tape.course(subject).overwritten = None
