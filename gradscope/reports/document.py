"""The report as data, in the shape that its JSON has and that every rendering reads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from gradscope.graph.facts import Ending, Finding, Loss, Run, Span, StandIn, Tensor
from gradscope.graph.roles import Role, role

SCHEMA: Literal["gradscope.report/2"] = "gradscope.report/2"


class Place(msgspec.Struct, frozen=True):
    """A line of the user's source."""

    file: str
    line: int


class Raised(msgspec.Struct, frozen=True):
    """The exception that ended the script."""

    type: str
    message: str
    file: str | None
    line: int | None


class StandInRow(msgspec.Struct, frozen=True):
    """What was taken for something else in a dry run, how often, and at which line."""

    what: str
    instead: str
    count: int
    location: Place | None


class RunSummary(msgspec.Struct, frozen=True):
    """How the run went. A `dry` one had fake tensors; `dry_ended` says why it was ended before the script's own end."""

    steps: int
    backwards: int
    ended: Ending
    seconds: float
    exception: Raised | None
    dry: bool = False
    stand_ins: tuple[StandInRow, ...] = ()
    dry_ended: str | None = None


class LossRow(msgspec.Struct, frozen=True):
    """A scalar that backward started from, at its first and latest value; null where it is not finite.

    `series` has its value in each step (the mean, where there were several), or in every `stride`-th of `steps`.
    `constant` says that it was exactly one number all along.
    """

    name: str
    first: float | None
    last: float | None
    series: tuple[float | None, ...] = ()
    stride: int = 1
    steps: int = 0
    constant: bool = False


class Gradients(msgspec.Struct, frozen=True):
    """In how many steps a gradient arrived, and in how many of these it was zero or not finite."""

    steps: int
    of: int
    zero: int
    nonfinite: int


class TensorRow(msgspec.Struct, frozen=True):
    """One tensor. `moved` is |change| / |start|, null where there was no start to divide by (`from_zero`).

    `updates` are |update| / |value| of single steps, those that were looked at, in time order. Of a run in several
    processes, `ranks` are those whose own backward reached it; null for a single process,
    and where one of them raised too early to tell.
    """

    name: str
    role: Role
    leaf: bool
    requires_grad: bool
    shape: tuple[int, ...]
    dtype: str
    device: str
    grad_fn: str | None
    optimizer: str | None
    predicted: bool | None
    received: Gradients | None
    grad_norm: tuple[float | None, ...]
    moved: float | None
    from_zero: bool
    updates: tuple[float | None, ...]
    finding: str | None
    location: Place | None
    ranks: tuple[int, ...] | None = None


class RankRow(msgspec.Struct, frozen=True):
    """How the run of one process went, of several; `ended` is null where it did not report."""

    rank: int
    reported: bool
    ended: Ending | None
    exception: Raised | None


class GraphSize(msgspec.Struct, frozen=True):
    """Operations and data edges of the latest step that was kept, and the parameters of the run."""

    operations: int
    edges: int
    parameters: int


_NONE: Mapping[str, str] = MappingProxyType({})


class NotAsked(msgspec.Struct, frozen=True):
    """A rule that was not asked, and what it needs that was not observed."""

    rule: str
    needs: str


class Document(msgspec.Struct, frozen=True):
    """A whole report. `ranks` has a row a process where there are several."""

    gradscope: str
    torch: str
    script: str | None
    argv: tuple[str, ...]
    run: RunSummary
    losses: tuple[LossRow, ...]
    tensors: tuple[TensorRow, ...]
    findings: tuple[Finding, ...]
    graph: GraphSize
    failures: tuple[str, ...]
    not_asked: tuple[NotAsked, ...] = ()
    ranks: tuple[RankRow, ...] = ()
    schema: Literal["gradscope.report/2"] = SCHEMA


def document(
    run: Run, findings: tuple[Finding, ...], failures: tuple[str, ...] = (), not_asked: Mapping[str, str] = _NONE
) -> Document:
    """The report on a run with what the rules found; `not_asked` are rules with what they need that is not there."""
    crash = (run.crash.raised or run.crash) if run.crash is not None else None
    raised = None
    if crash is not None:
        raised = Raised(
            crash.type, crash.message, crash.span.file if crash.span else None, crash.span.line if crash.span else None
        )
    return Document(
        gradscope=run.gradscope,
        torch=run.torch,
        script=run.script,
        argv=run.argv,
        run=_summary(run, raised),
        losses=tuple(map(_loss, run.losses)) if run.dry is None else (),
        tensors=_rows(run, findings),
        findings=findings,
        graph=_size(run),
        failures=run.failures + failures,
        not_asked=tuple(NotAsked(rule, need) for rule, need in not_asked.items()),
    )


def _summary(run: Run, raised: Raised | None) -> RunSummary:
    told = run.step_count, run.backward_count, run.ended, round(run.seconds, 3), raised
    if run.dry is None:
        return RunSummary(*told)
    return RunSummary(*told, True, tuple(map(_stand_in, run.dry.stand_ins)), run.dry.ended)


def _stand_in(stood: StandIn) -> StandInRow:
    place = Place(stood.span.file, stood.span.line) if stood.span is not None else None
    return StandInRow(stood.what, stood.instead, stood.count, place)


def _loss(loss: Loss) -> LossRow:
    return LossRow(loss.name, loss.first, loss.last, loss.series, loss.stride, loss.steps, loss.constant)


def _rows(run: Run, findings: tuple[Finding, ...]) -> tuple[TensorRow, ...]:
    suffering = {name: finding.rule for finding in reversed(findings) for name in finding.tensors}
    optimizers = {optimizer.id: optimizer.name for optimizer in run.optimizers}
    rows = tuple(_row(tensor, optimizers, suffering.get(tensor.name or "")) for tensor in worth_showing(run))
    return rows if run.dry is None else tuple(map(_without_values, rows))


def _without_values(row: TensorRow) -> TensorRow:
    """A row of a dry run: where a gradient arrives is predicted, and how large it is nobody knows."""
    predicted = row.received.steps > 0 if row.received is not None and row.received.of else row.predicted
    return msgspec.structs.replace(
        row, predicted=predicted, received=None, grad_norm=(), moved=None, from_zero=False, updates=()
    )


def worth_showing(run: Run) -> list[Tensor]:
    """The tensors that a reader knows by name, each once: the latest of those that share a name and a role.

    Of the intermediates, those that are made or used in a function which calls backward, or at the top level.
    """
    callers = {
        (backward.span.file, backward.span.function)
        for step in run.steps
        for backward in step.backwards
        if backward.span is not None
    }
    entering = _constants_of_losses(run)
    used_at_hand = _inputs_where(run, lambda span: _is_at_hand(span, callers))
    latest: dict[tuple[str, Role], Tensor] = {}
    for tensor in run.tensors:
        what = role(tensor)
        if tensor.name is None:
            continue
        if what in ("intermediate", "output") and not tensor.differentiated:
            at_hand = tensor.made is not None and _is_at_hand(tensor.made, callers)
            if not at_hand and tensor.id not in used_at_hand and not (what == "output" and not callers):
                continue
        if what in ("constant", "input") and tensor.id not in entering and tensor.registered is None:
            continue
        latest.pop((tensor.name, what), None)
        latest[tensor.name, what] = tensor
    # What is computed stands in the order in which it was: some of it is met late, as it was jotted down only.
    computed = {
        run.holder[value]: place
        for place, operation in enumerate(operation for step in run.steps for operation in step.operations)
        for value in operation.outputs
    }
    return sorted(
        latest.values(),
        key=lambda tensor: (not tensor.leaf, -1 if tensor.leaf else computed.get(tensor.id, -1), tensor.id),
    )


def _is_at_hand(span: Span, callers: set[tuple[str, str | None]]) -> bool:
    return (span.file, span.function) in callers or span.function == "<module>"


def _inputs_where(run: Run, at: Callable[[Span], bool]) -> set[int]:
    """The tensors that operations at such places take."""
    tensor_of = run.holder
    operations = (operation for step in run.steps for operation in step.operations)
    return {
        tensor_of[value]
        for operation in operations
        if operation.span is not None and at(operation.span)
        for value in operation.inputs
    }


def _constants_of_losses(run: Run) -> set[int]:
    """The tensors that enter the way to a loss: taken by an operation on it, and not computed on it themselves.

    What a gradient flows past is what counts, not how the data were prepared; only where nothing has any history,
    everything that a loss was computed from does. Where no operation was seen, the leaves of the walked graph are all.
    In a program that calls no backward, leaves that ask for a gradient count as well where they are cut off.
    """
    tensor_of = run.holder
    history = run.history
    leaves = {tensor.id for tensor in run.tensors if tensor.leaf}
    flowing: set[int] = set()
    everything: set[int] = set()
    for step in reversed(run.steps):
        needed = {root for backward in step.backwards for root in backward.roots}
        for operation in reversed(step.operations):
            on_the_way = needed.intersection(operation.outputs)
            if not on_the_way:
                continue
            needed.update(operation.inputs)
            everything.update(operation.inputs)
            if any(history[value] and tensor_of[value] not in leaves for value in on_the_way):
                flowing.update(operation.inputs)
    backwards = [backward for step in run.steps for backward in step.backwards]
    walked = {node.tensor for backward in backwards for node in backward.nodes if node.tensor is not None}
    entering = walked | {tensor_of[value] for value in flowing or everything}
    if backwards and all(backward.kind == "confirmation" for backward in backwards):
        entering |= {tensor_of[value] for value in everything if run.history[value]} & leaves
    return entering


def _row(tensor: Tensor, optimizers: dict[int, str], finding: str | None) -> TensorRow:
    received = tensor.received
    start, change = tensor.start, tensor.change
    return TensorRow(
        name=tensor.name or "",
        role=role(tensor),
        leaf=tensor.leaf,
        requires_grad=tensor.requires_grad,
        shape=tensor.shape,
        dtype=tensor.dtype,
        device=tensor.device,
        grad_fn=tensor.grad_fn,
        optimizer=optimizers[tensor.optimizer] if tensor.optimizer is not None else None,
        predicted=tensor.predicted,
        received=Gradients(received.steps, received.of, received.zero, received.nonfinite) if received else None,
        grad_norm=tensor.gradient_norms,
        moved=change / start if start and change is not None else (0.0 if change == 0 else None),
        from_zero=bool(change) and start == 0,
        updates=tensor.ledger.updates if tensor.ledger is not None else (),
        finding=finding,
        location=Place(tensor.made.file, tensor.made.line) if tensor.made else None,
    )


def _size(run: Run) -> GraphSize:
    steps = [step for step in run.steps if step.backwards] or list(run.steps)
    parameters = sum(role(tensor) == "parameter" for tensor in run.tensors)
    if not steps:
        return GraphSize(0, 0, parameters)
    operations = steps[-1].operations
    if not operations:
        nodes = [node for backward in steps[-1].backwards for node in backward.nodes]
        return GraphSize(len(nodes), sum(len(node.edges) for node in nodes), parameters)
    made = {value for operation in operations for value in operation.outputs}
    edges = sum(value in made for operation in operations for value in operation.inputs)
    return GraphSize(len(operations), edges, parameters)


def median_norm(row: TensorRow) -> float | None:
    """The median of the gradient norms that are finite."""
    norms = [norm for norm in row.grad_norm if norm is not None]
    return statistics.median(norms) if norms else None


def schema() -> dict[str, object]:
    """The JSON Schema (2020-12) of a report; `report.schema.json` beside this file holds it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "gradscope.report/2",
        "title": "A report of gradscope",
        **msgspec.json.schema(Document),
    }
