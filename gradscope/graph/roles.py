"""The role that each tensor plays, read from the facts."""

from __future__ import annotations

from typing import Literal

from gradscope.graph.facts import Run, Tensor

Role = Literal["parameter", "buffer", "constant", "input", "intermediate", "output"]


def role(tensor: Tensor) -> Role:
    """The role of one tensor.

    A parameter is an `nn.Parameter` or any leaf that an optimizer holds, frozen or not. A non-leaf is an
    output where backward started from it or nothing consumed it, and an intermediate otherwise.
    """
    if not tensor.leaf:
        return "output" if tensor.differentiated or not tensor.consumed else "intermediate"
    if tensor.nn_parameter or tensor.optimizer is not None:
        return "parameter"
    if tensor.registered == "buffer":
        return "buffer"
    return "input" if tensor.requires_grad else "constant"


def roles(run: Run) -> dict[int, Role]:
    """The role of every tensor of a run, by the tensor's id."""
    return {tensor.id: role(tensor) for tensor in run.tensors}
