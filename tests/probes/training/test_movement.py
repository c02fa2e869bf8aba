"""How far single steps move tensors, and which they move though nothing asked them to."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Ledger
from tests.workshop import Workshop, named

PROGRAM = """
import torch
w = torch.ones(4, requires_grad=True)
v = torch.ones(4, requires_grad=True)
optimizer = torch.optim.{optimizer}
for i in range({steps}):
    optimizer.zero_grad()
    (w * 2 + v * 2).sum().backward()
    {line}
    optimizer.step()
"""


def ledger(workshop: Workshop, optimizer: str, line: str = "pass", steps: int = 8) -> Ledger:
    """The account of `w` after steps of an optimizer."""
    found = named(workshop.run(PROGRAM.format(optimizer=optimizer, line=line, steps=steps)), "w").ledger
    assert found is not None
    return found


def test_first_steps_and_every_eighth_are_looked_at(workshop: Workshop) -> None:
    """The first 8 steps are looked at, then one in 8."""
    assert ledger(workshop, "SGD([w], lr=0.001)", steps=8).stirred == 8
    assert ledger(workshop, "SGD([w], lr=0.001)", steps=24).stirred == 10


def test_updates_are_relative(workshop: Workshop) -> None:
    """An update is |update| / |value|: here 0.02 / 1, then 0.02 / 0.98."""
    found = ledger(workshop, "SGD([w, v], lr=0.01)", steps=2)
    assert found.updates == (pytest.approx(0.02, rel=1e-4), pytest.approx(0.02 / 0.98, rel=1e-4))
    assert (found.rate, found.rate_zero, found.still) == (0.01, 0, 0)


def test_steps_without_effect_are_still(workshop: Workshop) -> None:
    """At rate 0, and below the precision of the type, values stay as they are to the last bit."""
    zero = ledger(workshop, "SGD([w], lr=0.0)")
    assert (zero.still, zero.stirred, zero.rate, zero.rate_zero) == (8, 0, 0.0, 8)
    small = ledger(workshop, "SGD([w], lr=1e-9)")
    assert (small.still, small.stirred, small.rate_zero) == (8, 0, 0)


def test_rate_of_each_group(workshop: Workshop) -> None:
    """The rate is that of the tensor's own group."""
    found = ledger(workshop, "SGD([{'params': [w], 'lr': 0.0}, {'params': [v]}], lr=0.1)")
    assert (found.rate, found.still) == (0.0, 8)


def test_frozen_tensors_that_move_are_counted(workshop: Workshop) -> None:
    """What is frozen with a gradient left moves in every step after, and the line that froze it is kept."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(4, requires_grad=True)
        v = torch.ones(4, requires_grad=True)
        optimizer = torch.optim.SGD([w, v], lr=0.01, momentum=0.9)
        for i in range(8):
            if i == 3:
                w.requires_grad_(False)
            optimizer.zero_grad(set_to_none=False)
            (w * 2 + v * 2).sum().backward()
            optimizer.step()
        """
    )
    moving, other = named(run, "w").ledger, named(run, "v").ledger
    assert moving is not None
    assert other is not None
    assert (moving.moved_frozen, other.moved_frozen) == (5, 0)
    assert moving.frozen is not None
    assert moving.frozen.line == 7


def test_masked_elements_that_move_are_counted(workshop: Workshop) -> None:
    """Weight decay moves elements whose gradient was set to zero; plain SGD does not."""
    mask = "w.grad[:2] = 0"
    assert ledger(workshop, "SGD([w, v], lr=0.01, weight_decay=0.1)", mask).masked == 8
    assert ledger(workshop, "SGD([w, v], lr=0.01)", mask).masked == 0
    assert ledger(workshop, "SGD([w, v], lr=0.01, weight_decay=0.1)").masked == 0
