"""The examples that the documentation shows."""

from __future__ import annotations

import pytest

from gradscope.probes.program.scripts import observe_program, program_of_script
from gradscope.reports.report import Report
from tests.workshop import FORUM, Workshop


@pytest.fixture(scope="module")
def forum() -> Report:
    """The report on the forum script."""
    return Report.of(observe_program(program_of_script(str(FORUM), ())).run)


def test_forum_tensor_is_a_leaf_that_is_trained(forum: Report) -> None:
    """`tensor` is a leaf, and a parameter since an optimizer holds it; 5 of 5 steps gave it a gradient and moved it."""
    row = next(row for row in forum.tensors if row.name == "tensor")
    assert (row.role, row.leaf, row.requires_grad, row.optimizer) == ("parameter", True, True, "SGD")
    assert row.received is not None
    assert (row.received.steps, row.received.of, row.received.zero, row.received.nonfinite) == (5, 5, 0, 0)
    assert row.predicted
    assert row.moved is not None
    assert row.moved > 1
    assert len(row.grad_norm) == 5


@pytest.mark.parametrize(("name", "shape"), [("cte1", (5, 3)), ("cte2", (5, 5))])
def test_forum_constants_expect_nothing(forum: Report, name: str, shape: tuple[int, int]) -> None:
    """`cte1` and `cte2` are leaves and constants, of which no gradient is expected and none is counted."""
    row = next(row for row in forum.tensors if row.name == name)
    assert (row.role, row.leaf, row.requires_grad, row.shape) == ("constant", True, False, shape)
    assert (row.received, row.grad_norm, row.optimizer, row.finding) == (None, (), None, None)
    assert not row.predicted


def test_forum_output_is_a_non_leaf(forum: Report) -> None:
    """`output` is no leaf, requires grad, and was made by AddBackward0."""
    row = next(row for row in forum.tensors if row.name == "output")
    assert (row.leaf, row.requires_grad, row.grad_fn, row.shape) == (False, True, "AddBackward0", (5, 5))
    assert row.location is not None
    assert FORUM.read_text().splitlines()[row.location.line - 1].strip() == "output = cte1 @ tensor + cte2"


def test_forum_script_is_healthy(forum: Report) -> None:
    """Nothing is wrong with the forum script, and gradscope says nothing but its table."""
    assert forum.findings == ()
    assert forum.failures == ()
    assert forum.ok
    assert forum.document.run.steps == forum.document.run.backwards == 5
    assert str(forum).count("no findings") == 1


def test_roles_in_a_module(workshop: Workshop) -> None:
    """In a module the Parameter, the buffer and the plain tensor attribute are told apart."""
    run = workshop.run(
        """
        import torch

        class Scaled(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(3, 5))
                self.register_buffer("scale", torch.full((5,), 2.0))
                self.offset = torch.rand(5, 5)

            def forward(self, x):
                return (x @ self.weight) * self.scale + self.offset

        net = Scaled()
        data = torch.rand(5, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            output = net(data)
            output.sum().backward()
            optimizer.step()
        """
    )
    report = Report.of(run)
    rows = {row.name: row for row in report.tensors}
    roles = {name: (rows[name].role, rows[name].leaf, rows[name].requires_grad) for name in rows}
    assert roles["net.weight"] == ("parameter", True, True)
    assert roles["net.scale"] == ("buffer", True, False)
    assert roles["net.offset"] == ("constant", True, False)
    assert roles["data"] == ("constant", True, False)
    assert roles["output"][1:] == (False, True)
    assert rows["net.weight"].received is not None
    assert (rows["net.weight"].received.steps, rows["net.weight"].received.of) == (5, 5)
    assert [rows[name].received for name in ("net.scale", "net.offset", "data")] == [None] * 3
    assert report.findings == ()
