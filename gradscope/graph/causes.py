"""Cuts: operations at which a gradient is lost, and which rule explains one."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from gradscope.graph import ops
from gradscope.graph.facts import Operation, Severity, Tensor
from gradscope.graph.flow import StepFlow

Cause = Literal["detach", "no-grad", "rebuilt-tensor", "left-torch", "missing-create-graph", "non-differentiable-op"]


@dataclass(frozen=True, slots=True)
class Cut:
    """The gradient of some tensors ends at one operation of one step.

    `came_back` is where the value entered torch again, for an operation that gave it out of torch. `term` is set
    where only a summand of the loss has no gradient while the tensors learn from others. `further` are operations
    behind it that would end the gradient once more, where no way leads round them.
    """

    cause: Cause
    operation: Operation
    flow: StepFlow
    tensors: tuple[Tensor, ...]
    severity: Severity
    term: bool = False
    others: tuple[Operation, ...] = ()
    came_back: Operation | None = None
    further: tuple[Operation, ...] = ()


def cause_of(flow: StepFlow, cut: Operation) -> Cause:
    """Which rule explains a cut: told from what kind of operation it is and whether grad mode was on."""
    if ops.is_a(cut, ops.GRADIENTS):
        return "missing-create-graph"
    if ops.is_a(cut, ops.DETACHES):
        return "rebuilt-tensor" if _is_copied_by_a_library(flow, cut) else "detach"
    if ops.is_a(cut, ops.REBUILDS, ops.SETS_DATA) or _fills_a_leaf(flow, cut):
        return "rebuilt-tensor"
    if cut.id in flow.outer:
        return "no-grad"  # a custom Function runs its forward with grad mode off, and nothing given to it requires grad
    if not cut.grad_enabled:
        switch = grad_mode_switch(flow, cut)
        # A library function that turns grad mode off itself is what cannot be differentiated.
        own = switch is not None and switch.span == cut.span and "decorator" not in switch.name
        return "non-differentiable-op" if own else "no-grad"
    return "non-differentiable-op"


def _is_copied_by_a_library(flow: StepFlow, cut: Operation) -> bool:
    """Whether one call of the user's detached and made a new parameter of it: `copy.deepcopy(module)`."""
    return any(
        operation.name == "nn.Parameter" and operation.span == cut.span and operation.id > cut.id
        for operation in flow.operations
    )


def _fills_a_leaf(flow: StepFlow, cut: Operation) -> bool:
    """Whether the operation writes into a leaf that will get the gradient in place of what was written."""
    taken = {flow.holder[value] for value in cut.inputs}
    for value in cut.outputs:
        if flow.holder[value] in taken and value not in cut.inputs:
            target = flow.tensor(value)
            if target is not None and target.leaf and ops.is_a(cut, ops.WRITES_A_LEAF):
                return True
    return False


def grad_mode_switch(flow: StepFlow, operation: Operation) -> Operation | None:
    """What turned grad mode off for an operation; None where it lies before the steps that are kept."""
    at = bisect_left(flow.grad_mode, operation.id, key=lambda change: change[0])
    return flow.grad_mode[at - 1][1] if at else None
