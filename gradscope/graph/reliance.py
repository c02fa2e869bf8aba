"""Who waits for whose gradient: the steps of optimizers, a refused backward, the replicas of a model."""

from __future__ import annotations

from collections import defaultdict

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Tensor
from gradscope.graph.flow import StepFlow, data_of, flows, trains_nothing
from gradscope.graph.refusals import cleared_last, refused_pass
from gradscope.graph.replicas import waited_for
from gradscope.graph.successors import held_copies

# What torch and Python say where a gradient is asked for and there is no way for it.
REFUSALS = frozenset({"no graph", "no tensor to differentiate", "gradient is None", "non-leaf in optimizer"})


def unmet(ask: Ask) -> list[Tensor]:
    """Tensors that someone relies on and that never got a gradient.

    Who steps an optimizer relies on what it holds; who calls backward and is refused relies on what was to be
    trained, or, where no optimizer is, on the leaves that require grad. DDP relies on all that it holds in each step.
    Nobody relies on the gradient of what the program moves by hand after others that train: a target network or a
    codebook that is a part of the model is in `model.parameters()` as well. Nor on that of a place in the model which
    the program fills anew all the time, with parameters that never get any gradient either. Nor on that of a copy which
    an optimizer was given in place of what learns: there it is the other that is missing.
    """
    run = ask.run
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    refused = run.crash is not None and run.crash.symptom in ("no graph", "no tensor to differentiate")
    waited = ask(waited_for)
    appeal = ask(refused_pass) if refused else None
    # What does not lie behind the roots of the pass that was refused lacks nothing by that.
    behind = appeal.wanted if appeal is not None and appeal.leaves else None
    refilled, copies = ask(_refilled), ask(held_copies)
    found = []
    for tensor in run.tensors:
        if not (tensor.leaf and tensor.requires_grad) or tensor.name is None:
            continue
        if tensor.id in waited:
            found.append(tensor)
            continue
        missed = refused and (behind is None or tensor.id in behind)
        got = tensor.received is not None and tensor.received.steps > 0 and not only_returned(tensor)
        if (tensor.module, tensor.name) in refilled or tensor.id in copies:
            continue
        if tensor.optimizer is not None:
            relied = tensor.optimizer in stepped and tensor.received is not None and tensor.received.of > 0
            if not got and (relied or (missed and tensor.optimizer not in stepped)) and not _follows(ask, tensor):
                found.append(tensor)
        elif missed and not run.optimizers and not got and tensor.used:
            found.append(tensor)
    return found


def _refilled(ask: Ask) -> set[tuple[str | None, str | None]]:
    """Places in modules, by module and name, that get a new parameter in step after step, and never a gradient."""
    run = ask.run
    tensors = run.tensor_by_id
    holder = run.holder
    filled: dict[tuple[str | None, str | None], list[Tensor]] = defaultdict(list)
    for step in run.steps[1:]:
        for operation in step.operations:
            if operation.name == "nn.Parameter":
                made = [tensors[holder[value]] for value in operation.outputs]
                for tensor in made:
                    if tensor.registered == "parameter":
                        filled[tensor.module, tensor.name].append(tensor)
    return {
        place
        for place, made in filled.items()
        if len(made) > 1 and not any(tensor.received is not None and tensor.received.steps for tensor in made)
    }


def only_returned(tensor: Tensor) -> bool:
    """Whether all gradients of what an optimizer holds were returned by `autograd.grad`, and none was ever applied."""
    ledger, received = tensor.ledger, tensor.received
    if tensor.optimizer is None or ledger is None or received is None or not received.steps:
        return False
    unfed = ledger.starved > 0 and not (ledger.passes or ledger.applied or ledger.by_hand)
    return unfed and not tensor.supplied and tensor.change == 0


def _follows(ask: Ask, tensor: Tensor) -> bool:
    """Whether the program writes into a tensor, once training runs, what it computed from others that got gradients."""
    if not tensor.change:
        return False
    for flow in ask(flows)[1:]:  # what is written before are values to start from
        for operation in flow.operations:
            # `t.data = value` makes no new value by torch's count.
            if ops.is_a(operation, ops.SETS_DATA):
                made = set(operation.inputs[:1])
            else:
                made = set(operation.outputs).difference(operation.inputs)
            if not any(flow.holder[value] == tensor.id for value in made):
                continue
            written = [value for value in operation.inputs if flow.holder[value] != tensor.id]
            sources = map(flow.tensor, flow.behind(written, tensor.id))
            if any(source.leaf and source.received and source.received.steps for source in sources if source):
                return True
    return False


def frozen_out(ask: Ask) -> list[tuple[Tensor, StepFlow]]:
    """Parameters that an optimizer holds, frozen when a backward ran, or was refused, that was to train them.

    Where the optimizer that was cleared for a refused backward holds others behind it, which require grad, it was to
    train those: what a former optimizer has trained is frozen on purpose.
    """
    refused = ask(refused_pass)
    cleared = cleared_last(ask.run, refused.backward) if refused is not None else frozenset()
    others_wait = refused is not None and not cleared.isdisjoint(refused.leaves)
    found = []
    for flow in ask(flows):
        idle = [backward for backward in flow.step.backwards if trains_nothing(flow, backward)]
        ends = frozenset(root for backward in idle for root in backward.roots)
        if not ends:
            continue
        for tensor_id, starts in flow.values_of.items():
            tensor = flow.tensors[tensor_id]
            held = tensor.optimizer is not None and tensor.name is not None
            if others_wait and flow.step is ask.run.steps[-1] and tensor_id not in cleared:
                continue
            if held and not tensor.requires_grad and _would_carry(flow, starts, ends):
                found.append((tensor, flow))
    return found


def _would_carry(flow: StepFlow, starts: list[int], ends: frozenset[int]) -> bool:
    """Whether a gradient would come back to these values if they required one."""
    carrying = set(starts)
    for operation in flow.operations:
        if not ops.ends_history(operation) and not carrying.isdisjoint(data_of(operation)):
            carrying.update(operation.outputs)
    return not carrying.isdisjoint(ends)
