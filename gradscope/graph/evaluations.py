"""Where dropout and batch norm run in training mode though nobody trains: in an evaluation, or in a frozen teacher."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Literal, NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Operation, Run, Span, Tensor
from gradscope.graph.flow import StepFlow, data_of, flows
from gradscope.graph.sums import is_uniform


class Unmoded(NamedTuple):
    """An operation that ran in training mode, in the part `path` of the program's modules, and the line of the call."""

    flow: StepFlow
    operation: Operation
    kind: Literal["evaluation", "teacher"]
    module: str
    path: str
    call: Span | None


def unmoded(ask: Ask) -> list[Unmoded]:
    """What ran in training mode outside of training."""
    modules = {call.value: call.module for call in ask.run.training_calls}
    found = []
    for flow in ask(flows) if modules else ():
        ran = [
            operation
            for operation in flow.operations
            if operation.inputs and operation.inputs[0] in modules and ops.is_a(operation, ops.MODED)
        ]
        repeated = _repeated(flow, ran)
        for operation in ran:
            module = modules[operation.inputs[0]]
            if operation.outputs and module not in repeated:
                one = _unmoded(flow, operation, module)
                if one is not None:
                    found.append(one)
    return found


def _unmoded(flow: StepFlow, operation: Operation, module: str) -> Unmoded | None:
    path = _frozen_around(flow, module)
    touched = _touched(flow, operation)
    if path is not None:
        if _is_target(flow, touched):
            return Unmoded(flow, operation, "teacher", module, path, _call(flow, touched))
        return None
    root = module.partition(".")[0]
    if operation.grad_enabled or not _is_trained(flow.run, root) or not flow.behind_roots.isdisjoint(touched):
        return None
    return (
        Unmoded(flow, operation, "evaluation", module, root, _call(flow, touched))
        if _is_scored(flow, touched)
        else None
    )


def _repeated(flow: StepFlow, ran: list[Operation]) -> set[str]:
    """Modules that run again and again on the same data, as for Monte Carlo dropout."""
    data: dict[str, Counter[frozenset[int]]] = defaultdict(Counter)
    for operation in ran:
        sources = frozenset(
            value
            for value in flow.behind(operation.inputs[:1])
            if value not in flow.maker and (tensor := flow.tensor(value)) and tensor.registered is None
        )
        data[operation.module or ""][sources] += 1
    return {module for module, counts in data.items() if any(count > 1 for count in counts.values())}


def _touched(flow: StepFlow, operation: Operation) -> set[int]:
    """What was computed from the results of an operation, for as long as it has no history."""
    touched = set(operation.outputs)
    for later in flow.operations:
        if later.id > operation.id and not touched.isdisjoint(data_of(later)):
            touched.update(value for value in later.outputs if not flow.history[value])
    return touched


def parameters_in(run: Run, path: str) -> list[Tensor]:
    """The parameters of a module and of its parts."""
    return [tensor for tensor in run.tensors if tensor.registered == "parameter" and is_part(tensor, path)]


def is_part(tensor: Tensor, path: str) -> bool:
    """Whether a tensor belongs to a module."""
    name, label = tensor.name or "", tensor.module or ""
    full = name if name.startswith(f"{label}.") else f"{label}.{name}"
    return full.startswith(f"{path}.")


def _frozen_around(flow: StepFlow, module: str) -> str | None:
    """The outermost module around another one that nobody trains by now, nor moves by hand after what learns."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        inside = parameters_in(flow.run, path)
        if not inside or any(_is_in_training(tensor, flow.step.index) for tensor in inside):
            continue
        followers = any(not _got(tensor) and (tensor.change or _is_written(flow.run, tensor)) for tensor in inside)
        return None if followers else path
    return None


def _is_written(run: Run, tensor: Tensor) -> bool:
    """Whether a value is written into a tensor once training runs, as averages of what is trained are."""
    return any(
        run.holder[value] == tensor.id
        for step in run.steps[1:]
        for operation in step.operations
        for value in operation.outputs
    )


def _is_in_training(tensor: Tensor, step: int) -> bool:
    ledger = tensor.ledger
    return tensor.requires_grad and ledger is not None and ledger.passes > 0 and ledger.last >= step


def _got(tensor: Tensor) -> bool:
    return tensor.received is not None and tensor.received.steps > 0


def _is_trained(run: Run, root: str) -> bool:
    return any(tensor.optimizer is not None and _got(tensor) for tensor in parameters_in(run, root))


def _is_target(flow: StepFlow, touched: set[int]) -> bool:
    """Whether values are compared with a prediction, rather than given to layers that are trained."""
    for operation in flow.operations:
        taken = [value for value in operation.inputs if flow.history[value]]
        if not taken or touched.isdisjoint(data_of(operation)) or flow.behind_roots.isdisjoint(operation.outputs):
            continue
        if not any((tensor := flow.tensor(value)) is not None and tensor.leaf for value in taken):
            return True
    return False


def _is_scored(flow: StepFlow, touched: set[int]) -> bool:
    """Whether results are compared with other data, and what comes of it is read, as a loss or an accuracy."""
    scores: set[int] = set()
    for operation in flow.operations:
        if not scores.isdisjoint(operation.inputs):
            if not operation.outputs and ops.is_a(operation, ops.EXITS | ops.READS):
                return True
            scores.update(operation.outputs)
        elif ops.is_a(operation, ops.SCORES) and not touched.isdisjoint(operation.inputs):
            others = [value for value in operation.inputs if value not in touched]
            if any(not _is_held(flow, value) and not is_uniform(flow, value) for value in others):
                scores.update(operation.outputs)
    return False


def _is_held(flow: StepFlow, value: int) -> bool:
    tensor = flow.tensor(value)
    return tensor is None or tensor.registered is not None or tensor.requires_grad or tensor.is_scalar


def _call(flow: StepFlow, touched: set[int]) -> Span | None:
    """The line that called the module, outside of all others, where no gradient was kept."""
    holders = {flow.holder[value] for value in touched}
    return next((call.span for call in flow.step.calls if call.outputs and holders.issuperset(call.outputs)), None)
