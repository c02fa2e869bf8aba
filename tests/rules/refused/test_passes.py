"""Backwards that checkpointing, DDP or a compiled graph refuse, and those that go through."""

from __future__ import annotations

import pytest
import torch

from gradscope.graph.facts import Finding
from tests.rules.crashes import findings, must_be
from tests.workshop import Workshop

DRAWN = """
import random

from torch.utils.checkpoint import checkpoint

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.a(x).relu()
        if random.random() < 0.5:
            x = self.b(x).tanh()  # here
        return x

random.seed(1)
blocks = nn.ModuleList(Block() for _ in range(4))
optimizer = torch.optim.Adam(blocks.parameters())
for step in range(20):
    x = torch.randn(16, 8)
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    optimizer.zero_grad()
    x.square().mean().backward()
    optimizer.step()
"""
SWITCHED = """
from torch.utils.checkpoint import checkpoint

net, head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)), nn.Linear(8, 1)
optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()])
for step in range(5):
    x = torch.randn(16, 8)
    net.train()
    loss = head(checkpoint(net, x, use_reentrant=False)).square().mean()
    net.eval()  # here
    print(head(net(x)).mean().item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
GROWN = """
from torch.utils.checkpoint import checkpoint

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.state = nn.Linear(8, 8), None

    def forward(self, x):
        h = self.layer(x)
        if self.state is not None:
            h = torch.cat([h, self.state]).view(16, 8)  # here
        self.state = h.detach()
        return h.relu()

net = Net()
optimizer = torch.optim.Adam(net.parameters())
for step in range(5):
    net.state = None
    loss = checkpoint(net, torch.randn(16, 8), use_reentrant=False).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PENALISED = """
critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
compiled = torch.compile(critic, backend="aot_eager")
optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
for _ in range(3):
    x = torch.rand(8, 4, requires_grad=True)
    score = compiled(x)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    loss = score.mean() + (slope.norm(dim=1) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()  # here
    optimizer.step()
"""


@pytest.mark.parametrize("program", [DRAWN, SWITCHED, GROWN], ids=["drawn", "switched", "grown"])
def test_recomputed_otherwise(workshop: Workshop, program: str) -> None:
    """The first expression that differs; the switch of modes, where no expression does."""
    found = _first(workshop, "checkpoint-mismatch", program)
    assert any("checkpoint" in label.message for label in found.labels)


def _first(workshop: Workshop, rule: str, program: str) -> Finding:
    found = findings(workshop, program)[0]
    assert found.rule == rule
    assert found.span is not None
    lines = (workshop.folder / found.span.file).read_text(encoding="utf-8").splitlines()
    assert "# here" in lines[found.span.line - 1], lines[found.span.line - 1]
    return found


def test_compiled_and_differentiated(workshop: Workshop) -> None:
    """The pass that needs the derivative of a compiled backward."""
    torch._dynamo.reset()
    assert must_be(workshop, "compiled-backward", PENALISED).help


def test_checkpoints_that_go_through(workshop: Workshop) -> None:
    """Torch draws the same numbers again; nothing is told, nothing fails, and what was patched is put back."""
    before = dict(vars(torch.utils.checkpoint._checkpoint_hook))
    program = """
        from torch.utils.checkpoint import checkpoint

        net, head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3)), nn.Linear(8, 1)
        optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()])
        for step in range(5):
            loss = head(checkpoint(net, torch.randn(16, 8), use_reentrant=False)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    assert findings(workshop, program) == ()
    assert dict(vars(torch.utils.checkpoint._checkpoint_hook)) == before


def test_an_error_of_its_own(workshop: Workshop) -> None:
    """What raises in a second run that goes the way of the first is not told of as checkpointing's."""
    program = """
        from torch.utils.checkpoint import checkpoint

        runs = []

        def run(x):
            h = layer(x).relu()
            runs.append(1)
            if len(runs) == 2:
                raise RuntimeError("torch.utils.checkpoint is not to blame")
            return h.square()

        layer = nn.Linear(4, 4)
        checkpoint(run, torch.rand(2, 4), use_reentrant=False).sum().backward()
    """
    assert "checkpoint-mismatch" not in [found.rule for found in findings(workshop, program)]


DDP = """
import os
import socket

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

os.environ["MASTER_ADDR"] = "127.0.0.1"
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ["MASTER_PORT"] = str(free.getsockname()[1])
dist.init_process_group("gloo", rank=0, world_size=1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.side = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x, which="head", again=False):
        h = checkpoint(self.body, x, use_reentrant=True) if again else self.body(x)  # again
        return getattr(self, which)(h)

net = DDP(Net(), find_unused_parameters=True)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
x = torch.rand(8, 4, requires_grad=True)
try:
    for _ in range(2):
        optimizer.zero_grad()
        LOSS
        loss.backward()
        optimizer.step()
finally:
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("loss", "suffer"),
    [
        ('loss = net(x).mean()\n        loss = loss + net(x, "side").mean()  # here', ["head.weight", "head.bias"]),
        ("h = net(x).mean()\n        loss = h + net.module.side(x).mean()  # here", ["side.weight", "side.bias"]),
        ("loss = net(x, again=True).mean()", ["body.weight", "body.bias"]),
    ],
    ids=["two forwards", "outside", "reentrant"],
)
def test_ready_twice(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, loss: str, suffer: list[str]) -> None:
    """The last forward, the use outside, or the reentrant call; with all parameters that are counted twice."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    program = DDP.replace("LOSS", loss)
    program = program if "# here" in program else program.replace("# again", "# here")
    found = _first(workshop, "ready-twice", program)
    assert [name for name in suffer if any(told.endswith(name) for told in found.tensors)] == suffer
    assert len(found.tensors) == len(suffer)
