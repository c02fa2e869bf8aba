"""Graphs that lead from step to step: how many links, since when, at which line."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Growth
from tests.workshop import Workshop, named

HEAD = """
import torch
w = torch.ones(3, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.01)
total, kept, net = torch.zeros(()), [], torch.nn.Linear(3, 3)
"""
STEP = """
    loss = (w * torch.rand(3)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def growths(workshop: Workshop, line: str, steps: int = 20) -> tuple[Growth, ...]:
    """What grows where a line ends each step."""
    return workshop.run(f"{HEAD}for i in range({steps}):{STEP}    {line}\n").growths


def test_carried_value_has_a_link_a_step(workshop: Workshop) -> None:
    """A sum that is carried on leads through one more step each time; its line and steps are told."""
    for steps in (10, 20):
        (growth,) = growths(workshop, "total = total + (w * i).sum()", steps)
        assert growth.kind == "steps"
        assert growth.span.line == 10
        assert growth.count == steps - 1
        assert growth.since < growth.until
        assert growth.trained == 0


def test_reused_and_detached_values_do_not_grow(workshop: Workshop) -> None:
    """A value made once, a detached one and a number have no growing graph, however long the run."""
    assert growths(workshop, "total = total + loss.detach()") == ()
    assert growths(workshop, "total = total + loss.item()") == ()
    assert growths(workshop, "total = (w * i).sum() if i == 0 else total\n    x = total * 2") == ()


def test_kept_results_are_counted(workshop: Workshop) -> None:
    """Results of ever more steps that are alive are counted now and then, by the line that made them."""
    (growth,) = growths(workshop, "kept.append(w * i)")
    assert growth.kind == "kept"
    assert growth.span.line == 10
    assert 6 <= growth.count <= 20
    assert growth.since in (1, 2)


def test_bounded_and_detached_results_are_not_counted(workshop: Workshop) -> None:
    """A list that is cut, and one of detached results, is no growth."""
    assert growths(workshop, "kept = [*kept[-3:], w * i]") == ()
    assert growths(workshop, "kept.append((w * i).detach())") == ()
    assert growths(workshop, "with torch.no_grad(): kept.append(w * i)") == ()


def test_state_carried_through_calls(workshop: Workshop) -> None:
    """From call to call of a module within one step the links are calls; a backward through them is remembered."""
    source = """
        import torch
        cell = torch.nn.GRUCell(2, 3)
        h = torch.zeros(1, 3)
        for _ in range(20):
            h = cell(torch.rand(1, 2), h)
        {end}
    """
    (growth,) = workshop.run(source.format(end="pass")).growths
    assert (growth.kind, growth.span.line, growth.count, growth.trained) == ("calls", 5, 19, 0)
    trained = workshop.run(source.format(end="h.sum().backward()")).growths[0]
    assert (trained.kind, trained.span.line, trained.count) == ("calls", 5, 19)
    assert trained.trained >= 19


@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_that_hold_their_graph(workshop: Workshop) -> None:
    """Leaves kept alive by gradients with a graph are a cycle, told at the backward that left them."""
    run = workshop.run(
        f"{HEAD}for i in range(14):\n    x = torch.rand(3, requires_grad=True)\n"
        "    (x * x * w).sum().backward(create_graph=True)\n    optimizer.step()\n    w.grad = None\n"
    )
    cycles = [growth for growth in run.growths if growth.kind == "cycle"]
    assert [growth.span.line for growth in cycles] == [7]
    assert named(run, "w").id not in [growth.tensor for growth in cycles]
