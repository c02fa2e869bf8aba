"""What torch refused: the call or the backward with which the script crashed, as the record shows it."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Backward, Crash, Operation, Symptom
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
