"""What is remembered while the program runs: cheap tuples and weak references, frozen into facts at the end.

Rules of the tape:
1. A tensor is known by a weak reference that is checked at every look-up, never by `id()` alone: ids are reused.
2. Nothing here holds a tensor, a module or an autograd node, so everything dies when it would have died.
3. Operations are kept for the first and the latest steps only, and a step that grows beyond all bounds is
   swept of operations that lead to nothing that is still alive. What a long run adds is a bounded series a tensor.
4. What is written at every operation are the structs of `records`, which the garbage collector does not track, and
   items of one list in later steps, of which few are ever read (see `jottings`).
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gradscope.folds.accounts import Discards
from gradscope.folds.lookups import Lookups
from gradscope.folds.losses import Losses
from gradscope.graph import limits
from gradscope.graph.events import AnyEvent
from gradscope.probes.forward.callsites import CallSites, Site, legible
from gradscope.probes.forward.jottings import Backlog, drop_idle
from gradscope.probes.program.recursion import stack_is_used_up
from gradscope.probes.program.signals import pass_on
from gradscope.probes.records import (
    BackwardRecord,
    Jottings,
    ModuleMark,
    OperationRecord,
    OptimizerMark,
    StepRecord,
    Subject,
    ValueRecord,
    nobody,
)
from gradscope.probes.tensors.attributes import (
    INFERENCE,
    gradient_of,
    is_leaf,
    plain,
    shape_of,
    stamp_of,
    storage_key,
    version,
)
from gradscope.probes.tensors.quiet import here
from gradscope.probes.tensors.shards import is_number, local
from gradscope.probes.training.courses import Course, measure
from gradscope.probes.training.growth import Growth, census

if TYPE_CHECKING:
    from types import CodeType

    from gradscope.probes.asked.batches import BatchCheck
    from gradscope.probes.asked.functions import Wrong
    from gradscope.probes.backward.custom import CustomRecord
    from gradscope.probes.backward.failing import FailedRecord
    from gradscope.probes.backward.nonfinite import Event
    from gradscope.probes.backward.profiles import Profile
    from gradscope.probes.backward.recomputes import Recompute
    from gradscope.probes.backward.targets import Compared
    from gradscope.probes.backward.twins import Twins

KEPT = 2  # steps of each optimizer, of the first and of the latest
KEPT_MOST = 12
_STALE = -2  # no version of torch's: the next look-up finds the tensor changed
SWEEP_AT = 20_000  # operations of one step: few programs call as many for one update, and it takes some megabytes
JOT_AT = 2_000  # operations of one step that are written at once, though it be one of the first
_CALLS = 2_000  # of dropout and batch norm in training mode without gradients that are remembered, the latest
_DEAD = 100  # leaves that may be looked at in vain: programs that differentiate at ever new points leave them behind


class Tape:
    """Everything that the probes of one observation write down."""

    def __init__(self, sites: CallSites) -> None:
        self.sites = sites
        self.known: dict[int, Subject] = {}
        self.marks: dict[int, ModuleMark] = {}
        self.roots: dict[int, tuple[ModuleMark, Site | None]] = {}
        self.kept: dict[int, Subject] = {}
        self.leaves: dict[int, Subject] = {}
        self.gathered: dict[int, tuple[Subject, Subject]] = {}  # under FSDP: the whole parameter and its shard
        self.first: list[StepRecord] = []
        self.latest: deque[StepRecord] = deque()
        self.labels: dict[int, str] = {}  # of root modules, as they were given
        self.hints: dict[int, str] = {}  # and what they were called when their optimizer was made
        self.optimizers: list[OptimizerMark] = []
        self._optimizer_marks: dict[int, OptimizerMark] = {}
        self.customs: dict[CodeType, CustomRecord] = {}
        self.failed: FailedRecord | None = None  # the latest call that raised
        self.ended_by: tuple[int, type, str] | None = None  # the exception that ended the program
        self.places: dict[str, tuple[int, ...]] = {}  # of the tensors among the arguments of a custom Function
        self.custom_entered: CustomRecord | None = None
        self.mode_switched: tuple[int, Site | None] = (0, None)  # the latest change between training and evaluation
        self.recompute: Recompute | None = None  # the latest function that checkpointing ran again
        self.losses: dict[tuple[str, Site | None], tuple[Subject, Losses]] = {}
        self.discards: dict[Site | None, Discards[Site]] = {}
        self.growth = Growth()
        self.cyclic: Site | None = None
        self.name_all: Callable[[], None] = lambda: None
        self.step_ended: Callable[[], None] = lambda: None
        self.step = StepRecord(1)
        self.step_count = 0
        self.backward_count = 0
        self.failures: dict[str, None] = {}
        self.singular = False  # an operation of this step has a derivative that may be infinite
        self.packed = False  # saved tensors are unpacked by code of the program's
        self.pending: Event | None = None
        self.harmed: Event | None = None
        self.idle: Event | None = None  # the first of the infinite losses which alone have been trained on, in vain
        self.suspects: set[int] = set()
        self.suspected: dict[int, int] = {}
        self.patience = 0
        self.profiles: list[Profile] = []
        self.dead = 0  # times that gradients have become zero for good, of which a profile was wanted
        self.check_calls: Callable[[torch.nn.Module, Any, Any], bool] | None = None
        self.checked: dict[int, ModuleMark] = {}
        self.check_function: Callable[[Any, Callable[..., Any], tuple[Any, ...]], None] | None = None
        self.functions_checked: dict[CodeType, int] = {}
        self.wrong_backwards: dict[CodeType, tuple[Wrong, ...]] = {}
        self.checks: list[BatchCheck] = []
        self.moded: list[ModuleMark] = []
        self.looks: dict[tuple[Any, Site], int] = {}
        self.probabilities: list[tuple[ValueRecord, bool]] = []
        self.softmaxes: list[tuple[ValueRecord, int]] = []
        self.training_calls: deque[tuple[ValueRecord, ModuleMark]] = deque(maxlen=_CALLS)
        self.lookups: dict[int, tuple[Subject, int, Lookups]] = {}  # of tables: the row for padding, and counts
        self.twins: dict[int, Twins] = {}
        self.twins_sought: set[int] = set()  # in which rows that are alike have been looked for
        self.compared: dict[tuple[Any, Site | None, Site | None], Compared] = {}
        self.closed = self.fake = False  # fake: a dry run
        self.walking = True
        self.confirmed = False
        self.local = threading.local()
        self.backwards_running: set[int] = set()
        self.differentiating: set[int] = set()  # threads that compute with gradients
        self.jotting: Jottings | None = None  # of the running step, while its plain operations are jotted down
        self.backlog = Backlog(self)
        self.next_operation: Callable[[], int] = itertools.count(1).__next__
        self.changed_since = 0  # the number of the first change in place while something was jotted down
        self._steps_of_many = 0  # with so many calls of root modules that they may hang together
        self._values = self._subjects = self._threads = 0
        self._writers: dict[int, OperationRecord] = {}
        self._sources: dict[int, tuple[Subject, Subject]] = {}
        self._purge_at = 10_000
        self._sweep_at, self._long_at, self._at_once = SWEEP_AT, JOT_AT, False

    @property
    def active(self) -> bool:
        """Whether anything is written down in this thread."""
        return not (self.closed or here.watched or here.traced)

    # --- tensors -----------------------------------------------------------------------------------------

    def subject(self, tensor: torch.Tensor, site: Site | None = None) -> Subject:
        """What is known of a tensor as it is now; one never seen before is met."""
        subject = self.known.get(id(tensor))
        if subject is None or subject.ref() is not tensor:
            subject = self.meet(tensor, site)
            if self.changed_since and subject.version > 0:
                self.changed_unseen(subject, self.changed_since)
            return subject
        if subject.version != version(tensor):
            self._changed_elsewhere(tensor, subject)
        return subject

    def owner(self, tensor: torch.Tensor) -> Subject:
        """What is known of the tensor that an optimizer holds for this one: its shard under FSDP, else itself."""
        subject = self.subject(tensor)
        link = self.gathered.get(subject.serial)
        return link[1] if link is not None else subject

    def seen(self, tensor: torch.Tensor) -> Subject | None:
        """What was known of a tensor when it was last looked at, if it ever was."""
        subject = self.known.get(id(tensor))
        return subject if subject is not None and subject.ref() is tensor else None

    def meet(self, tensor: torch.Tensor, site: Site | None) -> Subject:
        """Start to know a tensor."""
        self._subjects += 1
        self._values += 1
        requires_grad = tensor.requires_grad
        leaf = not requires_grad or is_leaf(tensor)
        other = type(tensor) is not torch.Tensor
        try:
            shape, count = plain(tensor.shape) if other else tuple(tensor.shape), tensor._version
        except RuntimeError:
            shape, count = shape_of(tensor), version(tensor)
        subject = Subject(
            self._subjects,
            weakref.ref(tensor),
            site,
            shape,
            tensor.dtype,
            tensor.device,
            requires_grad,
            leaf,
            other and isinstance(tensor, torch.nn.Parameter),
            self._values,
            count,
            step=self.step.index,
            order=self.next_operation(),
        )
        if requires_grad and leaf:
            self.leaves[subject.serial] = subject
        self._know(id(tensor), subject)
        return subject

    def meet_late(
        self,
        ref: Callable[[], torch.Tensor | None],
        site: Site,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        history: bool,
    ) -> Subject:
        """Start to know the result of an operation that was jotted down, dead or alive."""
        self._subjects += 1
        self._values += 1
        tensor = ref()
        subject = Subject(
            self._subjects, ref, site, plain(shape), dtype, device, history, not history, False, self._values, 0
        )
        if tensor is not None:
            subject.version = self._version_before(tensor)
        if tensor is not None:
            self._know(id(tensor), subject)
        return subject

    def _version_before(self, tensor: torch.Tensor) -> int:
        """The version of a result that was jotted down, before any change that has not been written down yet."""
        base = tensor._base
        if tensor.is_inference():
            return INFERENCE
        if base is None:
            return 0
        known = self.seen(base)  # a view counts changes together with its base
        return known.version if known is not None else tensor._version

    def _know(self, key: int, subject: Subject) -> None:
        if self.step.jottings is not None:
            # Jottings may speak of either: of the one before, which is dead, by the reference to it alone.
            self.step.jottings.met += [subject] if key not in self.known else [self.known[key], subject]
        self.known[key] = subject
        if len(self.known) > self._purge_at:
            self.purge()

    def changed(self, tensor: torch.Tensor, subject: Subject) -> None:
        """A tensor has a new value: the running operation changed it in place."""
        jottings = self.step.jottings
        if jottings is not None:
            self._meet_base(tensor, subject.version)
            self._renew(jottings, subject, written=subject.version != version(tensor))
        self._values += 1
        self.refresh(subject, tensor)
        subject.value = self._values
        subject.version = version(tensor)
        if jottings is not None and subject.requires_grad and not subject.leaf:
            jottings.changed[subject.serial] = subject
        if subject.requires_grad and subject.leaf:
            self.leaves[subject.serial] = subject

    def _renew(self, jottings: Jottings, subject: Subject, written: bool) -> None:
        """What is jotted from now on, takes another value of a tensor than what has been jotted so far.

        Only where its memory was written to, and not where it merely requires gradients now, has a view of it changed.
        """
        number = self.next_operation()
        jottings.renewed.setdefault(subject.serial, []).append((number, subject.value, subject.requires_grad))
        if written:
            self.changed_since = self.changed_since or number

    def _meet_base(self, tensor: torch.Tensor, count: int) -> None:
        """Know the tensor whose view has been changed as it was before, if it was only jotted down so far."""
        base = tensor._base
        if base is not None and count >= 0 and self.seen(base) is None:
            self.meet(base, None).version = count

    def changed_unseen(self, subject: Subject, since: int) -> None:
        """A tensor that was only jotted down has been met: its memory may have been written to `since` it was made."""
        tensor = subject.ref()
        storage = storage_key(tensor) if tensor is not None and version(tensor) > 0 else None
        writer = self._writers.get(storage) if storage is not None else None
        if tensor is None or writer is None or writer.serial < since:
            return
        if any(known is subject for _, known, _ in writer.outputs):
            return
        before = subject.held()
        self.changed(tensor, subject)
        writer.inputs += (before,)
        writer.outputs += (subject.held(),)

    def look_again(self, values: Iterable[Any], site: Site) -> None:
        """Take note of changes in place to what an operation takes that is about to be jotted down."""
        for value in values:
            if isinstance(value, torch.Tensor):
                subject, count = self.known.get(id(value)), version(value)
                if (subject.version if subject is not None and subject.ref() is value else 0) != count:
                    self.subject(value, site)
            elif isinstance(value, (tuple, list)):
                self.look_again(value, site)

    def stepped(self, tensor: torch.Tensor, subject: Subject) -> None:
        """An optimizer has stepped: what it has moved holds a new value, which jottings do not look for."""
        count = version(tensor)
        if subject.version in (_STALE, count) or (self._writers and storage_key(tensor) in self._writers):
            return
        if self.step.jottings is not None:
            number = self.next_operation()
            self.step.jottings.renewed.setdefault(subject.serial, []).append((number, *subject.held()[::2]))
        self._values += 1
        subject.value, subject.version = self._values, count

    def wrote(self, tensor: torch.Tensor, operation: OperationRecord) -> None:
        """An operation wrote to this tensor's memory: others that share it will ask who did."""
        storage = storage_key(tensor)
        if storage is not None:
            if len(self._writers) > self._purge_at:
                self._writers.clear()
            self._writers[storage] = operation
            self.step.writes.append((operation.serial, storage))
        own = self.seen(tensor)
        if own is not None and own.course is not None:
            self.moved_by_hand(own, tensor)
        link = self._sources.get(id(tensor))
        source = link[1].ref() if link is not None and link[0].ref() is tensor else None
        if link is not None and source is not None:
            link[1].version = _STALE
            self.moved_by_hand(link[1], source)

    def shares(self, tensor: torch.Tensor, source: torch.Tensor) -> None:
        """`tensor` is `source` without its history: a write to it shows in `source`, uncounted by torch."""
        made, given = (self.seen(each) or self.meet(each, None) for each in (tensor, source))
        self._sources[id(tensor)] = made, given

    def origin(self, tensor: torch.Tensor) -> Subject | None:
        """The tensor whose values these are: of `.data` or `.detach()`, what that was called on."""
        own, link = self.seen(tensor), self._sources.get(id(tensor))
        is_shared = link is not None and link[0].ref() is tensor and (own is None or own.course is None)
        return link[1] if link is not None and is_shared else own

    def _changed_elsewhere(self, tensor: torch.Tensor, subject: Subject) -> None:
        """The tensor was changed since it was last seen: through a view of it, or by code that we do not see."""
        storage = storage_key(tensor)
        writer = self._writers.get(storage) if storage is not None else None
        before = subject.held()
        self.changed(tensor, subject)
        if writer is not None and writer.outputs and writer.outputs[0][0] > before[0]:
            # A write to a view is a write to this tensor: the writer's operation made its new value.
            writer.inputs += (before,)
            writer.outputs += (subject.held(),)

    def refresh(self, subject: Subject, tensor: torch.Tensor) -> None:
        """Read again what may have changed since the tensor was met."""
        subject.requires_grad = tensor.requires_grad
        subject.leaf = is_leaf(tensor)
        subject.shape = shape_of(tensor)
        subject.dtype = tensor.dtype

    def keep(self, tensor: torch.Tensor, site: Site | None = None) -> Subject:
        """Report on this tensor also when it is dead by then: a module or an optimizer holds it."""
        subject = self.subject(tensor, site)
        self.kept[subject.serial] = subject
        return subject

    def watched(self) -> list[tuple[Subject, torch.Tensor]]:
        """The live leaves that a gradient can arrive at."""
        alive = [(subject, tensor) for subject in list(self.leaves.values()) if (tensor := subject.ref()) is not None]
        dead = len(self.leaves) - len(alive)
        if dead > _DEAD and dead * 2 > len(self.leaves):
            self.leaves = {key: subject for key, subject in list(self.leaves.items()) if subject.ref() is not None}
        return [each for each in alive if each[1].requires_grad and is_leaf(each[1])]

    def let_go(self, tensor: Any) -> Subject | None:
        """Drop the weak reference to a tensor; `regain` takes it up again."""
        subject = self.seen(tensor)
        if subject is not None:
            del self.known[id(tensor)]
            subject.ref = nobody
        return subject

    def regain(self, tensor: torch.Tensor, subject: Subject | None) -> None:
        """Know a tensor again that was let go."""
        if subject is not None:
            subject.ref = weakref.ref(tensor)
            self.known[id(tensor)] = subject
            self.changed(tensor, subject)

    def purge(self) -> None:
        """Forget tensors that are dead and that nothing jotted down speaks of."""
        spoken_of = self.backlog.spoken_of()
        self.known = {
            key: subject
            for key, subject in list(self.known.items())
            if subject.ref() is not None or id(subject.ref) in spoken_of
        }
        self._sources = {key: link for key, link in list(self._sources.items()) if link[0].ref() is not None}
        self.leaves = {key: subject for key, subject in list(self.leaves.items()) if subject.ref() is not None}
        self.marks = {key: mark for key, mark in list(self.marks.items()) if mark.ref() is not None}
        self._purge_at = max(10_000, 2 * len(self.known))

    def readable(self, subject: Subject) -> bool:
        """Whether this thread may read the `.grad` of a leaf.

        A backward in another thread runs without the GIL and may be replacing the gradients of its leaves at any
        moment; reading one of them then ends in a segmentation fault. So once several threads compute with
        gradients, each looks only at the leaves that it was the last to use.
        """
        return not self.is_shared or subject.thread == self.thread()

    @staticmethod
    def course(subject: Subject) -> Course:
        """The course of a subject, begun at the first question."""
        if subject.course is None:
            subject.course = Course()
        return subject.course

    # --- gradients by hand -------------------------------------------------------------------------------

    def cleared(self, subject: Subject, site: Site | None, swept: bool = False) -> None:
        """Somebody sets the gradient of a leaf to None or to zero, `swept` with those of its optimizer or module."""
        course = self.course(subject)
        for source in course.account.clear(site, course.optimizer is not None, swept):
            discards = self.discards.get(source.site)
            if discards is not None:
                discards.vain += 1
                discards.cleared_at = site

    def used_by_hand(self, serial: int) -> None:
        """The program computes with the gradient of a leaf itself."""
        subject = self.leaves.get(serial)
        if subject is not None:
            self.course(subject).account.use_by_hand()

    def looked_at_by_hand(self, serial: int) -> None:
        """The program reads off how large a gradient is: what brought it served to be looked at."""
        subject = self.leaves.get(serial)
        if subject is not None:
            self.course(subject).account.look()

    def moved_by_hand(self, subject: Subject, tensor: torch.Tensor) -> None:
        """The program changed the value of a leaf that no optimizer holds."""
        course = subject.course
        if course is not None and course.optimizer is None and self.readable(subject):
            course.account.moved_by_hand(stamp_of(gradient_of(tensor)))

    # --- modules -----------------------------------------------------------------------------------------

    def mark(self, module: torch.nn.Module) -> ModuleMark:
        """What is known of a module."""
        mark = self.marks.get(id(module))
        if mark is None or mark.ref() is not module:
            mark = self.marks[id(module)] = ModuleMark(module)
        return mark

    def called(self) -> None:
        """A call of a root module is over. Where many in one step hang together, that has to show soon.

        So of the steps with many, a few are written out: policies call as often, and nothing hangs together there.
        Without grad mode nothing hangs together, however often a policy or an evaluation calls.
        """
        if not torch.is_grad_enabled():
            return
        self.growth.calls += 1
        calls = self.growth.calls - self.step.first_call
        self._steps_of_many += calls == limits.CALLS_TOGETHER
        if calls >= limits.CALLS_TOGETHER and is_one_of_few(self._steps_of_many - 1):
            self.backlog.write_next()

    # --- the course of things ----------------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether several threads compute with gradients."""
        return len(self.differentiating) > 1

    def thread(self) -> int:
        """A small number for the running thread: sequence numbers of autograd count within one thread."""
        number: int | None = getattr(self.local, "number", None)
        if number is None:
            self._threads += 1
            number = self.local.number = self._threads
        return number

    def enter_thread(self) -> None:
        """Another thread begins to record; where there are several, each operation is written at once."""
        self.thread()
        if self._threads > 1:
            self.backlog.catch_up()

    def optimizer_mark(self, optimizer: torch.optim.Optimizer) -> OptimizerMark | None:
        """What is known of an optimizer; None at the first sight."""
        mark = self._optimizer_marks.get(id(optimizer))
        if mark is None or mark.ref() is not optimizer:
            mark = next((mark for mark in self.optimizers if mark.ref() is optimizer), None)
            if mark is not None:
                self._optimizer_marks[id(optimizer)] = mark
        return mark

    def differentiated(self, root: torch.Tensor, kind: str) -> None:
        """A backward starts from this tensor: a scalar is a loss whose value is worth telling."""
        if root.requires_grad and is_number(root):
            place, subject = (kind, self.sites.here()), self.subject(root)
            losses = self.losses[place][1] if place in self.losses else Losses()
            losses.take(float(local(root)), self.step.index)
            self.losses[place] = (subject, losses)

    def note(self, event: AnyEvent[Site | None]) -> None:
        """Something has happened to gradients."""
        self.step.events.append(event)

    def end_backward(self, record: BackwardRecord) -> None:
        """Close a pass of the engine. Where no optimizer is used, it closes the step as well."""
        self.step.backwards.append(record)
        self.backward_count += 1
        if not self.optimizers:
            courses = [(self.course(subject), tensor) for subject, tensor in self.watched()]
            for course, _ in courses:
                course.count()
            measure(courses)
            self.end_step(None)

    def reopen(self) -> None:
        """The first optimizer shows itself as it steps: the backward before it closed no step after all."""
        self.backlog.catch_up(rest=False)
        steps = self.latest or self.first
        if self.backward_count == 0 or not self.step.empty or not steps:
            return
        self.step = steps.pop()
        for subject in list(self.leaves.values()):
            if subject.course is not None and subject.course.of:
                subject.course.uncount()

    def add(self, operation: OperationRecord) -> None:
        step, call = self.step, self.local.__dict__.get("root")
        step.operations.append(operation)
        if step.jottings is None:
            self.link(operation, step.index, call)
        elif call is not None:
            step.jottings.callers[operation.serial] = call
        if len(step.operations) > self._long_at:
            self._grown_long()

    def link(self, operation: OperationRecord, step: int, call: Site | None) -> None:
        """Tell how far the graph behind the results of an operation leads back."""
        for value in operation.outputs:
            if value[2]:
                self.growth.link(operation.inputs, operation.outputs, step, call or operation.site)
                return

    def _grown_long(self) -> None:
        """Jot a step that has grown long; where it has grown beyond all bounds, drop what leads nowhere."""
        operations = self.step.operations
        if len(operations) > self._sweep_at:
            drop_idle(self, self.step)
            operations = self.step.operations
            self._sweep_at = max(SWEEP_AT, 2 * len(operations))
        self._long_at = min(self._sweep_at, len(operations) + JOT_AT)
        if self.step.jottings is None and not self._at_once and self._threads < 2 and self.check_calls is None:
            self.jotting = self.backlog.begin(self.step)

    def write_at_once(self) -> None:
        """What comes in this step is looked at as it is written: jot none of it."""
        self.jotting, self._at_once = None, True

    def end_step(self, optimizer: int | None, site: Site | None = None) -> None:
        """Close the running step and begin the next."""
        step = self.step
        step.optimizer, step.site = optimizer, site
        self.backlog.end(step)
        census(self.growth, step.index, self.known, self.cyclic, self.sites)
        if self._begins():
            self.first.append(step)
            self.backlog.catch_up(rest=False)  # it stays, while later ones go with what they know of its tensors
        else:
            self.latest.append(step)
            while len(self.latest) > min(KEPT_MOST, KEPT * max(1, len(self.optimizers))):
                self.backlog.drop(self.latest.popleft())
        self.step = StepRecord(step.index + 1, first_call=self.growth.calls)
        if self.may_jot():
            self.jotting = self.backlog.begin(self.step)
        else:
            self.backlog.catch_up(rest=False)
            self.jotting = None
        self._sweep_at, self._long_at, self._at_once = SWEEP_AT, JOT_AT, False
        self.step_ended()

    def _begins(self) -> bool:
        """Whether the run is still in its first steps: of optimizers that step in turn, the first of each are kept."""
        if len(self.first) < KEPT:
            return True
        if self.latest or len(self.first) >= KEPT_MOST or len(self.optimizers) < 2:
            return False
        return any(mark.steps < KEPT for mark in self.optimizers)

    def may_jot(self) -> bool:
        """Whether the next step is one of those that are seldom read, and nothing needs its operations at once."""
        return not self._begins() and self._threads < 2 and self.check_calls is None

    def records_kept(self) -> int:
        """How many operations and nodes of graphs are kept: what it costs to look at the run grows with them."""
        return sum(step.size for step in (*self.first, *self.latest, self.step))

    def written(self) -> list[OperationRecord]:
        """The operations of the running step, all of them written out."""
        self.backlog.catch_up()
        return self.step.operations

    def written_anyway(self) -> Sequence[OperationRecord]:
        """The operations of the running step, if it is one of the first, which stay; none where they are jotted."""
        if self.step.jottings is not None:
            if not self._begins():
                return ()
            self.backlog.catch_up(rest=False)
        return self.step.operations

    def steps(self) -> Iterator[StepRecord]:
        """The steps that are kept, the running one last."""
        self.backlog.catch_up(rest=False)
        yield from self.first
        yield from self.latest
        if not self.step.empty:
            yield self.step

    def close(self) -> None:
        """Nothing is written any more."""
        self.closed, self.jotting = True, None

    def fail(self, part: str, error: BaseException) -> None:
        """Remember, once, that a part of ours failed; the program goes on."""
        pass_on(error)
        if isinstance(error, RecursionError) and stack_is_used_up():
            return  # by the program
        self.failures.setdefault(f"{part} failed: {type(error).__name__}: {first_line(error)}")


def is_one_of_few(count: int) -> bool:
    """Whether something that costs much is done after so many: at 1, 2, 3, 4, 8, 16, ..., ever more rarely."""
    return count < 3 or count + 1 & count == 0


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, "" where the exception fails to tell it."""
    try:
        return legible(str(error).partition("\n")[0])
    except Exception:
        return ""
