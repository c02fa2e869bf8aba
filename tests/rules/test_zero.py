"""Gradients that are exactly zero: from a step on, because two ways cancel, or because float16 cannot hold them."""

from __future__ import annotations

from gradscope.graph.facts import Finding
from gradscope.reports.report import Report
from tests.workshop import Workshop


def told(workshop: Workshop, source: str) -> list[Finding]:
    """The findings of a program that ends well."""
    return list(Report.of(workshop.run(source)).findings)


DIES = """
    import torch
    from torch import nn

    torch.manual_seed(1)
    body, head = nn.Linear(4, 8), nn.Linear(8, 1)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.05)
    for step in range(30):
        x = torch.randn(32, 4)
        if step == {step}:
            with torch.no_grad():
                body.bias -= 100
        h = {activation}
        loss = (head(h).squeeze(1) - x.sum(dim=1) - 3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_net_that_dies_midway_is_told_with_its_step_and_all_that_die_of_it(workshop: Workshop) -> None:
    """Behind a ReLU that is never active again, nothing learns, nor do the weights that multiply what it gives."""
    (finding,) = told(workshop, DIES.format(step=12, activation="torch.relu(body(x))"))
    assert finding.rule == "zero-gradient"
    assert "in step 13" in finding.message
    assert "in 18 steps" in finding.message
    assert finding.tensors == ("body.weight", "body.bias", "head.weight")
    assert finding.span is not None
    assert finding.span.line == 12


def test_saturation_kills_midway_as_well(workshop: Workshop) -> None:
    """The derivative of a sigmoid rounds to 0 far from 0."""
    (finding,) = told(workshop, DIES.format(step=9, activation="torch.sigmoid(body(x) * 4)"))
    assert finding.rule == "zero-gradient"
    assert {"body.weight", "body.bias"} <= set(finding.tensors)


def test_zeros_that_end_again_are_no_death(workshop: Workshop) -> None:
    """Only what stays zero to the end has died; a few zeros at the end may be one batch."""
    assert told(workshop, DIES.format(step=27, activation="torch.relu(body(x))")) == []


def test_margin_that_is_met_is_no_death(workshop: Workshop) -> None:
    """A hinge whose margin is met by all samples sends back zeros: there is nothing left to learn."""
    source = """
        import torch
        from torch import nn

        torch.manual_seed(0)
        net, other = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
        with torch.no_grad():
            net.weight.fill_(0.01)
        optimizer = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.02)
        x = torch.cat([torch.rand(20, 2) + 3, -torch.rand(20, 2) - 3])
        y = torch.cat([torch.ones(20), -torch.ones(20)])
        for _ in range(40):
            hinge = torch.relu(1 - y * net(x).squeeze(1)).mean()
            fit = (other(x).squeeze(1) - x.sin().sum(dim=1)).square().mean()
            loss = hinge + fit
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = workshop.run(source)
    received = next(tensor.received for tensor in run.tensors if tensor.name == "net.weight")
    assert received is not None
    assert 8 <= received.zeros < received.steps
    assert Report.of(run).findings == ()


LOOP = """
    import torch
    from torch import nn
    from torch.distributions import Normal

    torch.manual_seed(0)
    net, scale = nn.Linear(4, 2), nn.Linear(4, 2)
    optimizer = torch.optim.SGD([*net.parameters(), *scale.parameters()], lr=0.01)
    for _ in range(5):
        x = torch.randn(16, 4)
        mean, deviation = net(x), scale(x).exp()
        {way}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_sample_that_is_scored_with_its_history_cancels(workshop: Workshop) -> None:
    """`log_prob(rsample())` does not depend on the mean; `log_prob` of a sample without history does."""
    way = (
        "policy = Normal(mean, deviation)\n"
        "        action = policy.{draw}\n"
        "        loss = -(policy.log_prob(action).sum(1) * torch.randn(16)).mean()"
    )
    (finding,) = told(workshop, LOOP.format(way=way.format(draw="rsample()")))
    assert (finding.rule, finding.tensors) == ("zero-gradient", ("net.weight", "net.bias"))
    assert finding.span is not None
    assert finding.span.line == 13
    assert [label.span.line for label in finding.labels] == [12]
    assert "detach" in finding.help[0].message
    assert told(workshop, LOOP.format(way=way.format(draw="sample()"))) == []


def test_straight_through_estimator_needs_its_detach(workshop: Workshop) -> None:
    """`x + (round(x) - x)` is `round(x)` for the gradient too."""
    way = "loss = ((mean + (mean.round() - mean){detach}) * deviation - x[:, :2]).square().mean()"
    (finding,) = told(workshop, LOOP.format(way=way.format(detach="")))
    assert (finding.rule, finding.tensors) == ("zero-gradient", ("net.weight", "net.bias"))
    assert "x + (y - x).detach()" in finding.help[0].message
    assert told(workshop, LOOP.format(way=way.format(detach=".detach()"))) == []


def test_ratio_to_itself_cancels(workshop: Workshop) -> None:
    """The old probability of PPO is the new one in the first epoch, and must be detached from it."""
    way = (
        "score = mean.log_softmax(1)[:, 0]\n"
        "        loss = -(torch.exp(score - score{detach}) * x[:, 0]).mean() + deviation.mean()"
    )
    (finding,) = told(workshop, LOOP.format(way=way.format(detach="")))
    assert (finding.rule, finding.tensors) == ("zero-gradient", ("net.weight", "net.bias"))
    assert finding.span is not None
    assert finding.span.line == 12
    assert told(workshop, LOOP.format(way=way.format(detach=".detach()"))) == []


def test_last_bias_of_a_critic_cancels_by_design(workshop: Workshop) -> None:
    """The difference of two results of one layer does not depend on its bias: that is no mistake."""
    way = "loss = (net(x) - net(x + 1)).square().mean() + deviation.mean()"
    assert told(workshop, LOOP.format(way=way)) == []


def test_draw_of_a_normal_is_told_with_the_way_that_has_a_derivative(workshop: Workshop) -> None:
    """`torch.normal(mean, deviation)` sends back zeros whatever they are."""
    (finding,) = told(workshop, LOOP.format(way="loss = (torch.normal(mean, deviation) - x[:, :2]).square().mean()"))
    assert finding.rule == "zero-gradient"
    assert "randn_like" in finding.help[0].message


def test_gradients_that_float16_cannot_hold_are_told_as_such(workshop: Workshop) -> None:
    """A loss of 1e-8 sends gradients through float16 that are rounded to 0: no factor is to blame."""
    source = """
        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            x = torch.randn(32, 8)
            with torch.autocast("cpu", dtype=torch.float16):
                out = net(x)
            loss = ((out.float().squeeze(1) - x.sum(1)) * 1e-4).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    (finding,) = told(workshop, source)
    assert finding.rule == "zero-gradient"
    assert len(finding.tensors) == 4
    assert "rounded to 0" in finding.caret
    assert "GradScaler" in finding.help[0].message
