"""Which operations of a step lead to what its backwards started from."""

from __future__ import annotations

from collections.abc import Collection

from gradscope.graph.facts import Operation, Run, Step, Tensor
from gradscope.graph.roles import role


class Flow:
    """The data flow of one step, walked from its ends towards the tensors that it began with.

    `ends` are the values that the step's backwards started from; without any, its results that nothing
    used. What leads to `cuts` belongs to the flow as well, also where a value leaves torch there or fills a leaf.
    """

    def __init__(self, run: Run, step: Step, cuts: Collection[Operation] = ()) -> None:
        self.tensors = run.tensor_by_id
        self._values = {value.id: value for value in run.values}
        self._first = {value.tensor: value.id for value in reversed(run.values)}
        self._step = step
        self._here = {op.id for op in step.operations}
        self._makers: dict[int, Operation] = {}
        self._derived: set[int] = set()
        for earlier in run.steps:
            for op in earlier.operations:
                self._record(op)
            if earlier is step:
                break
        self.ends = tuple(dict.fromkeys(self._roots()))
        self._cuts = {op.id for op in cuts}
        self._exits = tuple(value for op in cuts if not op.outputs for value in op.inputs)
        self._nothing_carries = not any(self.carries(end) for end in self.ends)

    def _record(self, op: Operation) -> None:
        # What runs inside a custom Function's forward is drawn as that Function's own call.
        if op.within is not None:
            return
        derived = any(self.carries(value) for value in op.inputs)
        for value in op.outputs:
            # A call that hands its input back (`x.contiguous()`) has not made it.
            if value in op.inputs:
                continue
            self._makers.setdefault(value, op)
            if derived:
                self._derived.add(value)

    def tensor(self, value: int) -> Tensor | None:
        """The tensor object that held a value."""
        held = self._values.get(value)
        return self.tensors.get(held.tensor) if held else None

    def history(self, value: int) -> bool:
        """Whether autograd would send a gradient to a value."""
        held = self._values.get(value)
        return held is not None and held.history

    def carries(self, value: int) -> bool:
        """Whether a value has history, or was computed from one that has, be it across a cut."""
        return value in self._derived or self.history(value)

    def _roots(self) -> list[int]:
        roots = [root for backward in self._step.backwards for root in backward.roots]
        if not roots:
            used = {value for op in self._step.operations for value in op.inputs}
            made = [value for op in self._step.operations for value in op.outputs]
            roots = [value for value in made if value not in used and value in self._makers]
            roots = [value for value in roots if self.carries(value)] or roots
        return roots

    def followed(self, value: int) -> Operation | None:
        """The operation that made a value, where the picture goes on behind it.

        A tensor that holds no trace of a gradient is where the picture begins, and so are the tensors of
        the model. Only where nothing carries a gradient at all, is everything followed.
        """
        maker, tensor = self._makers.get(value), self.tensor(value)
        if maker is None or not maker.inputs:
            return None
        if maker.id in self._cuts:
            return maker
        if tensor is not None and role(tensor) in ("parameter", "buffer"):
            return None
        if tensor is not None and role(tensor) == "input" and value not in self._derived:
            return None
        if maker.id in self._here:
            return maker if self._nothing_carries or self.carries(value) else None
        return maker if self.history(value) else None

    def made_in(self, tensor: Tensor) -> str | None:
        """The module in which a tensor was computed, where that was seen."""
        maker = self._makers.get(self._first.get(tensor.id, -1))
        return (maker.module or None) if maker is not None else None

    def operations(self) -> list[Operation]:
        """The operations that lead to the ends, in the order of the run."""
        waiting = [*self.ends, *self._exits]
        seen = set(waiting)
        found: dict[int, Operation] = {}
        while waiting:
            maker = self.followed(waiting.pop())
            if maker is None or maker.id in found:
                continue
            found[maker.id] = maker
            fresh = [value for value in maker.inputs if value not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
        return [found[number] for number in sorted(found)]
