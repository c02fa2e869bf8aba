"""What DistributedDataParallel waits for: every parameter, in every backward, on every rank."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Label, Run, Step, Tensor
from gradscope.graph.flow import StepFlow

REPLICA = "DistributedDataParallel"


def waited_for(ask: Ask) -> dict[int, StepFlow]:
    """The parameters without which DDP refused the next forward, by id, with the step that did not reach them.

    DDP averages gradients as they arrive. One that does not arrive shows in the next forward only: there torch raises.
    """
    run = ask.run
    if run.crash is None or run.crash.symptom != "unfinished reduction":
        return {}
    paths = [module.path for module in run.modules if module.type == REPLICA]
    last = next((step for step in reversed(run.steps) if _passes(step)), None)
    if last is None:
        return {}
    arrived = {tensor for backward in last.backwards for tensor in backward.arrivals}
    flow = StepFlow(run, last)
    return {
        tensor.id: flow
        for tensor in run.tensors
        if tensor.registered == "parameter"
        and tensor.requires_grad
        and tensor.name is not None
        and tensor.id not in arrived
        and any(lies_in(tensor, path) for path in paths)
    }


def replica_note(run: Run, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """What DDP is going to make of parameters that no backward reaches, said before it does."""
    paths = [module.path for module in run.modules if module.awaits_all]
    if not any(lies_in(tensor, path) for tensor in tensors for path in paths):
        return ()
    return (f"note: {REPLICA} raises in the next forward: `find_unused_parameters` is off",)


def _passes(step: Step) -> bool:
    return any(backward.kind == "backward" and not backward.failed for backward in step.backwards)


def lies_in(tensor: Tensor, path: str) -> bool:
    """Whether a tensor belongs to the module at a path."""
    name = tensor.name or ""
    full = name if tensor.module is None or name.startswith(f"{tensor.module}.") else f"{tensor.module}.{name}"
    return full.startswith(f"{path}.")


def refusal_label(run: Run) -> tuple[Label, ...]:
    """Where DDP raised, one step after the cause."""
    crash = run.crash
    if crash is None or crash.span is None or crash.symptom != "unfinished reduction":
        return ()
    return (Label(crash.span, f"so {REPLICA} raises {crash.type} here, in the next forward"),)
