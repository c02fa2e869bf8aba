"""What runs inside the closure of an optimizer's step."""

from __future__ import annotations

from tests.workshop import Workshop, named, operations


def test_library_code_in_a_closure_is_recorded(workshop: Workshop) -> None:
    """Trainers run a whole step in a closure of their own: its operations are not the optimizer's doing."""
    run = workshop.run(
        """
        import functools
        import torch
        net = torch.nn.Linear(3, 1)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = net(torch.rand(4, 3)).mean()
            loss.backward()
            optimizer.step(functools.partial(torch.nn.functional.mse_loss, loss.detach(), torch.zeros(())))
        """
    )
    names = [operation.name for operation in operations(run)]
    (first, second) = [operation for operation in operations(run) if operation.name == "nn.functional.mse_loss"]
    assert first.span is not None
    assert (first.span, first.span.line) == (second.span, 9)
    assert "addcdiv_" not in names  # what Adam computes itself


def test_backward_in_a_closure_has_a_place(workshop: Workshop) -> None:
    """A backward that a library calls in a closure lies on the line that called the optimizer."""
    run = workshop.run(
        """
        import functools
        import torch
        w = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step(functools.partial(torch.autograd.backward, (w * w).sum()))
        """
    )
    assert [backward.span.line for step in run.steps for backward in step.backwards if backward.span] == [7, 7, 7]
    received = named(run, "w").received
    assert received is not None
    assert (received.steps, received.of) == (3, 3)
