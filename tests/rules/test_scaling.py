"""Steps that a GradScaler withholds: who is told of, and who is not."""

from __future__ import annotations

import pytest

from tests.rules.training import NET, judge
from tests.workshop import Workshop

TRAINING = """
net = Net()
optimizer = {optimizer}
scaler = torch.amp.GradScaler("cpu", init_scale={scale})
for step in range({steps}):
    x, y = data()
    optimizer.zero_grad()
    loss = {loss}
    scaler.scale(loss).backward()
    {between}
    scaler.step(optimizer)  # here
    scaler.update()
"""
DEFAULT = {
    "optimizer": "SGD(net.parameters(), lr=0.01)",
    "scale": "2.0 ** 16",
    "steps": 20,
    "loss": "F.mse_loss(net(x), y)",
    "between": "pass",
}
SPOIL = "net.head.weight.grad[0, 0] /= (step < {first})"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"between": SPOIL.format(first=0)}, "withheld all 20 steps of SGD"),
        ({"between": SPOIL.format(first=8)}, "withheld the last 12 of 20 steps of SGD"),
        (
            {"between": SPOIL.format(first=0), "optimizer": "Adam(net.parameters(), lr=0.01, fused=True)"},
            "withheld all 20 steps of Adam",
        ),
    ],
    ids=["all", "from_some_step_on", "left_to_a_fused_step"],
)
def test_steps_that_are_withheld_to_the_end(changes: dict[str, str], said: str, workshop: Workshop) -> None:
    """All tensors of the optimizer are named, and steps that were not taken are no steps."""
    judged = judge(workshop, TRAINING.format(**(DEFAULT | changes)))
    found = judged.must_be("scaler-skips", "error", NET)
    assert said in found.message
    received = {tensor.name: tensor.received for tensor in judged.run.tensors}["head.weight"]
    assert received is not None
    assert received.of == 20
    assert judged.run.step_count == 20 - judged.run.optimizers[0].withheld


def test_the_operation_is_told_where_it_is_known(workshop: Workshop) -> None:
    """A NaN whose operation is known is told there, though no step ever spoils a value."""
    loss = "(net(x) - net(x)).square().sum(1).sqrt().mean()"
    judged = judge(workshop, TRAINING.format(**(DEFAULT | {"loss": loss})))
    assert [finding.rule for finding in judged.findings] == ["nonfinite-gradient"]
    assert any("withheld 20 steps" in fact for fact in judged.findings[0].facts)
    assert set(judged.findings[0].tensors) >= set(NET)
    received = [tensor.received for tensor in judged.run.tensors if tensor.name in NET]
    assert all(told is not None and told.nonfinite == told.of == 20 for told in received)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": "2.0 ** 127", "loss": "F.mse_loss(net(x), y) * 50"},
        {"between": "net.head.weight.grad[0, 0] /= (step % 5 > 0)", "steps": 40},
    ],
    ids=["while_the_scale_settles", "now_and_then"],
)
def test_few_steps_may_be_withheld(changes: dict[str, str], workshop: Workshop) -> None:
    """A scaler that settles, or leaves out a step now and then, does what it is for."""
    judge(workshop, TRAINING.format(**(DEFAULT | changes))).must_be_silent()
