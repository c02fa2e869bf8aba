"""What is carried on is carried without its graph."""

from __future__ import annotations

import pytest

from tests.rules.mending import mended, training
from tests.workshop import Workshop

CARRIED = {
    "sum": ("total += loss", ["total += loss.item()"], "total = 0.0"),
    "sum_of_tensors": ("total += loss", ["total += loss.detach()"], "total = torch.zeros(())"),
    "average": ("total = 0.9 * total + 0.1 * loss", ["total = (0.9 * total + 0.1 * loss).detach()"], "total = 0.0"),
    "list": ("total.append(h)", ["total.append(h.detach())"], "total = []"),
    "pairs": ("total.append((step, h))", ["total.append((step, h.detach()))"], "total = []"),
    "dict": ("total[step] = h", ["total[step] = h.detach()"], "total = {}"),
}


@pytest.mark.parametrize("case", CARRIED)
def test_kept_results_lose_their_graph(case: str, workshop: Workshop) -> None:
    """What is kept from step to step is kept without its graph."""
    body, more, before = CARRIED[case]
    lines = "h = net(x + 1)\nloss = F.mse_loss(net(x), y)\nloss.backward()\n" + body
    result = mended(workshop, training(lines, before).replace("range(8)", "range(24)"))
    assert (result.finding.rule, result.more, result.then) == ("graph-growth", more, [])


STATES = {
    "state": ("h = cell(x, h)", "h = torch.zeros(16, 4)", ["h = h.detach()"]),
    "state_of_two": (
        "h = cell(x, h)",
        "h = (torch.zeros(16, 4), torch.zeros(16, 4))",
        ["h = tuple(part.detach() for part in h)"],
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_states_are_detached_between_windows(case: str, workshop: Workshop) -> None:
    """A state goes into the next window without its graph, and the window itself trains through it."""
    body, before, more = STATES[case]
    kind, out = ("RNNCell", "h") if case == "state" else ("LSTMCell", "h[0]")
    lines = f"for part in range(2):\n    {body}\nloss = F.mse_loss({out}, y)\nloss.backward()"
    source = training(lines, before).replace(
        "net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())", f"net = cell = nn.{kind}(4, 4)"
    )
    result = mended(workshop, source)
    assert (result.more, result.then) == (more, [])


def test_a_generator_is_detached_for_the_discriminator(workshop: Workshop) -> None:
    """The loss of one model does not lead its backward into the model of another optimizer."""
    result = mended(
        workshop,
        """
        import torch
        from torch import nn

        G, D = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        opt_g, opt_d = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (G, D))
        for _ in range(4):
            fake = torch.tanh(G(torch.randn(8, 3)))
            d_loss = D(fake).mean() - D(torch.rand(8, 4)).mean()
            opt_d.zero_grad()
            d_loss.backward()
            opt_d.step()
            g_loss = -D(fake).mean()
            opt_g.zero_grad()
            g_loss.backward()
            opt_g.step()
        """,
    )
    assert (result.more, result.then) == (["d_loss = D(fake.detach()).mean() - D(torch.rand(8, 4)).mean()"], [])


def test_two_passes_of_one_step_keep_the_graph(workshop: Workshop) -> None:
    """Where both add up to one step, the first backward keeps the graph for the second."""
    body = "h = net(x)\nloss = F.mse_loss(h, y)\nloss.backward()\nh.square().mean().backward()"
    result = mended(workshop, training(body))
    assert (result.more, result.then) == (["loss.backward(retain_graph=True)"], [])
