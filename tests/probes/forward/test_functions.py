"""Custom autograd Functions, `nn.Parameter` and `Variable`, which pass torch's function modes by."""

from __future__ import annotations

import pytest
import torch

from tests.workshop import Workshop, named, operations

FUNCTION = """
    import torch

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x.abs() * factor

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.factor, None

    w = torch.ones(3, requires_grad=True)
    y = Scaled.apply(w, 2.0)
    loss = y.sum()
    loss.backward()
"""


def test_a_custom_function_is_one_operation(workshop: Workshop) -> None:
    """`Function.apply` is an operation from its inputs to its outputs, by the user's line."""
    run = workshop.run(FUNCTION)
    (applied,) = [operation for operation in operations(run) if operation.name == "Scaled"]
    tensors = {value.id: value.tensor for value in run.values}
    assert tensors[applied.inputs[0]] == named(run, "w").id
    assert [tensors[value] for value in applied.outputs] == [named(run, "y").id]
    assert applied.span is not None
    assert (applied.span.line, applied.span.column, applied.span.end_column) == (14, 5, 25)
    history = {value.id: value.history for value in run.values}
    assert history[applied.outputs[0]]


def test_the_inside_of_a_function_belongs_to_it(workshop: Workshop) -> None:
    """Operations of a Function's forward carry its id in `within`; those outside carry none."""
    run = workshop.run(FUNCTION)
    (applied,) = [operation for operation in operations(run) if operation.name == "Scaled"]
    within = {operation.name: operation.within for operation in operations(run)}
    assert (within["Tensor.abs"], within["Tensor.mul"], within["Tensor.sum"]) == (applied.id, applied.id, None)


def test_the_node_of_a_function_is_custom(workshop: Workshop) -> None:
    """The node of a custom Function is named for it, marked, and knows its operation."""
    run = workshop.run(FUNCTION)
    (applied,) = [operation for operation in operations(run) if operation.name == "Scaled"]
    (node,) = [node for node in run.steps[0].backwards[0].nodes if node.custom]
    assert (node.name, node.operation) == ("ScaledBackward", applied.id)


@pytest.mark.parametrize("call", ["nn.Parameter(w * 2)", "Variable(w * 2, requires_grad=True)"])
def test_a_leaf_made_from_a_tensor_is_an_operation(workshop: Workshop, call: str) -> None:
    """`nn.Parameter(t)` is recorded: its result has history of its own, and that of `t` ends there."""
    run = workshop.run(
        f"""
        import torch; from torch import nn; from torch.autograd import Variable
        w = torch.ones(3, requires_grad=True)
        rebuilt = {call}
        loss = rebuilt.sum()
        loss.backward()
        """
    )
    assert "__new__" not in vars(torch.autograd.Variable)
    (made,) = [operation for operation in operations(run) if operation.name == call.partition("(")[0]]
    (product,) = [operation for operation in operations(run) if operation.name == "Tensor.mul"]
    assert made.inputs == product.outputs
    tensors = {value.id: value.tensor for value in run.values}
    assert tensors[made.outputs[0]] == named(run, "rebuilt").id
    assert made.span is not None
    assert (made.span.line, made.span.column) == (3, 11)
    assert named(run, "w").predicted is False
    assert named(run, "rebuilt").predicted is True
