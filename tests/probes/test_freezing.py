"""What is counted over a whole run, in the facts of it."""

from __future__ import annotations

import json

import pytest

from gradscope.graph.facts import Run
from gradscope.graph.storage import decode, encode
from gradscope.reports.report import Report
from tests.workshop import Workshop

PROGRAM = """
import torch
w = torch.full((1,), 8.0, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.25)
for step in range({steps}):
    optimizer.zero_grad()
    {backward}
    optimizer.step()
"""


def run_of(workshop: Workshop, backward: str, steps: int = 20) -> Run:
    """The facts of a loop with this backward."""
    return workshop.run(PROGRAM.format(backward=backward, steps=steps))


def test_the_loss_of_every_step_is_kept(workshop: Workshop) -> None:
    """Also of the steps whose operations are not, in the run, in its JSON and in the report's."""
    run = run_of(workshop, "loss = (w * w).sum(); loss.backward()")
    (loss,) = run.losses
    assert (loss.name, loss.steps, loss.stride, loss.constant) == ("loss", 20, 1, False)
    assert loss.series == tuple(64.0 / 4**step for step in range(20))
    assert (loss.highest, loss.lowest) == (64.0, loss.last)
    assert loss.slope is not None
    assert loss.slope < 0
    assert loss.span is not None
    assert loss.span.line == 6
    assert decode(encode(run)).losses == run.losses
    (row,) = json.loads(Report.of(run).to_json())["losses"]
    assert (row["series"], row["steps"], row["constant"]) == (list(loss.series), 20, False)


@pytest.mark.parametrize(
    ("backward", "constant"),
    [
        ("loss = (w / w.detach()).sum(); loss.backward()", True),
        ("loss = (w / w.detach()).sum() + (step == 11); loss.backward()", False),
    ],
)
def test_a_loss_that_is_one_number_all_along(workshop: Workshop, backward: str, constant: bool) -> None:
    """Every step counts, also those in the middle."""
    (loss,) = run_of(workshop, backward).losses
    assert loss.constant is constant


def test_accumulation_has_one_point_a_step(workshop: Workshop) -> None:
    """The mean over the micro-batches."""
    (loss,) = run_of(workshop, "for k in (1, 3): (w * 0 + k).sum().backward()", steps=5).losses
    assert (loss.series, loss.steps, loss.mean, loss.deviation) == ((2.0,) * 5, 5, 2.0, 1.0)
