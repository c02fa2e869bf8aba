"""Runs written by hand, operation by operation, for tests of what reads runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradscope.graph.facts import Backward, Node, Operation, Run, Span, Step, Tensor, Value


class Book:
    """Writes the facts of a run, operation by operation."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.values: list[Value] = []
        self.steps: list[Step] = []
        self.operations: list[Operation] = []
        self.count = 0

    def leaf(self, name: str | None, shape: Sequence[int] = (), grad: bool = False, **facts: object) -> int:
        """A leaf; gives its value."""
        return self._value(name, shape, grad, leaf=True, requires_grad=grad, consumed=True, **facts)

    def op(
        self,
        name: str,
        *inputs: int,
        result: str | None = None,
        shape: Sequence[int] = (5, 5),
        line: int = 1,
        file: str = "train.py",
        module: str | None = None,
        cut: bool = False,
        within: int | None = None,
        into: int | None = None,
        **facts: object,
    ) -> int:
        """An operation with one result; gives the result's value.

        With `cut` the result has no history. With `into` it is a new value of the tensor that held that value.
        """
        history = not cut and any(self.values[value].history for value in inputs)
        if into is None:
            made = self._value(result, shape, history, leaf=not history, requires_grad=history, consumed=True, **facts)
        else:
            made = len(self.values)
            self.values.append(Value(made, self.values[into].tensor, history))
        span = Span(file, line)
        self.operations.append(Operation(self.count, name, inputs, (made,), True, (0, 0), module, span, within))
        self.count += 1
        return made

    def step(self, *roots: int, nodes: Sequence[Node] = ()) -> None:
        """Close the step with a backward from these roots, or with none."""
        for root in roots:
            tensor = self.tensors[self.values[root].tensor]
            self.tensors[tensor.id] = replace(tensor, differentiated=True)
        backwards = (Backward("backward", roots, (), nodes=tuple(nodes)),) if roots else ()
        self.steps.append(Step(len(self.steps), tuple(self.operations), backwards))
        self.operations = []

    def run(self) -> Run:
        """The run so far."""
        return Run(
            "0",
            "2",
            "train.py",
            tensors=tuple(self.tensors),
            values=tuple(self.values),
            steps=tuple(self.steps),
        )

    def _value(self, name: str | None, shape: Sequence[int], history: bool, **facts: object) -> int:
        tensor = Tensor(len(self.tensors), name, tuple(shape), "float32", "cpu", **facts)  # type: ignore[arg-type]
        self.tensors.append(tensor)
        self.values.append(Value(len(self.values), tensor.id, history))
        return len(self.values) - 1
