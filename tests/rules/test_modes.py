"""Modules that run in training mode where nobody trains, and modules in evaluation mode that somebody trains."""

from __future__ import annotations

import pytest

from tests.rules.loops import found, report_of
from tests.workshop import Workshop

NET = """
net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
def data(n=12):
    x = torch.randn(n, 5)
    return x, x[:, :3].argmax(1)
"""
STEP = "x, y = data()\nloss = F.cross_entropy(net(x), y)\n"
MEASURED = {
    "accuracy": "with torch.no_grad():\n    x, y = data()\n"
    "    print((net(x).argmax(1) == y).float().mean().item())  # here",
    "loss": "with torch.no_grad():\n    x, y = data()\n    print(F.cross_entropy(net(x), y).item())  # here",
}
TEACHER = f"""{NET}
teacher = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
"""
TAUGHT = {
    "no_grad": (
        TEACHER,
        "with torch.no_grad():\n    t = teacher(x).softmax(1)  # here\nloss = F.cross_entropy(net(x), t)",
    ),
    "frozen": (f"{TEACHER}\nteacher.requires_grad_(False)", "loss = F.mse_loss(net(x), teacher(x))  # here"),
}
MEANT = {
    "evaluation": "net.eval()\nwith torch.no_grad():\n    x, y = data()\n"
    "    print(F.cross_entropy(net(x), y).item())\n"
    "net.train()",
    "samples": "with torch.no_grad():\n    x, y = data()\n"
    "    p = torch.stack([net(x).softmax(1) for _ in range(4)]).mean(0)\n"
    "    print((p.argmax(1) == y).float().mean().item())",
    "statistics": "with torch.no_grad():\n    for _ in range(3):\n        net(data()[0])",
    "sampling": "with torch.no_grad():\n    print(net(data()[0]).tolist())",
}
MEANT_TEACHERS = {
    "evaluation": (f"{TEACHER}\nteacher.eval()", "with torch.no_grad():\n    t = teacher(x)\n"
                   "loss = F.mse_loss(net(x), t)"),
    "average": (
        f"{NET}\nteacher = copy.deepcopy(net).requires_grad_(False)",
        "with torch.no_grad():\n    for a, b in zip(teacher.parameters(), net.parameters()):\n        a.lerp_(b, 0.1)\n"
        "    t = teacher(x)\nloss = F.mse_loss(net(x), t)",
    ),
    "backbone": (f"{TEACHER}\nteacher.requires_grad_(False)\nnet = nn.Linear(3, 3)",
                 "loss = F.cross_entropy(net(teacher(x)), y)"),
    "generator": (
        f"{TEACHER}\nother = torch.optim.Adam(teacher.parameters())",
        "with torch.no_grad():\n    fake = teacher(x)\nother.zero_grad()\nF.mse_loss(teacher(x), x[:, :3]).backward()\n"
        "other.step()\nloss = F.cross_entropy(net(x), y) + F.mse_loss(net(x), fake)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("body", MEASURED.values(), ids=MEASURED)
def test_evaluated_in_training_mode(workshop: Workshop, body: str) -> None:
    """What is compared with targets and read was computed with dropout, and batch norm saw the data."""
    assert found(workshop, NET, STEP + body) == [("train-mode", True)]


@pytest.mark.parametrize(("before", "body"), TAUGHT.values(), ids=TAUGHT)
def test_teacher_in_training_mode(workshop: Workshop, before: str, body: str) -> None:
    """A frozen teacher draws, and its statistics move."""
    report = report_of(workshop, before, "x, y = data()\n" + body)
    assert [finding.rule for finding in report.findings] == ["train-mode"]
    (finding,) = report.findings
    assert {"teacher", "teacher.2", "teacher.1.running_mean", "teacher.1.running_var"} <= set(finding.tensors)
    assert found(workshop, before, "x, y = data()\n" + body) == [("train-mode", True)]


@pytest.mark.parametrize("body", MEANT.values(), ids=MEANT)
def test_training_mode_that_is_meant(workshop: Workshop, body: str) -> None:
    """Monte Carlo dropout, statistics measured anew, and samples that nobody scores."""
    assert found(workshop, NET, STEP + body) == []


@pytest.mark.parametrize(("before", "body"), MEANT_TEACHERS.values(), ids=MEANT_TEACHERS)
def test_others_in_training_mode(workshop: Workshop, before: str, body: str) -> None:
    """Averages of what learns, frozen backbones, and what another optimizer trains in turn."""
    assert found(workshop, before, "x, y = data()\n" + body) == []


def test_evaluation_mode_of_a_first_phase(workshop: Workshop) -> None:
    """A teacher that was trained in evaluation mode is told though it is frozen afterwards, at its own line."""
    before = f"""{NET}
teacher, net = net, nn.Linear(5, 3)
first = torch.optim.Adam(teacher.parameters())
for epoch in range(3):
    for _ in range(3):
        x, y = data()
        first.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        first.step()
    teacher.eval()  # here
teacher.eval().requires_grad_(False)
"""
    assert found(workshop, before, "x, y = data()\nloss = F.mse_loss(net(x), teacher(x))") == [("eval-mode", True)]
