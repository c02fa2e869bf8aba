"""One module where several were meant, an optimizer made anew, and programs that only look so."""

from __future__ import annotations

import pytest

from tests.rules.training import NET, judge
from tests.workshop import Workshop

STACK = """
class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        {layers}
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)

net = Stack()
fit(net, SGD(net.parameters(), lr=0.1))
"""


@pytest.mark.parametrize(
    "layers",
    [
        "self.layers = nn.ModuleList([nn.Linear(4, 4)] * 3)  # here",
        "layer = nn.Linear(4, 4)\n        self.layers = nn.Sequential(*(3 * [layer]))  # here",
    ],
)
def test_a_list_that_is_multiplied(layers: str, workshop: Workshop) -> None:
    """All entries are one layer: the line that multiplies is told."""
    judge(workshop, STACK.format(layers=layers)).must_be(
        "shared-module", "warning", ("layers.0.weight", "layers.0.bias")
    )


@pytest.mark.parametrize(
    "layers",
    [
        "self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))",
        "self.layers = [self.add_module('one', nn.Linear(4, 4)) or self.one] * 3",
        "self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])\n"
        "        self.layers[1].weight = self.layers[0].weight",
        "self.layers = nn.Sequential(nn.Linear(4, 4), *[nn.Tanh()] * 2)",
    ],
    ids=["several", "called_in_a_loop", "tied", "without_parameters"],
)
def test_what_is_shared_on_purpose(layers: str, workshop: Workshop) -> None:
    """A module called in a loop, tied weights and activations are no slips."""
    judge(workshop, STACK.format(layers=layers)).must_be_silent()


ROUNDS = """
net = Net()
for _ in range({rounds}):
    optimizer = {optimizer}  # here
    fit(net, optimizer, {steps})
"""


def test_an_optimizer_for_each_step(workshop: Workshop) -> None:
    """Momentum that never lives."""
    program = ROUNDS.format(rounds=8, optimizer="SGD(net.parameters(), lr=0.1, momentum=0.9)", steps=1)
    judge(workshop, program).must_be("rebuilt-optimizer", "warning", NET)


@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [("SGD(net.parameters(), lr=0.1)", 1), ("Adam(net.parameters(), lr=0.01)", 6)],
    ids=["without_state", "a_round_of_steps"],
)
def test_an_optimizer_for_each_round(optimizer: str, steps: int, workshop: Workshop) -> None:
    """One without state loses nothing, and one for each round of several steps is meant so."""
    judge(workshop, ROUNDS.format(rounds=8, optimizer=optimizer, steps=steps)).must_be_silent()
