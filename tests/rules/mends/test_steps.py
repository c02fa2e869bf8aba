"""What belongs to a step is put where it belongs, and the program learns."""

from __future__ import annotations

import textwrap

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn
from torch.nn import functional as F

net, head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)
adam = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=256.0)


def cost():
    x = torch.rand(16, 4)
    return F.mse_loss(head(net(x)), x.sum(dim=1, keepdim=True))


{body}
"""
MENDED = {
    "piled": (
        """
        for _ in range(6):
            loss = cost()
            loss.backward()
            adam.step()
        """,
        "missing-zero-grad",
        ["adam.zero_grad()"],
    ),
    "several backwards": (
        """
        for _ in range(6):
            for _ in range(2):
                cost().backward()
            adam.step()
        """,
        "missing-zero-grad",
        ["adam.zero_grad()"],
    ),
    "in a function": (
        """
        class Trainer:
            def __init__(self, optimizer):
                self.optimizer = optimizer

            def step(self):
                loss = cost()
                loss.backward()
                self.optimizer.step()


        trainer = Trainer(adam)
        for _ in range(6):
            trainer.step()
        """,
        "missing-zero-grad",
        ["self.optimizer.zero_grad()"],
    ),
    "by hand": (
        """
        w = torch.zeros(4, 1, requires_grad=True)
        for _ in range(6):
            x = torch.rand(16, 4)
            loss = F.mse_loss(x @ w, x.sum(dim=1, keepdim=True))
            loss.backward()
            with torch.no_grad():
                w -= 0.1 * w.grad
        """,
        "missing-zero-grad",
        ["w.grad = None"],
    ),
    "cleared before the step": (
        """
        def update(loss):
            loss.backward()
            adam.zero_grad()
            adam.step()


        for _ in range(6):
            update(cost())
        """,
        "zero-grad-before-step",
        ["adam.zero_grad()"],
    ),
    "cleared after a condition": (
        """
        for step in range(12):
            cost().backward()
            if step % 2:
                adam.zero_grad()
                adam.step()
        """,
        "zero-grad-before-step",
        ["adam.step()"],  # the two have changed places
    ),
    "no backward": (
        """
        for _ in range(6):
            adam.zero_grad()
            error = cost() * 2
            adam.step()
        """,
        "step-without-backward",
        ["error.backward()"],
    ),
    "no step": (
        """
        for _ in range(6):
            adam.zero_grad()
            cost().backward()
        """,
        "never-stepped",
        ["adam.step()"],
    ),
    "no step of a scaler": (
        """
        for _ in range(6):
            adam.zero_grad()
            scaler.scale(cost()).backward()
        """,
        "never-stepped",
        ["scaler.step(adam)", "scaler.update()"],
    ),
    "frozen with a gradient": (
        """
        for step in range(9):
            if step == 3:
                for weight in net.parameters():
                    weight.requires_grad_(False)
            loss = cost()
            adam.zero_grad(set_to_none=False)
            loss.backward()
            adam.step()
        """,
        "frozen-but-updated",
        ["weight.grad = None"],
    ),
    "clipped early": (
        """
        for _ in range(6):
            loss = cost()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            adam.zero_grad()
            loss.backward()
            adam.step()
        """,
        "misplaced-clip",
        ["nn.utils.clip_grad_norm_(net.parameters(), 0.5)"],
    ),
    "clipped while scaled": (
        """
        for _ in range(6):
            adam.zero_grad()
            scaler.scale(cost()).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            scaler.step(adam)
            scaler.update()
        """,
        "misplaced-clip",
        ["scaler.unscale_(adam)"],
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_a_step_in_its_order(name: str, workshop: Workshop) -> None:
    """What is missing is put in, and what is in the wrong place is moved; nothing else changes."""
    body, rule, more = MENDED[name]
    result = mended(workshop, PROGRAM.format(body=textwrap.dedent(body).strip()))
    assert result.finding.rule == rule
    assert result.more == more
    assert result.then == []


UNSURE = {
    "an accumulation that never ends": """
        for _ in range(6):
            for step in range(3):
                cost().backward()
                if step == 4:
                    adam.step()
                    adam.zero_grad()
    """,
    "a name that means something else": """
        def train(adam):
            for _ in range(6):
                net.zero_grad()
                head.zero_grad()
                cost().backward()


        adam, other = None, adam
        train(other)
    """,
}


@pytest.mark.parametrize("name", UNSURE)
def test_what_is_not_sure_is_told_only(name: str, workshop: Workshop) -> None:
    """There is no edit where the steps that are there have a reason, or a name does not tell which object it is."""
    result = mended(workshop, PROGRAM.format(body=textwrap.dedent(UNSURE[name]).strip()))
    assert result.finding.rule == "never-stepped"
    assert not any(help_.edits for help_ in result.finding.help)
