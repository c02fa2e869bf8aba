"""Questions to the data flow of one step: what leads where, and where the gradient is lost on the way.

A value is *alive* for a tensor if a gradient that arrives at the value would travel on to the tensor. The way of the
data and the way of the gradient are the same except at a *cut*: an operation that takes an alive value and gives one
that is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Backward, Operation, Run, Step, Tensor
from gradscope.graph.naming import short_name


def data_of(operation: Operation) -> tuple[int, ...]:
    """The operands whose values go into what an operation gives.

    `zeros_like`, `new_zeros` and `expand_as` read the shape and the type of an operand, and no more; what `zero_` fills
    holds nothing of what it held before.
    """
    return operation.inputs[_operands(operation.name)]


@cache
def _operands(name: str) -> slice:
    name = short_name(name)
    if name in ops.FILLS or name == "new" or name.startswith("new_") or name.endswith("_like"):
        return slice(1, None)
    return slice(1) if name in ops.FITS else slice(None)


def _on_one_line(one: Operation, other: Operation) -> bool:
    return (
        one.span is not None
        and other.span is not None
        and (one.span.file, one.span.line) == (other.span.file, other.span.line)
    )


@dataclass(frozen=True, slots=True)
class Reach:
    """Where one tensor's data goes in a step, and how far a gradient would come back from there."""

    touched: frozenset[int]
    alive: frozenset[int]
    cuts: tuple[Operation, ...]
    exits: tuple[Operation, ...]


class StepFlow:
    """The data flow of one step of a run, or of several that follow each other.

    `roots` are the values that a loss is: those that the backwards of the last step started from, or, where it has
    none, the backwards of all, unless they are given. `losses` are those of them at which training begins: where
    `backward` is called, `autograd.grad` only serves to compute what it is called on.
    """

    def __init__(self, run: Run, *steps: Step, roots: tuple[int, ...] | None = None) -> None:
        self.run = run
        self.step = steps[-1]
        self.tensors = run.tensor_by_id
        self.holder = run.holder
        self.history = run.history
        self.operations = tuple(
            part for step in steps for operation in step.operations for part in self._apart(operation)
        )
        backwards = self.step.backwards or tuple(backward for step in steps for backward in step.backwards)
        self.roots = tuple(root for backward in backwards for root in backward.roots) if roots is None else roots
        trained = tuple(root for backward in backwards if backward.kind == "backward" for root in backward.roots)
        self.losses = trained or self.roots

    def _apart(self, operation: Operation) -> tuple[Operation, ...]:
        """An operation as one for each of its operands, where these go side by side.

        What has the shape already that it would get is handed back as it is, and is no result.
        """
        if not ops.is_a(operation, ops.SIDE_BY_SIDE):
            return (operation,)
        shapes = [tensor.shape for value in operation.outputs if (tensor := self.tensor(value)) is not None]
        taken = operation.inputs
        if len(taken) > len(operation.outputs):
            taken = tuple(v for v in taken if (tensor := self.tensor(v)) is None or tensor.shape not in shapes)
        if len(taken) != len(operation.outputs):
            return (operation,)
        return tuple(
            replace(operation, inputs=(value,), outputs=(given,))
            for value, given in zip(taken, operation.outputs, strict=True)
        )

    @cached_property
    def values_of(self) -> dict[int, list[int]]:
        """The values that each tensor held in this step, by the tensor's id."""
        found: dict[int, list[int]] = {}
        seen: set[int] = set()
        for operation in self.operations:
            for value in (*operation.inputs, *operation.outputs):
                if value not in seen:
                    seen.add(value)
                    found.setdefault(self.holder[value], []).append(value)
        for root in self.roots:
            if root not in seen:
                found.setdefault(self.holder[root], []).append(root)
        return found

    @cached_property
    def exits(self) -> tuple[Operation, ...]:
        """The operations on lines of the user's that take a value out of torch."""
        return tuple(
            operation
            for operation in self.operations
            if not operation.outputs and operation.span is not None and ops.is_a(operation, ops.EXITS)
        )

    @cached_property
    def outer(self) -> frozenset[int]:
        """The ids of operations that others ran within."""
        return frozenset(operation.within for operation in self.operations if operation.within is not None)

    @cached_property
    def maker(self) -> dict[int, Operation]:
        """The operation that made each value; of a custom Function's forward, the Function itself."""
        return {
            value: operation
            for operation in self.operations
            for value in operation.outputs
            if value not in operation.inputs
        }

    @cached_property
    def before(self) -> dict[int, int]:
        """The value of the same tensor before, of each that no operation made: an optimizer's step moved it."""
        return {
            value: earlier
            for values in self.values_of.values()
            for earlier, value in pairwise(sorted(values))
            if value not in self.maker
        }

    @cached_property
    def grad_mode(self) -> list[tuple[int, Operation | None]]:
        """From which operation's id on which switch keeps grad mode off, or none does.

        An inner block that ends restores what the outer one had set, and so does one that turns it on for a while.
        """
        found: list[tuple[int, Operation | None]] = []
        under: list[tuple[Operation, Operation | None]] = []  # the switches that are under way, and who keeps it off
        for switch in self.run.grad_mode_switches:
            off = switch.name.startswith(("set_grad_enabled(False)", "inference_mode(True)"))
            latest, keeper = under[-1] if under else (None, None)
            if latest is not None and off != (keeper is not None) and _on_one_line(latest, switch):
                under.pop()
            else:
                under.append((switch, (keeper or switch) if off else None))
            found.append((switch.id, under[-1][1] if under else None))
        return found

    def tensor(self, value: int) -> Tensor | None:
        """The tensor that held a value."""
        return self.tensors.get(self.holder.get(value, -1))

    def is_scalar(self, value: int) -> bool:
        """Whether a tensor of one number held a value."""
        tensor = self.tensor(value)
        return tensor is not None and tensor.is_scalar

    def behind(self, ends: Iterable[int], stop: int | None = None) -> frozenset[int]:
        """All values that these were computed from, themselves included.

        What went into the values of the tensor `stop` is left out: how a parameter came to hold what it holds is no
        part of the way from it to a loss.
        """
        needed = set[int]()
        self._add(needed, ends)
        for operation in reversed(self.operations):
            found = needed.intersection(operation.outputs)
            if found and not all(self.holder[value] == stop for value in found):
                self._add(needed, data_of(operation))
        return frozenset(needed)

    def _add(self, needed: set[int], values: Iterable[int]) -> None:
        for value in values:
            earlier: int | None = value
            while earlier is not None and earlier not in needed:
                needed.add(earlier)
                earlier = self.before.get(earlier)

    @cached_property
    def behind_roots(self) -> frozenset[int]:
        """All values that a loss of this step was computed from."""
        return self.behind(self.roots)

    def behind_roots_of(self, tensor: int) -> frozenset[int]:
        """The same for ways from one tensor: how it came to hold what it holds is no part of them."""
        return self.behind(self.roots, tensor) if tensor in self._rewritten else self.behind_roots

    @cached_property
    def _rewritten(self) -> frozenset[int]:
        """The tensors into which something is written that is younger than they are: it may be made of them."""
        first = {tensor: min(values) for tensor, values in self.values_of.items()}
        return frozenset(
            tensor
            for operation in self.operations
            for tensor in {self.holder[value] for value in operation.outputs}
            if any(value > first[tensor] for value in data_of(operation) if self.holder[value] != tensor)
        )

    @cached_property
    def _first_use(self) -> dict[int, int]:
        """The place among the operations at which each value is used first."""
        found: dict[int, int] = {}
        for place, operation in enumerate(self.operations):
            for value in data_of(operation):
                found.setdefault(value, place)
        return found

    def reach(self, starts: Iterable[int], ends: frozenset[int]) -> Reach:
        """Follow the data from `starts`; cuts are looked for on the way to `ends` only."""
        touched = set(starts)
        own = {self.holder[value] for value in touched}
        alive = {value for value in touched if self.history[value]}
        cuts: list[Operation] = []
        exits: list[Operation] = []
        uses = [self._first_use[v] for held in own for v in self.values_of.get(held, ()) if v in self._first_use]
        for operation in self.operations[min(uses, default=len(self.operations)) :]:
            data = data_of(operation)
            for value in data:
                if value in self.before and self.before[value] in touched:
                    touched.add(value)
            if touched.isdisjoint(data):
                continue
            live = not alive.isdisjoint(data)
            if not operation.outputs:
                if ops.is_a(operation, ops.EXITS):
                    exits.append(operation)
                continue
            cut = kept = False
            for value in operation.outputs:
                if value in operation.inputs or self.holder[value] in own:
                    continue
                touched.add(value)
                if not live:
                    continue
                # Inside a custom Function grad mode is off by design: its own call tells whether it carries.
                if operation.within is not None or self._carries(operation, value):
                    alive.add(value)
                    kept = kept or value in ends
                elif value in ends:
                    cut = True
            if cut and not kept:
                cuts.append(operation)
        return Reach(frozenset(touched), frozenset(alive), tuple(cuts), tuple(exits))

    def _carries(self, operation: Operation, value: int) -> bool:
        """Whether a value has a history of its own making: a leaf has none, whatever it requires."""
        tensor = self.tensor(value)
        if not self.history[value] or tensor is None or not tensor.leaf:
            return self.history[value]
        if tensor.nn_parameter:
            return False
        # A leaf now, and none when this was computed if a later `detach_` has made it one. Writing into a leaf makes
        # nodes as well (`leaf.data.copy_(x)`), so they tell only of new tensors.
        if any(self.holder[source] == tensor.id for source in operation.inputs):
            return not tensor.requires_grad
        return operation.nodes[0] < operation.nodes[1]

    def path(self, start: Iterable[int], through: Operation, ends: frozenset[int]) -> list[tuple[Operation, bool]]:
        """A shortest way of the data from `start` through an operation to one of `ends`.

        Each operation comes with whether it is the one at which the gradient is lost. The way to it keeps to
        values with history where it can.
        """
        sources, targets = set(start), set(data_of(through))
        before = self._shortest(sources, targets, attached=True) or self._shortest(sources, targets)
        after = self._shortest(set(through.outputs), set(ends))
        return [*((operation, False) for operation in before), (through, True), *((op, False) for op in after)]

    def _shortest(self, sources: set[int], targets: set[int], *, attached: bool = False) -> list[Operation]:
        if not sources.isdisjoint(targets):
            return []
        users: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for value in data_of(operation):
                users.setdefault(value, []).append(operation)
        came: dict[int, tuple[Operation, int]] = {}
        waiting = deque(sources)
        while waiting:
            value = waiting.popleft()
            for operation in users.get(value, ()):
                for result in operation.outputs:
                    if result in came or result in sources or (attached and not self.history[result]):
                        continue
                    came[result] = (operation, value)
                    if result in targets:
                        return self._way_back(came, result, sources)
                    waiting.append(result)
        return []

    @staticmethod
    def _way_back(came: dict[int, tuple[Operation, int]], value: int, sources: set[int]) -> list[Operation]:
        way: list[Operation] = []
        while value not in sources:
            operation, value = came[value]
            way.append(operation)
        return way[::-1]

    def told(self, start: str, path: list[tuple[Operation, bool]], end: str) -> str:
        """A path in the user's names and lines: `x -> linear:12 -> z -/- detach -> linear:13 -> loss`.

        A line is told where the path comes to it.
        """
        parts = [start]
        line: tuple[str, int] | None = None
        for operation, lost in path:
            if ops.is_a(operation, ops.FLAGS) and not lost:
                continue
            mark = "-/-" if lost else "->"
            name = short_name(operation.name)
            place = (operation.span.file, operation.span.line) if operation.span is not None else line
            at = f":{place[1]}" if place is not None and place != line else ""
            line = place
            results = [tensor.name for value in operation.outputs if (tensor := self.tensor(value)) and tensor.name]
            parts += [mark, name + at]
            if results and results[0] not in (start, end, name) and len(results[0]) <= 24:
                parts += ["->", results[0]]
        if parts[-1] != end:
            parts += ["->", end]
        return " ".join(_shortened(parts))


def _shortened(parts: list[str]) -> list[str]:
    """At most some fifteen stations: the ends and the place of the cut are what matters."""
    cut = parts.index("-/-") if "-/-" in parts else len(parts)
    if len(parts) <= 31:
        return parts
    head, middle, tail = parts[:7], parts[max(7, cut - 6) : cut + 8], parts[max(cut + 8, len(parts) - 6) :]
    joined = [*head]
    if cut - 6 > 7:
        joined += ["->", "..."]
    joined += middle
    if len(parts) - 6 > cut + 8:
        joined += ["->", "..."]
    return joined + tail


def flows(ask: Ask) -> list[StepFlow]:
    """The data flow of each step that is kept."""
    return [StepFlow(ask.run, step) for step in ask.run.steps]


def rounds(ask: Ask, optimizer: int | None) -> list[StepFlow]:
    """The data flow from one step of an optimizer to its next, over the steps of other optimizers in between.

    Where several optimizers step in turn, what one trains may have been computed before the step of another. Without
    any complete round, the steps one by one.
    """
    found: list[StepFlow] = []
    gathered: list[Step] = []
    for step in ask.run.steps:
        if gathered and step.index != gathered[-1].index + 1:
            gathered = []
        gathered.append(step)
        if optimizer is not None and step.optimizer == optimizer:
            found.append(StepFlow(ask.run, *gathered))
            gathered = []
    return found or ask(flows)


def trains_nothing(flow: StepFlow, backward: Backward) -> bool:
    """Whether a backward has no way to go: refused for want of history, or started from leaves only."""
    if not backward.roots:
        return False
    if backward.failed:
        return not any(flow.history[root] for root in backward.roots)
    return all((tensor := flow.tensor(root)) is not None and tensor.leaf for root in backward.roots)
