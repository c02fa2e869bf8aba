"""What is computed from a parameter ends in a result that nobody differentiates."""

from __future__ import annotations

import pytest

from tests.rules.not_reached.test_not_reached import judge
from tests.workshop import Workshop

OVERWRITTEN = """
heads = nn.ModuleList([nn.Linear(4, 1) for _ in range(3)])
optimizer = torch.optim.SGD(heads.parameters(), lr=0.1)
for step in range(3):
    x = torch.rand(8, 4)
    for head in heads:
        loss = head(x).square().mean()  # here
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
NOT_ADDED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out, self.rotation = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 4)

    def forward(self, x):
        features = torch.tanh(self.body(x))
        return self.out(features), self.rotation(features)

net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=0.1)

def losses(x):
    out, turned = net(x)
    side = nn.functional.cross_entropy(turned, torch.arange(8) % 4)  # here
    return out.square().mean(), side

for step in range(3):
    main, side = losses(torch.rand(8, 4))
    optimizer.zero_grad()
    main.backward()
    optimizer.step()
    seen = side.item()
"""
THROWN_AWAY = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.out = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1)

    def forward(self, x):
        features = self.body(x)
        self.norm(features)  # here
        return self.out(features)

net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    net(torch.rand(8, 4)).square().mean().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("program", "tensors", "word"),
    [
        (OVERWRITTEN, ("heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"), "overwritten"),
        (NOT_ADDED, ("rotation.weight", "rotation.bias"), "no backward starts"),
        (THROWN_AWAY, ("norm.weight", "norm.bias"), "leads nowhere"),
    ],
    ids=["overwritten", "not added", "thrown away"],
)
def test_the_line_of_the_dead_end(program: str, tensors: tuple[str, ...], word: str, workshop: Workshop) -> None:
    """The result that nobody differentiates is told, with all tensors that it alone depends on."""
    finding = judge(workshop, program).must_be("unused-parameter", "warning", *tensors)
    assert word in finding.message
    assert finding.labels[0].message == "made here"


def test_a_norm_for_a_log_is_no_end_of_a_way(workshop: Workshop) -> None:
    """What is computed of all parameters alone says nothing of the layer that is not used."""
    program = """
    net = nn.ModuleDict({"used": nn.Linear(4, 1), "spare": nn.Linear(4, 1, bias=False)})  # here
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        net["used"](torch.rand(8, 4)).square().mean().backward()
        optimizer.step()
        sizes = [p.norm().item() for p in net.parameters()]
    """
    judge(workshop, program).must_be("unused-parameter", "warning", "spare.weight")


def test_losses_that_are_only_watched_are_silent_where_all_learn(workshop: Workshop) -> None:
    """A total for a log does no harm to what another loss trains."""
    program = """
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        out = net(torch.rand(8, 4))
        watched = nn.functional.l1_loss(out, torch.zeros(8, 2))
        total = out.square().mean() + watched
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()
    """
    assert judge(workshop, program).told == []
