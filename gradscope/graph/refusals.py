"""What torch refused: the call or the backward with which the script crashed, as the record shows it."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Backward, Crash, Operation, Run, Symptom, Tensor
from gradscope.graph.flow import StepFlow, flows


class Refusal(NamedTuple):
    """A call that torch refused, the flow of its step, and the exception."""

    flow: StepFlow
    operation: Operation
    crash: Crash


def refused_call(ask: Ask, *symptoms: Symptom) -> Refusal | None:
    """The call with which the script crashed, if the crash is one of these.

    Where it is not known to be what raised, it must be the latest operation, and have failed.
    """
    crash = ask.run.crash
    if crash is None or crash.symptom not in symptoms:
        return None
    for flow in reversed(ask(flows)):
        if crash.call is not None:
            called = (operation for operation in flow.operations if operation.id == crash.call.operation)
            if (operation := next(called, None)) is not None:
                return Refusal(flow, operation, crash)
        elif flow.operations:
            last = flow.operations[-1]
            return Refusal(flow, last, crash) if last.failed else None
    return None


def refused_operands(ask: Ask, *symptoms: Symptom) -> Refusal | None:
    """The same where the exception's words are common ones: only the very call that raised it will do."""
    crash = ask.run.crash
    return refused_call(ask, *symptoms) if crash is not None and crash.call is not None else None


class RefusedBackward(NamedTuple):
    """A backward that torch refused, and the exception."""

    backward: Backward
    crash: Crash


def refused_backward(ask: Ask, *symptoms: Symptom) -> RefusedBackward | None:
    """The backward with which the script crashed, if the crash is one of these."""
    crash = ask.run.crash
    if crash is None or crash.symptom not in symptoms:
        return None
    backwards = [backward for step in ask.run.steps for backward in step.backwards]
    return RefusedBackward(backwards[-1], crash) if backwards and backwards[-1].failed else None


class Refused(NamedTuple):
    """A pass that torch refused for want of a way, and the data flow to its own roots.

    `asked` are the values that `autograd.grad` was to differentiate with respect to; none for `backward`. `leaves`
    are what requires grad and has a part in computing the roots, by their ids; none where no way of data leads from
    what was to be trained to the roots.
    """

    flow: StepFlow
    backward: Backward
    asked: tuple[int, ...]
    leaves: frozenset[int]

    @property
    def is_rooted(self) -> bool:
        """Whether the roots have a history: what lacks is a way from what was asked for."""
        return any(self.flow.history[root] for root in self.backward.roots)

    @property
    def wanted(self) -> frozenset[int]:
        """The tensors that lack their gradient by it."""
        return frozenset(self.flow.holder[value] for value in self.asked) if self.is_rooted else self.leaves


def refused_pass(ask: Ask) -> Refused | None:
    """The pass with which the script crashed since the roots have no way back, if it did.

    What lies behind its roots may have been computed in steps before its own. Where nothing does, it has left torch,
    and the flow is that of the step alone.
    """
    refused = refused_backward(ask, "no graph")
    if refused is None or not refused.backward.roots:
        return None
    steps = ask.run.steps
    since = next((at for at in reversed(range(1, len(steps))) if steps[at].index != steps[at - 1].index + 1), 0)
    last = next(at for at in reversed(range(len(steps))) if steps[at].backwards)
    cleared = cleared_last(ask.run, refused.backward)
    for first in (last, since, last):
        found = _appeal(StepFlow(ask.run, *steps[first : last + 1], roots=refused.backward.roots), refused.backward)
        if cleared and cleared.isdisjoint(found.leaves):
            found = found._replace(leaves=frozenset())  # what was to be trained is nowhere behind the roots
        if found.leaves:
            break
    return found


def _appeal(flow: StepFlow, backward: Backward) -> Refused:
    call = next((op for op in reversed(flow.operations) if op.failed and op.name == "autograd.grad"), None)
    asked = () if call is None else tuple(v for v in call.inputs if v not in backward.roots)
    behind = {flow.holder[value] for value in flow.behind_roots}
    return Refused(flow, backward, asked, frozenset(n for n in behind if _is_trainable(flow.tensors.get(n))))


def cleared_last(run: Run, backward: Backward) -> frozenset[int]:
    """What the optimizer holds that was cleared for this backward: its line is the nearest above, in one function.

    A line that trains in turn with one optimizer after another has the new one at work before its first step.
    """
    span = backward.span
    above = [
        (optimizer.cleared.line, optimizer)
        for optimizer in run.optimizers
        if span is not None
        and optimizer.cleared is not None
        and (optimizer.cleared.file, optimizer.cleared.function) == (span.file, span.function)
        and optimizer.cleared.line <= span.line
    ]
    nearest = max((line for line, _ in above), default=0)
    at_work = [optimizer for line, optimizer in above if line == nearest]
    if at_work and not at_work[-1].steps:
        latest = at_work[-1]
        at_work = [other for other in at_work if other is latest or other.made != latest.made or not other.steps]
    return frozenset(tensor for optimizer in at_work for tensor in optimizer.tensors)


def _is_trainable(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.leaf and tensor.requires_grad and tensor.name is not None
