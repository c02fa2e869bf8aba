"""Where an input and the result that is to be differentiated with respect to it part."""

from __future__ import annotations

from typing import NamedTuple

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Operation, Tensor
from gradscope.graph.flow import StepFlow, data_of
from gradscope.graph.naming import argument_names
from gradscope.graph.refusals import Refused, refused_pass


class Parting(NamedTuple):
    """An input that has no part in what `autograd.grad` was to differentiate.

    `maker` made the input, `dead_end` is the last operation that computed with it, and `rival` takes, on the way to the
    result, what the input, or what was computed from it, should have stood for; None where there is no such operation.
    """

    flow: StepFlow
    call: Operation
    tensor: Tensor
    name: str | None
    maker: Operation | None
    dead_end: Operation | None
    rival: Operation | None


def partings(ask: Ask) -> list[Parting]:
    """The inputs of the refused `autograd.grad` from which no data leads to the result."""
    refused = ask(refused_pass)
    if refused is None or not refused.is_rooted:
        return []
    flow = refused.flow
    call = next((op for op in reversed(flow.operations) if op.failed and op.name == "autograd.grad"), None)
    if call is None:
        return []
    names = argument_names(call.span, "inputs", 1, ask.run.sources) if call.span is not None else []
    told = names if len(names) == len(refused.asked) else [None] * len(refused.asked)
    return [
        _parting(refused, call, value, name)
        for value, name in zip(refused.asked, told, strict=True)
        if flow.holder[value] not in {flow.holder[known] for known in flow.behind_roots}
    ]


def _parting(refused: Refused, call: Operation, value: int, name: str | None) -> Parting:
    flow = refused.flow
    tensor = flow.tensors[flow.holder[value]]
    touched, dead_end, beside = {value}, None, set[int]()
    for operation in flow.operations:
        data = data_of(operation)
        if operation is not call and operation.outputs and not touched.isdisjoint(data):
            made = [given for given in operation.outputs if given not in operation.inputs]
            touched.update(made)
            beside = {other for other in data if other not in touched and flow.history[other]}
            dead_end = operation if made else dead_end
    maker = flow.maker.get(value)
    if dead_end is None and maker is not None:
        beside = set(data_of(maker))
    since = dead_end or maker
    rival = next(
        (
            operation
            for operation in flow.operations
            if since is not None
            and (dead_end is None or operation.id > since.id)
            and operation is not since
            and not beside.isdisjoint(data_of(operation))
            and not flow.behind_roots.isdisjoint(operation.outputs)
        ),
        None,
    )
    return Parting(flow, call, tensor, tensor.name or name, maker, dead_end, rival)
