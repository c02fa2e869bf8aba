"""What ended a history is left out, exactly, and the program learns."""

from __future__ import annotations

import textwrap

import pytest

from tests.rules.mending import mended
from tests.workshop import Workshop

PROGRAM = """
import math

import torch
from torch import nn
from torch.nn import functional as F

{before}

encoder, decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Linear(4, 2)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.05)
for step in range(4):
    x, y = torch.rand(16, 4), torch.rand(16, 2)
{body}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
LOSS = "\nloss = F.mse_loss(decoder(z), y)"


def program(body: str, before: str = "") -> str:
    """A training loop with this body."""
    return PROGRAM.format(body=textwrap.indent(body, "    "), before=before)


KEPT = {
    "detach": ("z = (encoder(x) + 1).detach().tanh()" + LOSS, ["z = (encoder(x) + 1).tanh()"]),
    "function": ("z = torch.detach(encoder(x))" + LOSS, ["z = encoder(x)"]),
    "data": ("z = encoder(x).data * 2" + LOSS, ["z = encoder(x) * 2"]),
    "to_itself": ("z = encoder(x)\nz = z.detach()" + LOSS, []),
    "in_place": ("z = encoder(x)\nz.detach_()" + LOSS, []),
    "leaf_of_it": ("z = encoder(x).detach().requires_grad_(True)" + LOSS, ["z = encoder(x)"]),
    "on_lines": ("z = (\n    encoder(x)\n    .detach()\n    .tanh()\n)" + LOSS, [""]),
    "two_in_a_row": ("z = encoder(x).detach()\nz = z.data + 1" + LOSS, ["z = encoder(x)", "z = z + 1"]),
    "with": ("with torch.no_grad():\n    z = encoder(x)\n    k = z.abs().max().item()" + LOSS, []),
    "with_of_two": (
        "with torch.no_grad(), torch.random.fork_rng():\n    z = encoder(x)" + LOSS,
        ["with torch.random.fork_rng():"],
    ),
    "switched_off": (
        "if step == 0:\n    torch.set_grad_enabled(False)\n    y = y * 0.5\nz = encoder(x)" + LOSS,
        ["with torch.no_grad():"],
    ),
    "tensor": ("z = torch.tensor(encoder(x))" + LOSS, ["z = encoder(x)"]),
    "parameter": ("z = nn.Parameter(encoder(x))" + LOSS, ["z = encoder(x)"]),
    "list": (
        "parts = [part.mean() for part in encoder(x).unbind(1)]\nz = torch.tensor(parts).expand(16, 4)" + LOSS,
        ["z = torch.stack(parts).expand(16, 4)"],
    ),
    "nested": (
        "h = encoder(x).mean(0)\nz = torch.tensor([[h[0], h[1], h[2], h[3]], [h[3], h[2], h[1], h[0]]])"
        "\nloss = F.mse_loss(decoder(z), y[:2])",
        [
            "z = torch.stack([torch.stack([h[0], h[1], h[2], h[3]]), torch.stack([h[3], h[2], h[1], h[0]])])",
        ],
    ),
    "loss_of_item": (
        "loss = torch.tensor(F.mse_loss(decoder(encoder(x)), y).item() * 2, requires_grad=True)",
        ["loss = (F.mse_loss(decoder(encoder(x)), y) * 2)"],
    ),
    "math": (
        "error = F.mse_loss(decoder(encoder(x)), y)\nloss = torch.tensor(math.sqrt(error.item()), requires_grad=True)",
        ["loss = torch.sqrt(error)"],
    ),
    "number_by_name": (
        "error = F.mse_loss(decoder(encoder(x)), y).item()\nloss = torch.tensor(error, requires_grad=True)",
        ["error = F.mse_loss(decoder(encoder(x)), y)", "loss = error"],
    ),
    "summed_as_float": (
        "loss = 0.0\nfor part in (x, x.flip(0)):\n    loss += float(F.mse_loss(decoder(encoder(part)), y))",
        ["loss += F.mse_loss(decoder(encoder(part)), y)"],
    ),
    "sample": (
        "z = torch.distributions.Normal(encoder(x), 1.0).sample()" + LOSS,
        ["z = torch.distributions.Normal(encoder(x), 1.0).rsample()"],
    ),
    "checkpoint": (
        "from torch.utils.checkpoint import checkpoint\nz = checkpoint(encoder, x, use_reentrant=True)" + LOSS,
        ["z = checkpoint(encoder, x, use_reentrant=False)"],
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_history_is_kept(case: str, workshop: Workshop) -> None:
    """The lines that change are these, and nothing is found afterwards."""
    body, more = KEPT[case]
    result = mended(workshop, program(body))
    assert (result.more, result.then) == (more, [])


DECORATED = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    @torch.no_grad()
    def forward(self, x):
        return self.layer(x)
"""


def test_decorator_goes(workshop: Workshop) -> None:
    """A forward that is decorated to keep no history loses the decorator, wherever it is called."""
    source = program("z = encoder(x)" + LOSS, DECORATED).replace(
        "encoder, decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))", "encoder, decoder = Encoder()"
    )
    result = mended(workshop, source)
    assert (result.less, result.more, result.then) == (["@torch.no_grad()"], [], [])


NOT_SURE = {
    "straight_through": "h = encoder(x)\nz = x + (h - x).detach()" + LOSS,
    "choice": "z = F.one_hot(torch.distributions.Categorical(logits=encoder(x)).sample(), 4).float()" + LOSS,
    "through_numpy": "z = torch.from_numpy(encoder(x).detach().numpy() * 2)" + LOSS,
    "update_in_the_same_block": (
        "with torch.no_grad():\n    z = encoder(x)\n    for p in decoder.parameters():\n        p.mul_(0.99)" + LOSS
    ),
}


@pytest.mark.parametrize("case", NOT_SURE)
def test_what_is_not_sure_is_told_in_words(case: str, workshop: Workshop) -> None:
    """Where leaving it out could be wrong, the help has no edit."""
    result = mended(workshop, program(NOT_SURE[case]))
    assert not any(help_.edits for help_ in result.finding.help)
    assert result.finding.help
