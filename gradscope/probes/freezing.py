"""From the tape to the facts: the end of an observation, or a look in the middle of one."""

from __future__ import annotations

import bisect
import linecache
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import msgspec

from gradscope.folds.clips import Clips as ClipsFold
from gradscope.folds.losses import Losses
from gradscope.folds.overwrites import Overwrites
from gradscope.graph.comments import comments_in
from gradscope.graph.events import AnyEvent
from gradscope.graph.facts import (
    Again,
    Backward,
    BatchCheck,
    Call,
    Clips,
    Compared,
    CustomBackward,
    Discard,
    Growth,
    Ledger,
    Lookups,
    Loss,
    Modes,
    Module,
    Node,
    Nonfinite,
    Operation,
    Optimizer,
    Probabilities,
    Profile,
    ProfileNode,
    Received,
    Recomputed,
    Refused,
    Softmax,
    Span,
    Step,
    Tensor,
    TrainingCall,
    Twins,
    Value,
)
from gradscope.graph.garbage import uncollected
from gradscope.graph.limits import WITHHELD_IN_A_ROW
from gradscope.probes.asked.batches import BatchCheck as BatchCheckRecord
from gradscope.probes.backward.custom import custom_backwards
from gradscope.probes.backward.nonfinite import spoilt_by_steps
from gradscope.probes.backward.profiles import Profile as ProfileRecord
from gradscope.probes.backward.recomputes import Recompute
from gradscope.probes.backward.twins import twins_at_end
from gradscope.probes.forward.callsites import USER, Site
from gradscope.probes.program.names import SourceNames, function_name, names_in, source_names
from gradscope.probes.program.scopes import modules_in
from gradscope.probes.records import (
    BackwardRecord,
    ModuleMark,
    OperationRecord,
    OptimizerMark,
    StepRecord,
    Subject,
    ValueRecord,
)
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.attributes import INFERENCE, plain
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.training.courses import Course, pick
from gradscope.probes.training.movement import judge_masked

_VIEWS = frozenset(
    [
        "Alias",
        "AsStrided",
        "Diagonal",
        "Expand",
        "Narrow",
        "Permute",
        "Reshape",
        "Select",
        "Slice",
        "Split",
        "SplitWithSizes",
        "Squeeze",
        "T",
        "Transpose",
        "Unbind",
        "Unfold",
        "Unsafe",
        "Unsqueeze",
        "View",
        "ViewAsComplex",
        "ViewAsReal",
    ]
)
_SCALING = frozenset({"mul", "rmul", "multiply", "div", "divide", "truediv", "true_divide"})
_LINES_ABOVE = 30
_LINES_MOST = 400
_LINES_OF_A_FILE = 20_000  # what is longer was written by a program


@dataclass(frozen=True, slots=True)
class Frozen:
    """The facts that a tape yields; the observation adds how the run went."""

    tensors: tuple[Tensor, ...]
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    optimizers: tuple[Optimizer, ...]
    modules: tuple[Module, ...]
    losses: tuple[Loss, ...]
    discards: tuple[Discard, ...]
    growths: tuple[Growth, ...]
    functions: tuple[CustomBackward, ...]
    modes: tuple[Modes, ...]
    nonfinite: Nonfinite | None
    profiles: tuple[Profile, ...]
    batches: tuple[BatchCheck, ...]
    probabilities: tuple[Probabilities, ...]
    softmaxes: tuple[Softmax, ...]
    training_calls: tuple[TrainingCall, ...]
    compared: tuple[Compared, ...]
    twins: tuple[Twins, ...]
    lookups: tuple[Lookups, ...]
    sources: Mapping[str, Mapping[int, str]]
    whole: tuple[str, ...]
    comments: Mapping[str, Mapping[int, str]]


class _Freezer:
    def __init__(self, tape: Tape, namespace: Mapping[str, Any], given: Mapping[int, str]) -> None:
        self.tape = tape
        self.records = [step for step in tape.steps() if not step.empty]
        for whole, shard in tape.gathered.values():
            shard.used, shard.consumed = shard.used or whole.used, shard.consumed or whole.consumed
        self.spans: dict[Site | None, Span | None] = {None: None}
        self.values: dict[int, Value] = {}
        self.subjects: dict[int, Subject] = {}
        self.grad_fns: dict[int, str] = {}
        self.sources = SourceNames(tape.sites)
        self.labels = self._root_labels(namespace)
        others = [check.step for check in tape.checks]
        stopped = [mark for mark in tape.optimizers if mark.in_a_row >= WITHHELD_IN_A_ROW]
        self.stopped = {mark.serial for mark in stopped}
        self.withheld = next((mark.withheld_event for mark in stopped if mark.withheld_event is not None), None)
        self.spoilt = tape.harmed or self.withheld or tape.idle
        if self.spoilt is not None:
            step = StepRecord(self.spoilt.step)  # it may not be kept
            step.operations += filter(None, [self.spoilt.operation])
            step.backwards += filter(None, [self.spoilt.backward])
            others.append(step)
        self.names = {**given, **source_names(tape, [*self.records, *others])}
        for name, tensor in names_in(namespace):
            subject = tape.seen(tensor)
            if subject is not None:
                self.names[subject.serial] = name
        owners = {id(subject.name[0]) for subject in tape.kept.values() if subject.name is not None}
        self.several = len(owners) > 1
        tried = [mark for mark in tape.optimizers if mark.steps or mark.withheld]
        self.unstepped = bool(tape.optimizers) and not tried
        self.idle = {mark.serial for mark in tape.optimizers if mark not in tried}
        self.walked = any(b.walk is not None and b.walk.complete for s in self.records for b in s.backwards)
        self.differentiated = {root[1].serial for s in self.records for b in s.backwards for root in b.roots}
        self._makers: dict[int, _Makers] = {}

    def _root_labels(self, namespace: Mapping[str, Any]) -> dict[int, str]:
        """The variable of each root module."""
        variables: dict[int, str] = {}
        attributes: dict[int, str] = {}
        for name, module in modules_in(namespace, self.tape.sites):
            (variables if name in namespace else attributes)[id(module)] = name
        labels: dict[int, str] = {}
        for key, (mark, site) in self.tape.roots.items():
            root = id(mark.ref())
            label = self.tape.labels.get(key) or variables.get(root)
            label = label or (self.sources.receiver(site) if site is not None else None)
            label = label or attributes.get(root) or self.tape.hints.get(key) or mark.type.lower()
            taken = sum(other == label or other.rpartition("#")[0] == label for other in labels.values())
            labels[key] = f"{label}#{taken + 1}" if taken else label
        return labels

    def span(self, site: Site | None) -> Span | None:
        if site not in self.spans:
            self.spans[site] = self.tape.sites.span(site)
        return self.spans[site]

    def owner(self, subject: Subject) -> Subject:
        """What FSDP gathers for a while is one tensor with the shard that the optimizer holds."""
        link = self.tape.gathered.get(subject.serial)
        return link[1] if link is not None else subject

    def value(self, record: ValueRecord) -> int:
        number, subject, history = record
        subject = self.owner(subject)
        if number not in self.values:
            self.values[number] = Value(number, subject.serial, history)
            self.subjects.setdefault(subject.serial, subject)
        return number

    def path(self, mark: ModuleMark | None) -> str | None:
        if mark is None or mark.root is None:
            return None if mark is None else mark.type
        label = self.labels.get(id(mark.root), mark.root.type.lower())
        return f"{label}.{mark.path}" if mark.path else label

    def name(self, subject: Subject) -> str | None:
        if subject.name is not None:
            root, path = subject.name
            # What should have been a parameter and is not registered is called as the user would write it, and so is
            # what would be a bare word or begin with a number: `head.weight` and `net.0.weight`.
            spelled_out = (
                self.several
                or (subject.registered == "attribute" and subject.requires_grad)
                or "." not in path
                or path[0].isdigit()
            )
            return f"{self.labels.get(id(root), root.type.lower())}.{path}" if spelled_out else path
        return self.names.get(subject.serial)

    def operation(self, record: OperationRecord) -> Operation:
        return Operation(
            record.serial,
            function_name(record.function),
            tuple(map(self.value, record.inputs)),
            tuple(map(self.value, record.outputs)),
            record.grad_enabled,
            record.nodes,
            self.path(record.module),
            self.span(record.site),
            record.within,
            record.failed,
            float(record.number) if record.number is not None else None,
        )

    def step(self, record: StepRecord) -> Step:
        operations = tuple(map(self.operation, record.operations))
        backwards = tuple(self.backward(backward) for backward in record.backwards)
        return Step(
            record.index,
            operations,
            backwards,
            record.optimizer,
            self.span(record.site),
            self.calls(record),
            tuple(map(self.event, record.events)),
        )

    def event(self, event: AnyEvent[Site | None]) -> AnyEvent[Span | None]:
        frozen: Any = msgspec.structs.replace(event, place=self.span(event.place))
        found: AnyEvent[Span | None] = frozen
        return found

    def calls(self, record: StepRecord) -> tuple[Call, ...]:
        """The calls of root modules that gave tensors which the other facts speak of."""
        known = self.subjects
        calls = []
        for call in record.calls:
            span = self.span(call.site)
            outputs = [output.serial for output in call.given if output.serial in known]
            if span is not None and outputs:
                calls.append(Call(span, tuple(outputs)))
        return tuple(calls)

    def backward(self, record: BackwardRecord) -> Backward:
        for subject in record.arrivals:
            self.subjects.setdefault(subject.serial, subject)
        kind: Any = record.kind
        return Backward(
            kind,
            tuple(map(self.value, record.roots)),
            tuple(subject.serial for subject in record.arrivals),
            self.span(record.site),
            self.nodes(record),
            record.walk is None or record.walk.complete,
            record.failed,
            record.began,
            record.retained,
            self.refused(record),
        )

    def refused(self, record: BackwardRecord) -> Refused | None:
        refusal = record.refusal
        if refusal is None:
            return None
        makers = self.makers(record.thread)
        if refusal.subject is not None:
            self.subjects.setdefault(refusal.subject.serial, refusal.subject)
        now, then = refusal.versions or (None, None)
        freed = [maker for sequence in refusal.freed if (maker := makers.of(sequence)) is not None]
        return Refused(
            refusal.node,
            makers.of(refusal.sequence) if refusal.sequence is not None else None,
            refusal.subject.serial if refusal.subject is not None else None,
            refusal.result,
            now,
            then,
            refusal.writers,
            tuple(dict.fromkeys(freed)),
            self.recomputed(refusal.recompute) if refusal.recompute is not None else None,
        )

    def recomputed(self, record: Recompute) -> Recomputed:
        calls = ((function_name(function), self.span(site), shape) for function, site, shape in record.calls)
        again = tuple(Again(name, span, shape) for name, span, shape in calls if span is not None)
        number, site = self.tape.mode_switched
        late = record.ended is not None and number > record.ended
        switched = self.span(site) if late else None
        return Recomputed(self.span(record.site), record.began, record.ended, again, switched)

    def makers(self, thread: int) -> _Makers:
        """Who made the nodes of a thread."""
        if thread not in self._makers:
            operations = (op for step in self.records for op in step.operations)
            self._makers[thread] = _Makers(op for op in operations if op.thread == thread)
        return self._makers[thread]

    def nodes(self, record: BackwardRecord) -> tuple[Node, ...]:
        walk = record.walk
        if walk is None:
            return ()
        makers = self.makers(record.thread)
        widths = [1] * len(walk)
        for target, output in zip(walk.targets, walk.outputs, strict=True):
            widths[target] = max(widths[target], output + 1)
        nodes = []
        for place, name in enumerate(walk.names):
            first, last = walk.starts[place], walk.starts[place + 1]
            leaf = walk.leaves.get(place)
            if leaf is not None:
                self.subjects.setdefault(leaf.serial, leaf)
            sequence = walk.sequences[place] if walk.sequences is not None and leaf is None else None
            nodes.append(
                Node(
                    place,
                    name,
                    tuple(zip(walk.targets[first:last], walk.outputs[first:last], strict=True)),
                    sequence,
                    makers.of(sequence) if sequence is not None else None,
                    leaf.serial if leaf is not None else None,
                    walk.saved[place] if walk.saved is not None else None,
                    place in walk.custom,
                    name.rstrip("0123456789").removesuffix("Backward") in _VIEWS,
                    widths[place],
                )
            )
        return tuple(nodes)

    def tensor(self, subject: Subject) -> Tensor:
        course = subject.course
        live = subject.ref()
        if live is not None:
            self.tape.refresh(subject, live)
            if course is not None:
                course.measure(live)
                if self.tape.closed and course.masked_before is not None and course.sample is not None:
                    judge_masked(course, pick(live, course.sample[0]))
        predicted = course.predicted if course is not None else None
        if predicted is None and self.walked and subject.leaf:
            predicted = False
        built = tuple(span for site in subject.built if (span := self.span(site)) is not None)
        return Tensor(
            id=subject.serial,
            name=self.name(subject),
            shape=plain(subject.shape),
            dtype=str(subject.dtype).removeprefix("torch."),
            device=str(subject.device),
            leaf=subject.leaf,
            requires_grad=subject.requires_grad,
            grad_fn=self.grad_fns.get(subject.serial),
            nn_parameter=subject.nn_parameter,
            registered=subject.registered,
            module=self.labels.get(id(subject.name[0])) if subject.name is not None else None,
            optimizer=course.optimizer if course is not None else None,
            supplied=course is not None and course.supplied,
            used=subject.used,
            consumed=subject.consumed,
            differentiated=subject.serial in self.differentiated,
            predicted=predicted if subject.leaf else None,
            received=self.received(subject, course),
            gradient_norms=self.norms(course) if course is not None else (),
            start=_finite_or_none(course.start) if course is not None else None,
            change=_finite_or_none(course.change) if course is not None else None,
            made=self.span(subject.site),
            built=built[0] if built else None,
            callers=built[1:],
            inference=subject.version == INFERENCE,
            ledger=self.ledger(course) if course is not None and subject.leaf else None,
        )

    def received(self, subject: Subject, course: Course | None) -> Received | None:
        if course is None or not subject.leaf:
            return None
        if self.is_unstepped(course) and course.account.passes:
            return Received(course.account.passes, self.tape.backward_count)
        if not (course.of or course.withheld[0]):
            # It lived within one step, as inputs do, and that step did not end while it was there.
            norm = course.norm
            zero, nonfinite = norm == 0, norm is not None and not math.isfinite(norm)
            return Received(1, 1, int(zero), int(nonfinite)) if course.arrived else None
        of, arrived, zeros, spoilt = course.withheld if course.optimizer in self.stopped else (0, 0, 0, 0)
        return Received(
            course.steps + arrived, course.of + of, course.zero + zeros, course.nonfinite + spoilt, course.zeros
        )

    def is_unstepped(self, course: Course) -> bool:
        """Whether the optimizer that holds a tensor never steps: then passes are all that can be counted."""
        return self.unstepped or course.optimizer in self.idle

    def norms(self, course: Course) -> tuple[float | None, ...]:
        """Norms are counted at steps: where no optimizer has stepped, the latest is all there is."""
        waiting = self.is_unstepped(course) and not course.norms.points and course.norm is not None
        return tuple(map(finite, [course.norm] if waiting and course.norm is not None else course.norms.points))

    def ledger(self, course: Course) -> Ledger:
        account = course.account
        over = course.overwritten.counts if course.overwritten is not None else Overwrites[Site]()
        return Ledger(
            passes=account.passes,
            first=account.first,
            last=account.last,
            applied=account.applied,
            piled=account.piled,
            starved=account.starved,
            cleared_first=account.cleared_first,
            reapplied=account.reapplied,
            robbed=account.robbed,
            leftover=account.leftover,
            leftover_at=self.span(account.leftover_at),
            by_hand=account.by_hand,
            stirred=course.moves.stirred,
            still=course.moves.still,
            moved_frozen=course.moves.moved_frozen,
            masked=course.moves.masked,
            masks=course.masks_looked_at,
            rate=_finite_or_none(course.moves.rate),
            rate_zero=course.moves.rate_zero,
            updates=tuple(map(finite, course.moves.updates.points)),
            backward=self.span(account.site),
            cleared=self.span(account.cleared_at),
            swept=account.swept,
            masked_at=self.span(account.masked_at),
            frozen=self.span(course.frozen_at),
            overwrites=over.judged,
            overwritten=over.lost,
            overwritten_after=over.gaps,
            overwritten_at=self.span(over.site),
            clips=tuple(self.clips(account.clips)) if account.clips is not None else (),
        )

    def clips(self, found: ClipsFold[Site]) -> Iterator[Clips]:
        for site, line in found.lines.items():
            span = self.span(site)
            if span is not None and line.uses:
                counts = {timing.replace(" ", "_"): count for timing, count in line.uses.items()}
                yield Clips(span, line.limit, scale=_finite_or_none(line.scale), **counts)

    def find_grad_fns(self, steps: Iterable[Step]) -> None:
        """Name the `grad_fn` of results without touching it: the last node that their operation made.

        Only walked steps know their nodes; the same line calling the same function makes the same ones later.
        """
        last: dict[int, tuple[int, str]] = {}
        for step in steps:
            for node in (node for backward in step.backwards for node in backward.nodes):
                if node.operation is not None and node.sequence is not None:
                    last[node.operation] = max(last.get(node.operation, (-1, "")), (node.sequence, node.name))
        operations = [operation for record in self.records for operation in record.operations]
        known = {(op.function, op.site): last[op.serial][1] for op in operations if op.serial in last}
        if not known:
            return
        for operation in operations:
            name = known.get((operation.function, operation.site))
            for _, subject, history in operation.outputs:
                if name is not None and history and not subject.leaf:
                    self.grad_fns[subject.serial] = name

    def freeze(self) -> Frozen:
        steps = tuple(map(self.step, self.records))
        nonfinite = self.nonfinite()
        batches = tuple(map(self.batch, self.tape.checks))
        profiles = tuple(map(self.profile, self.tape.profiles))
        probabilities = tuple(Probabilities(self.value(value), summed) for value, summed in self.tape.probabilities)
        softmaxes = tuple(Softmax(self.value(value), axis) for value, axis in self.tape.softmaxes)
        training_calls = tuple(
            TrainingCall(value[0], self.path(mark) or "")
            for value, mark in self.tape.training_calls
            if value[0] in self.values
        )
        compared = tuple(
            Compared(
                self.operation(each.operation),
                self.operation(each.squash),
                each.looks,
                each.beyond / each.looks,
                each.low,
                each.high,
            )
            for each in self.tape.compared.values()
        )
        if self.tape.failed is not None:
            self.span(self.tape.failed.entered)
        self.find_grad_fns(steps)
        self.subjects.update(self.tape.kept)
        twins = tuple(self.twins())
        lookups = tuple(self.lookups())
        discards, growths = self.discards(), self.growths()
        tensors = tuple(self.tensor(subject) for _, subject in sorted(self.subjects.items()))
        optimizers = tuple(map(self.optimizer, self.tape.optimizers))
        modules = tuple(
            Module(self.path(mark) or "", mark.type, mark.training, mark.requires_grad, mark.awaits_all, mark.repeats)
            for mark in self.tape.marks.values()
            if mark.root is not None
        )
        functions = tuple(custom_backwards(self.tape))
        whole = self.whole()
        sources = {**whole, **self.lines(whole)}
        return Frozen(
            tensors=tensors,
            values=tuple(self.values.values()),
            steps=steps,
            optimizers=optimizers,
            modules=modules,
            losses=self.losses(),
            discards=discards,
            growths=growths,
            functions=functions,
            modes=tuple(self.modes()),
            nonfinite=nonfinite,
            profiles=profiles,
            batches=batches,
            probabilities=probabilities,
            softmaxes=softmaxes,
            training_calls=training_calls,
            compared=compared,
            twins=twins,
            lookups=lookups,
            sources=sources,
            whole=tuple(whole),
            comments=self.comments(),
        )

    def optimizer(self, mark: OptimizerMark) -> Optimizer:
        return Optimizer(
            mark.serial,
            mark.type,
            tuple(mark.subjects),
            mark.steps,
            self.span(mark.site),
            mark.refused,
            mark.uses,
            mark.fed,
            self.span(mark.stepped_at),
            self.span(mark.cleared_at),
            mark.withheld,
            mark.in_a_row,
            self.span(mark.withheld_at),
            _finite_or_none(mark.scale),
            mark.stateful,
        )

    def discards(self) -> tuple[Discard, ...]:
        return tuple(
            Discard(self.span(site), self.span(found.cleared_at), found.passes, found.vain, tuple(sorted(serials)))
            for site, found in self.tape.discards.items()
            if found.vain and (serials := found.serials & self.subjects.keys())
        )

    def growths(self) -> tuple[Growth, ...]:
        found = []
        for record in self.tape.growth.found.values():
            span = self.span(record.site)
            if span is not None:
                self.subjects.setdefault(record.subject.serial, record.subject)
                trained = self.tape.growth.trained.get(record.kind, 0)
                found.append(
                    Growth(
                        record.kind,
                        span,
                        record.subject.serial,
                        record.count,
                        record.since,
                        record.until,
                        trained,
                        record.keeper,
                        record.ended,
                    )
                )
        return tuple(found)

    def nonfinite(self) -> Nonfinite | None:
        event = self.spoilt or spoilt_by_steps(self.tape)
        if event is None:
            return None
        for subject in (*event.leaves, *event.taken):
            self.subjects.setdefault(subject.serial, subject)
        backward, found = event.backward, event.evidence
        return Nonfinite(
            event.kind,
            event.step,
            self.operation(event.operation) if event.operation is not None else None,
            event.node,
            event.given,
            self.span(event.custom),
            found.name if found is not None else "",
            _finite_or_none(found.low) if found is not None else None,
            _finite_or_none(found.high) if found is not None else None,
            tuple(subject.serial for subject in event.leaves),
            self.value(backward.roots[0]) if backward is not None and backward.roots else None,
            self.span(backward.site) if backward is not None else None,
            tuple(subject.serial for subject in event.taken),
            event is self.withheld,
        )

    def profile(self, record: ProfileRecord) -> Profile:
        makers = _Makers(record.operations)
        known = {operation.serial: operation for operation in record.operations}
        made = [makers.of(number) for number in record.sequences]
        nodes = []
        for place, name in enumerate(record.names):
            leaf = record.leaves.get(place)
            if leaf is not None:
                self.subjects.setdefault(leaf.serial, leaf)
            nodes.append(
                ProfileNode(
                    name,
                    record.sequences[place] if leaf is None else 0,
                    tuple(record.targets[place]),
                    _finite_or_none(record.arrived[place]),
                    tuple(map(_finite_or_none, record.sent[place])),
                    made[place] if leaf is None else None,
                    leaf.serial if leaf is not None else None,
                    place in record.halves,
                )
            )
        used = sorted({number for number in made if number is not None})
        return Profile(record.step, tuple(nodes), tuple(self.operation(known[number]) for number in used))

    def lookups(self) -> Iterator[Lookups]:
        for subject, row, counts in self.tape.lookups.values():
            self.subjects[subject.serial] = subject
            yield Lookups(subject.serial, row, counts.looks, counts.padded, counts.real, counts.share)

    def twins(self) -> Iterator[Twins]:
        for found in twins_at_end(self.tape):
            self.subjects.update({subject.serial: subject for subject in (found.subject, *found.others)})
            others = tuple(other.serial for other in found.others)
            yield Twins(found.subject.serial, found.alike, found.rows, found.looks, others)

    def batch(self, check: BatchCheckRecord) -> BatchCheck:
        operation = self.operation(check.operation) if check.operation is not None else None
        return BatchCheck(
            self.path(check.mark) or "", check.size, operation, tuple(self.path(mark) or "" for mark in check.normed)
        )

    def modes(self) -> Iterator[Modes]:
        for mark in self.tape.marks.values():
            if mark.modes is None or mark.root is None:
                continue
            for optimizer, (training, evaluation) in mark.modes.counts.items():
                site, by = mark.modes.switched.get(optimizer) or (None, None)
                yield Modes(
                    self.path(mark) or "",
                    mark.modes.operation,
                    optimizer,
                    training,
                    evaluation,
                    self.span(site),
                    self.path(by),
                )

    def losses(self) -> tuple[Loss, ...]:
        kinds = {kind for kind, _ in self.tape.losses}
        wanted = "backward" if "backward" in kinds else "grad"
        return tuple(
            self.loss(subject, site, losses)
            for (kind, site), (subject, losses) in self.tape.losses.items()
            if kind == wanted
        )

    def loss(self, root: Subject, site: Site | None, losses: Losses) -> Loss:
        series, trend = losses.series, losses.trend
        return Loss(
            self.loss_name(root),
            finite(losses.first),
            finite(losses.last),
            tuple(map(finite, series.points)),
            series.stride,
            series.seen,
            losses.constant,
            finite(losses.lowest),
            finite(losses.highest),
            finite(trend.mean),
            finite(trend.deviation),
            finite(trend.slope),
            self.span(site),
        )

    def loss_name(self, root: Subject) -> str:
        """What a root of backward is called; an expression that scales a loss is no name of one."""
        name = self.name(root)
        if name is None or not {" ", "("}.isdisjoint(name):
            name = self.scaled(root) or name
        return name or "loss"

    def scaled(self, root: Subject) -> str | None:
        """The name of a root that is nothing but a named loss times a factor: `scaled loss`."""
        for operation in (operation for step in reversed(self.records) for operation in step.operations):
            if any(subject is root for _, subject, _ in operation.outputs):
                carrying = [subject for _, subject, history in operation.inputs if history]
                scales = function_name(operation.function).rpartition(".")[2].strip("_") in _SCALING
                name = self.name(carrying[0]) if scales and len(carrying) == 1 else None
                return f"scaled {name}" if name is not None else None
        return None

    def lines(self, whole: Container[str]) -> dict[str, dict[int, str]]:
        """The text of the lines that spans lie on, and of their neighbours, of files that are not kept whole."""
        lines: dict[str, dict[int, str]] = {}
        for site, span in self.spans.items():
            if site is None or span is None or span.file in whole:
                continue
            kept = lines.setdefault(span.file, {})
            # From the head of the function on, so that a reader sees which loop or block the line lies in.
            above = max(1, min(span.line - 2, max(site[0].co_firstlineno, span.line - _LINES_ABOVE)))
            for number in range(above, (span.end_line or span.line) + 3):
                text = linecache.getline(site[0].co_filename, number)
                if text:
                    kept[number] = text.rstrip("\n")
        for code in self.told_whole():
            name = self.tape.sites.name(code.co_filename)
            if name in whole:
                continue
            kept = lines.setdefault(name, {})
            last = max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
            for number in range(max(1, code.co_firstlineno - 2), min(last, code.co_firstlineno + _LINES_MOST) + 3):
                text = linecache.getline(code.co_filename, number)
                if text:
                    kept[number] = text.rstrip("\n")
        return lines

    def files(self) -> list[str]:
        """The files that spans lie in, as their code names them."""
        return sorted(
            {site[0].co_filename for site, span in self.spans.items() if site is not None and span is not None}
        )

    def whole(self) -> dict[str, dict[int, str]]:
        """All lines of the files that their author may change: those of the program itself that lie on the disk."""
        found = {}
        for file in self.files():
            lines = linecache.getlines(file)
            name = self.tape.sites.name(file)
            is_own = self.tape.sites.kind(file) == USER and os.path.isfile(os.path.join(self.tape.sites.folder, name))
            if is_own and len(lines) <= _LINES_OF_A_FILE:
                found[name] = {number: line.rstrip("\n") for number, line in enumerate(lines, 1)}
        return found

    def comments(self) -> dict[str, dict[int, str]]:
        """The comments that speak to us, in the files that spans lie in."""
        found = {self.tape.sites.name(file): comments_in("".join(linecache.getlines(file))) for file in self.files()}
        return {file: comments for file, comments in found.items() if comments}

    def told_whole(self) -> set[CodeType]:
        """Functions whose whole text is evidence: custom backwards, and who may have kept a freed graph."""
        whole = set(self.tape.customs)
        if any(b.refusal is not None and b.refusal.freed for step in self.records for b in step.backwards):
            whole.update(site[0] for site in self.spans if site is not None)
        return whole


class _Makers:
    """Finds the operation that made an autograd node: the innermost call during which its number was given."""

    def __init__(self, operations: Iterable[OperationRecord]) -> None:
        self.made = sorted(
            (operation for operation in operations if operation.nodes[0] < operation.nodes[1]), key=_order
        )
        self.starts = [operation.nodes[0] for operation in self.made]

    def of(self, sequence: int) -> int | None:
        place = bisect.bisect_right(self.starts, sequence) - 1
        while place >= 0:
            operation = self.made[place]
            if sequence < operation.nodes[1]:
                return operation.serial
            if operation.within is None:
                return None
            place -= 1
        return None


def _order(operation: OperationRecord) -> tuple[int, int]:
    return operation.nodes[0], -operation.nodes[1]


def finite(number: float) -> float | None:
    """None for what JSON cannot hold."""
    return number if math.isfinite(number) else None


def _finite_or_none(number: float | None) -> float | None:
    return None if number is None else finite(number)


def freeze(tape: Tape, namespace: Mapping[str, Any], given: Mapping[int, str]) -> Frozen:
    """Freeze what a tape holds now.

    `namespace` are the variables of the program by name, `given` names for subjects that have no other.
    """
    with unobserved(), uncollected():
        return _Freezer(tape, namespace, given).freeze()
