"""What the program does with `.grad`: reads, computes, clears, replaces, masks."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Ledger, Received
from tests.workshop import Workshop, named

PROGRAM = """
import torch
w = torch.ones(4, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)
for _ in range(4):
    optimizer.zero_grad()
    (w * 2).sum().backward()
    {line}
    optimizer.step()
"""


def ledger(workshop: Workshop, line: str) -> Ledger:
    """The account of a leaf whose gradient a line works on between backward and step."""
    found = named(workshop.run(PROGRAM.format(line=line)), "w").ledger
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("line", "uses"),
    [
        ("g = w.grad * 2", 4),
        ("g = w.grad.detach() + 1", 4),
        ("g = w.grad.clone()", 4),
        ("g = torch.sign(w.grad)", 4),
        ("n = w.grad.norm()", 0),
        ("n = w.grad.abs_().max()", 0),
        ("n = torch.linalg.vector_norm(w.grad)", 0),
        ("n = w.grad is None", 0),
        ("w.grad.mul_(0.5)", 0),
        ("n = w.grad.shape", 0),
    ],
)
def test_computing_with_a_gradient_is_told_from_looking(line: str, uses: int, workshop: Workshop) -> None:
    """What makes something as large as the gradient uses it; what reads a number off it, or scales it, does not."""
    found = ledger(workshop, line)
    assert found.by_hand == uses
    assert (found.applied, found.starved) == (4, 0)


@pytest.mark.parametrize(
    "line",
    [
        "w.grad[:2] = 0",
        "w.grad.mul_(torch.tensor([1.0, 0.0, 1.0, 0.0]))",
        "w.grad *= torch.arange(4) > 1",
        "w.grad.masked_fill_(torch.arange(4) > 1, 0.0)",
    ],
)
def test_masks_are_seen(line: str, workshop: Workshop) -> None:
    """An edit that sets elements of a gradient to zero is a mask, and its line is kept."""
    found = ledger(workshop, line)
    assert found.masked_at is not None
    assert found.masked_at.line == 7
    assert found.applied == 4


@pytest.mark.parametrize("line", ["w.grad.mul_(0.5)", "w.grad.clamp_(-1, 1)", "w.grad += 0.1", "w.grad[:2] = 5"])
def test_other_edits_are_no_masks(line: str, workshop: Workshop) -> None:
    """Scaling, clipping and adding leave no line of a mask."""
    found = ledger(workshop, line)
    assert found.masked_at is None
    assert found.applied == 4


@pytest.mark.parametrize(
    "line", ["w.grad = None", "w.grad.zero_()", "w.grad.data.zero_()", "torch._foreach_zero_([w.grad])"]
)
def test_clears_are_seen_with_their_line(line: str, workshop: Workshop) -> None:
    """However the program clears a gradient itself, the line is kept and the step is left without."""
    found = ledger(workshop, line)
    assert (found.cleared_first, found.starved, found.applied) == (4, 4, 0)
    assert found.cleared is not None
    assert found.cleared.line == 7
    assert not found.swept


def test_replaced_gradient_is_a_new_one(workshop: Workshop) -> None:
    """`.grad = value` uses what was there, and the next step applies what was written."""
    found = ledger(workshop, "w.grad = w.grad.sign()")
    assert (found.applied, found.starved, found.cleared_first) == (4, 0, 0)
    assert found.by_hand >= 4


def test_update_by_assigning_data_applies(workshop: Workshop) -> None:
    """`w.data = w.data - lr * w.grad` is an update by hand, though torch counts no change."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(4, requires_grad=True)
        for _ in range(3):
            (w * 2).sum().backward()
            w.data = w.data - 0.1 * w.grad
            w.grad = None
        """
    )
    found = named(run, "w").ledger
    assert found is not None
    assert (found.applied, found.piled) == (3, 0)


def test_inputs_that_live_within_a_step(workshop: Workshop) -> None:
    """A gradient that arrived at an input counts, though the input is gone before the step ends."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4)
            delta = torch.zeros(8, 4, requires_grad=True)
            (slope,) = torch.autograd.grad(net(x + delta).square().sum(), delta)
            delta = 0.1 * slope.sign()
            loss = net(x + delta).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    inputs = [tensor for tensor in run.tensors if tensor.name == "delta" and tensor.requires_grad]
    assert inputs
    assert all(tensor.received is not None for tensor in inputs)
    assert {(tensor.received.steps, tensor.received.of) for tensor in inputs if tensor.received} == {(1, 1)}


def test_an_optimizer_that_never_steps_beside_one_that_does(workshop: Workshop) -> None:
    """Gradients of what the idle one holds are counted by passes, as where nothing steps at all."""
    run = workshop.run(
        """
        import torch
        a, b = (torch.ones(4, requires_grad=True) for _ in range(2))
        steps, idles = (torch.optim.SGD([w], lr=0.1) for w in (a, b))
        for _ in range(4):
            steps.zero_grad()
            (a * b).sum().backward()
            steps.step()
        """
    )
    assert named(run, "b").received == Received(4, 4)
    assert named(run, "b").gradient_norms == named(run, "b").gradient_norms[:1] != ()


@pytest.mark.parametrize(
    ("root", "name"),
    [("loss", "loss"), ("scale(loss)", "scaled loss"), ("(loss / 4)", "scaled loss"), ("(loss + 1)", "loss + 1")],
)
def test_name_of_the_loss(root: str, name: str, workshop: Workshop) -> None:
    """What a scaler makes of the loss is not called the loss."""
    run = workshop.run(
        f"""
        import torch

        def scale(value):
            return value * 1024.0

        w = torch.ones(4, requires_grad=True)
        loss = (w * 2).sum()
        {root}.backward()
        """
    )
    assert run.losses[0].name == name
