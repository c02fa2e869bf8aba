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
    """The call with which the script crashed, if the crash is one of these: the latest operation, and it failed."""
    crash = ask.run.crash
    if crash is None or crash.symptom not in symptoms:
        return None
    for flow in reversed(ask(flows)):
        if flow.operations:
            last = flow.operations[-1]
            return Refusal(flow, last, crash) if last.failed else None
    return None


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
