"""Mends of parameters that are not registered, are frozen, or are no leaves."""

from __future__ import annotations

import textwrap

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 1)
{made}

    def forward(self, x):
{used}
        return self.out(x)

net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for _ in range(4):
    loss = (net(torch.rand(8, 4)) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PARTS = {
    "modules": (
        "self.parts = [nn.Linear(4, 4) for _ in range(2)]",
        "for part in self.parts:\n    x = part(x).tanh()",
        ["self.parts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])"],
    ),
    "appended": (
        "self.parts = []\nfor _ in range(2):\n    self.parts.append(nn.Linear(4, 4))",
        "for part in self.parts:\n    x = part(x).tanh()",
        ["self.parts = nn.ModuleList([])"],
    ),
    "named": (
        'self.parts = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}',
        'x = self.parts["a"](x) + self.parts["b"](x)',
        ['self.parts = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})'],
    ),
    "parameters": (
        "self.scales = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))]",
        "x = x * self.scales[0] * self.scales[1]",
        ["self.scales = nn.ParameterList([nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))])"],
    ),
    "tensor": (
        "self.scale = torch.ones(4, requires_grad=True)",
        "x = x * self.scale",
        ["self.scale = nn.Parameter(torch.ones(4, requires_grad=True))"],
    ),
    "moved": (
        "self.scale = nn.Parameter(torch.ones(4) * 0.5).to(torch.float64)",
        "x = x * self.scale.float()",
        ["self.scale = nn.Parameter((torch.ones(4) * 0.5).to(torch.float64))"],
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_are_registered(case: str, workshop: Workshop) -> None:
    """What a module keeps becomes what `parameters()` gives, and it learns."""
    made, used, more = PARTS[case]
    source = MODEL.format(made=textwrap.indent(made, " " * 8), used=textwrap.indent(used, " " * 8))
    result = mended(workshop, source)
    assert (result.more, result.then) == (more, [])


def test_other_keys_than_strings_give_no_edit(workshop: Workshop) -> None:
    """`nn.ModuleDict` takes strings only."""
    made, used = "self.parts = {0: nn.Linear(4, 4)}", "x = self.parts[0](x)"
    source = MODEL.format(made=textwrap.indent(made, " " * 8), used=textwrap.indent(used, " " * 8))
    result = mended(workshop, source)
    assert (result.finding.rule, result.more) == ("unregistered-parameter", [])


FROZEN = {
    "attribute": (
        """
        import torch
        from torch import nn

        body, head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 1)
        for p in body.parameters():
            p.requires_grad = False
        for part in body[1:]:
            part.requires_grad = True
        optimizer = torch.optim.SGD([*body[1].parameters(), *head.parameters()], lr=0.01)
        for _ in range(4):
            loss = (head(body(torch.rand(8, 4))) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
        ["part.requires_grad_(True)"],
    ),
    "vectors": (
        """
        import torch
        from torch import nn

        table = nn.Embedding.from_pretrained(torch.rand(10, 4), padding_idx=None)
        head = nn.Linear(4, 1)
        optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], lr=0.01)
        for _ in range(4):
            loss = (head(table(torch.randint(0, 10, (8,)))) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
        ["table = nn.Embedding.from_pretrained(torch.rand(10, 4), padding_idx=None, freeze=False)"],
    ),
    "second_phase": (
        """
        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        net[0].requires_grad_(False)
        optimizer = torch.optim.SGD(net[2].parameters(), lr=0.01)
        for step in range(8):
            if step == 4:
                optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
            loss = (net(torch.rand(8, 4)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
        ["net.requires_grad_(True)"],
    ),
    "toggled": (
        """
        import torch
        from torch import nn

        painter, judge = nn.Linear(4, 4), nn.Linear(4, 1)
        first, second = (torch.optim.SGD(part.parameters(), lr=0.01) for part in (painter, judge))
        for _ in range(4):
            made = painter(torch.rand(8, 4))
            verdict = (judge(made.detach()) + 1).square().mean() + (judge(torch.rand(8, 4)) - 1).square().mean()
            second.zero_grad()
            verdict.backward()
            second.step()
            judge.requires_grad_(False)
            loss = (judge(made) - 1).square().mean()
            first.zero_grad()
            loss.backward()
            first.step()
        """,
        ["judge.requires_grad_(True)"],
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_frozen_tensors_are_asked_to_require_grad(case: str, workshop: Workshop) -> None:
    """One line unfreezes what the program means to train."""
    source, more = FROZEN[case]
    result = mended(workshop, source)
    assert (result.finding.rule, result.more, result.then) == ("frozen-parameter", more, [])


LEAVES = {
    "scaled": ("w = torch.rand(4, requires_grad=True) * 0.1", ["w = (torch.rand(4) * 0.1).requires_grad_()"]),
    "converted": (
        "w = torch.rand(4, dtype=torch.float64, requires_grad=True).float()",
        ["w = torch.rand(4, dtype=torch.float64).float().requires_grad_()"],
    ),
    "asked_before": ("w = torch.rand(4)\nw.requires_grad_()\nw = w.clone()", ["w.requires_grad_()"]),
}


@pytest.mark.parametrize("case", LEAVES)
def test_optimizers_get_leaves(case: str, workshop: Workshop) -> None:
    """What was asked to require grad before an operation is asked behind it."""
    made, more = LEAVES[case]
    source = textwrap.dedent(
        """
        import torch

        {made}
        optimizer = torch.optim.SGD([w], lr=0.01)
        for _ in range(4):
            loss = (w - 1).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    ).format(made=made)
    result = mended(workshop, source)
    assert result.then == []
    assert result.more == more or result.less == result.more


def test_updates_by_hand_keep_their_tensors(workshop: Workshop) -> None:
    """`w = w - lr * w.grad` becomes a change in place, which needs the gradient cleared."""
    result = mended(
        workshop,
        """
        import torch

        w, b = torch.rand(4, requires_grad=True), torch.zeros(1, requires_grad=True)
        for _ in range(4):
            loss = (torch.rand(8, 4) @ w + b - 1).square().mean()
            loss.backward()
            with torch.no_grad():
                w = w - 0.1 * w.grad
                b = b - 0.1 * b.grad
        """,
    )
    assert result.more == ["w -= 0.1 * w.grad", "b -= 0.1 * b.grad", "w.grad = None", "b.grad = None"]
    assert result.then == []
