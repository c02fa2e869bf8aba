"""Refused passes and lost second derivatives: each is explained by what lies behind its own roots and inputs."""

from __future__ import annotations

import pytest

from tests.rules.crashes import findings, must_be
from tests.workshop import Workshop

REFUSED = {
    "rollout_beside_an_advantage": (
        "no-grad",
        ("actor.weight", "actor.bias"),
        """
        actor, critic = nn.Linear(4, 2), nn.Linear(4, 1)
        actor_opt = torch.optim.Adam(actor.parameters())
        critic_opt = torch.optim.Adam(critic.parameters())
        for _ in range(3):
            obs, gain = torch.randn(16, 4), torch.randn(16, 1)
            with torch.no_grad():
                policy = torch.distributions.Categorical(logits=actor(obs))  # here
                log_prob = policy.log_prob(policy.sample())
            value = critic(obs)
            advantage = (gain - value).detach().squeeze(1)
            critic_opt.zero_grad()
            (gain - value).square().mean().backward()
            critic_opt.step()
            actor_opt.zero_grad()
            (-(log_prob * advantage).mean()).backward()
            actor_opt.step()
        """,
    ),
    "whole_loss_beside_a_straight_through": (
        "no-grad",
        ("enc.weight", "enc.bias", "dec.weight", "dec.bias"),
        """
        enc, dec = nn.Linear(6, 3), nn.Linear(3, 6)
        opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], lr=0.1)
        for _ in range(3):
            x = torch.randn(8, 6)
            z = enc(x)
            out = dec(z + (z.round() - z).detach())
            with torch.no_grad():
                loss = (out - x).square().mean() + 0.1 * z.square().mean()  # here
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "prediction_beside_its_bootstrapped_target": (
        "detach",
        ("critic.0.weight", "critic.0.bias", "critic.2.weight", "critic.2.bias"),
        """
        critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        opt = torch.optim.Adam(critic.parameters())
        for _ in range(3):
            now, later, reward = torch.randn(8, 4), torch.randn(8, 4), torch.randn(8, 1)
            target = (reward + 0.9 * critic(later)).detach()
            value = critic(now).data  # here
            opt.zero_grad()
            F.smooth_l1_loss(value, target).backward()
            opt.step()
        """,
    ),
    "student_counted_beside_a_teacher_of_its_own": (
        "non-differentiable-op",
        ("net.weight", "net.bias"),
        """
        net = nn.Linear(4, 3)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.randn(8, 4)
            with torch.no_grad():
                soft = net(x + 0.1).softmax(-1)
            guess = F.one_hot(net(x).argmax(-1), 3).float()  # here
            opt.zero_grad()
            F.mse_loss(guess, soft).backward()
            opt.step()
        """,
    ),
    "adapters_of_what_was_trained_before": (
        "detach",
        ("inner.down", "inner.up"),
        """
        class Adapter(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base = base
                self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(4, 2))

            def forward(self, x):
                return (self.base(x) + x @ self.down.T @ self.up.T).detach()  # here

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

            def forward(self, x):
                return self.out(torch.relu(self.inner(x)))

        def train(parameters):
            opt = torch.optim.AdamW(parameters)
            for _ in range(3):
                loss = F.cross_entropy(model(torch.randn(8, 4)), torch.randint(0, 3, (8,)))
                opt.zero_grad()
                loss.backward()
                opt.step()

        model = Net()
        train(model.parameters())
        model.requires_grad_(False)
        model.inner = Adapter(model.inner)
        train([p for p in model.parameters() if p.requires_grad])
        """,
    ),
    "slices_of_points": (
        "unused-input",
        ("t",),
        """
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        opt = torch.optim.Adam(net.parameters())
        for _ in range(3):
            pts = torch.rand(16, 2, requires_grad=True)
            t, x = pts[:, :1], pts[:, 1:]  # here
            u = net(pts)
            u_t = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)[0]
            u_x = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]
            loss = (u_t + u * u_x).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "copy_of_an_input": (
        "unused-input",
        ("x_hat",),
        """
        net = nn.Linear(3, 1)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        x = torch.rand(8, 3)
        x_hat = x.clone().requires_grad_()  # here
        score = net(x)
        g = torch.autograd.grad(score.sum(), x_hat, create_graph=True)[0]
        (score.mean() + g.norm()).backward()
        """,
    ),
    "noise_never_used": (
        "unused-input",
        ("delta",),
        """
        net = nn.Linear(3, 1)
        x = torch.rand(8, 3)
        delta = torch.zeros(8, 3, requires_grad=True)
        adv = x + delta  # here
        loss = net(x).mean()
        g, = torch.autograd.grad(loss, [delta])
        """,
    ),
    "input_cut_off": (
        "detach",
        ("x",),
        """
        net = nn.Linear(3, 1)
        x = torch.rand(8, 3, requires_grad=True)
        y = net(x.detach() * 2)  # here
        g, = torch.autograd.grad(y.sum(), x)
        """,
    ),
    "loss_left_torch_beside_a_detached_fake": (
        "left-torch",
        ("G.weight", "G.bias"),
        """
        G, D = nn.Linear(2, 3), nn.Linear(3, 1)
        og, od = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
        for _ in range(3):
            fake = G(torch.randn(8, 2)).detach()
            d_loss = (D(torch.rand(8, 3)) - D(fake)).mean()
            od.zero_grad()
            d_loss.backward()
            od.step()
            g_loss = torch.tensor(-D(G(torch.randn(8, 2))).mean().item())  # here
            og.zero_grad()
            g_loss.backward()
            og.step()
        """,
    ),
    "policy_cut_beside_a_detached_advantage": (
        "detach",
        ("pol.weight", "pol.bias"),
        """
        pol, val = nn.Linear(2, 3), nn.Linear(2, 1)
        op, ov = torch.optim.Adam(pol.parameters()), torch.optim.Adam(val.parameters())
        for _ in range(3):
            s = torch.rand(8, 2)
            r = torch.rand(8, 1)
            adv = (r - val(s)).detach()
            logp = pol(s).log_softmax(1)[:, :1].detach()  # here
            loss = -(logp * adv).mean()
            op.zero_grad()
            loss.backward()
            op.step()
            vl = (r - val(s)).square().mean()
            ov.zero_grad()
            vl.backward()
            ov.step()
        """,
    ),
    "student_beside_a_detached_teacher": (
        "no-grad",
        ("student.weight", "student.bias"),
        """
        teacher, student = nn.Linear(2, 3), nn.Linear(2, 3)
        o = torch.optim.Adam(student.parameters())
        for _ in range(3):
            x = torch.rand(8, 2)
            t = teacher(x).detach()
            with torch.no_grad():
                s = student(x)  # here
            loss = F.mse_loss(s, t)
            o.zero_grad()
            loss.backward()
            o.step()
        """,
    ),
    "argmax_beside_a_target_network": (
        "non-differentiable-op",
        ("q.weight", "q.bias"),
        """
        q, tgt = nn.Linear(2, 3), nn.Linear(2, 3)
        o = torch.optim.Adam(q.parameters())
        for _ in range(3):
            s = torch.rand(8, 2)
            with torch.no_grad():
                y = tgt(s).max(1).values
            loss = (q(s).argmax(1).float() - y).square().mean()  # here
            o.zero_grad()
            loss.backward()
            o.step()
        """,
    ),
}

SECOND_ORDER = {
    "pinn_uxx_only": (
        "error",
        """
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        opt = torch.optim.Adam(net.parameters())
        for _ in range(3):
            x = torch.rand(16, 1, requires_grad=True)
            u = net(x)
            u_x, = torch.autograd.grad(u.sum(), x, create_graph=True)
            u_xx, = torch.autograd.grad(u_x.sum(), x)  # here
            loss = (u_xx + torch.sin(x)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "nu_uxx": (
        "error",
        """
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        nu = nn.Parameter(torch.tensor(0.5))
        opt = torch.optim.Adam([*net.parameters(), nu])
        for _ in range(3):
            x = torch.rand(16, 1, requires_grad=True)
            u = net(x)
            u_x, = torch.autograd.grad(u.sum(), x, create_graph=True)
            u_xx, = torch.autograd.grad(u_x.sum(), x)  # here
            loss = (nu * u_xx - torch.sin(x)).square().mean() + (u - x).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "nu_uxx_alone": (
        "error",
        """
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        log_nu = nn.Parameter(torch.tensor(0.5))
        opt = torch.optim.Adam([*net.parameters(), log_nu])
        for _ in range(3):
            x = torch.rand(16, 1, requires_grad=True)
            u_x, = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            u_xx, = torch.autograd.grad(u_x.sum(), x)  # here
            loss = (log_nu.exp() * u_xx - torch.sin(x)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "hessian_energy": (
        "error",
        """
        net = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1))
        scale = nn.Parameter(torch.ones(()))
        opt = torch.optim.Adam([*net.parameters(), scale])
        for _ in range(3):
            x = torch.rand(2)
            H = torch.autograd.functional.hessian(lambda q: net(q).sum(), x)  # here
            loss = (scale * H - torch.eye(2)).square().sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "jacobian_alone": (
        "error",
        """
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        opt = torch.optim.Adam(net.parameters())
        for _ in range(3):
            x = torch.rand(2)
            J = torch.autograd.functional.jacobian(net, x)  # here
            loss = 0.1 * J.square().sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "poisson_boundary": (
        "warning",
        """
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        opt = torch.optim.Adam(net.parameters())
        def residual(x):
            u = net(x)
            u_x, = torch.autograd.grad(u.sum(), x, create_graph=True)
            u_xx, = torch.autograd.grad(u_x.sum(), x)  # here
            return u_xx + torch.sin(x)
        edge = torch.tensor([[0.0], [1.0]])
        for _ in range(3):
            x = torch.rand(16, 1, requires_grad=True)
            loss = residual(x).square().mean() + net(edge).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "poisson_boundary_nox": (
        "warning",
        """
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        opt = torch.optim.Adam(net.parameters())
        for _ in range(3):
            xy = torch.rand(16, 2).requires_grad_(True)
            f = torch.sin(xy.detach()).sum(1)
            g, = torch.autograd.grad(net(xy).sum(), xy, create_graph=True)
            lap = sum(torch.autograd.grad(g[:, i].sum(), xy, retain_graph=True)[0][:, i] for i in range(2))  # here
            pde = F.mse_loss(lap, f)
            bc = F.mse_loss(net(torch.rand(4, 2).round()), torch.zeros(4, 1))
            loss = pde + 10 * bc
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
    "jacobian": (
        "warning",
        """
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        opt = torch.optim.Adam(net.parameters())
        for _ in range(3):
            x = torch.rand(2)
            J = torch.autograd.functional.jacobian(net, x)  # here
            loss = F.mse_loss(net(x), x) + 0.1 * J.square().sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    ),
}

SILENT = {
    "pinn": """
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        nu = nn.Parameter(torch.tensor(0.5))
        opt = torch.optim.Adam([*net.parameters(), nu])
        for _ in range(3):
            x = torch.rand(16, 1, requires_grad=True)
            u = net(x)
            u_x, = torch.autograd.grad(u.sum(), x, create_graph=True)
            u_xx, = torch.autograd.grad(u_x.sum(), x, create_graph=True)
            loss = (nu * u_xx - torch.sin(x)).square().mean() + (u - x).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    "weights": """
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        temp = nn.Parameter(torch.ones(()))
        opt = torch.optim.Adam([*net.parameters(), temp])
        for _ in range(3):
            x = torch.rand(16, 2, requires_grad=True)
            y = net(x)
            g, = torch.autograd.grad(y.sum(), x, retain_graph=True)
            w = g.norm(dim=1, keepdim=True)
            loss = (w / w.sum() * (temp * y - 1).square()).sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    "fgsm": """
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        eps = nn.Parameter(torch.ones(()))
        opt = torch.optim.Adam([*net.parameters(), eps])
        for _ in range(3):
            x = torch.rand(16, 2, requires_grad=True)
            g, = torch.autograd.grad(net(x).square().mean(), x)
            adv = x.detach() + 0.1 * g / g.norm()
            loss = (eps * net(adv) - 1).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
    "langevin": """
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        opt = torch.optim.Adam(net.parameters())
        for _ in range(3):
            x = torch.rand(16, 2, requires_grad=True)
            for _ in range(2):
                g, = torch.autograd.grad(net(x).sum(), x)
                x = (x - 0.1 * g + 0.01 * torch.randn_like(x)).detach().requires_grad_()
            loss = net(torch.rand(16, 2)).mean() - net(x).mean() + x.square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        """,
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_pass(case: str, workshop: Workshop) -> None:
    """What torch refuses is blamed on what cut off its own roots or inputs, whatever other losses detach."""
    rule, tensors, body = REFUSED[case]
    assert must_be(workshop, rule, body).tensors == tensors


@pytest.mark.parametrize("case", SECOND_ORDER)
def test_second_order(case: str, workshop: Workshop) -> None:
    """A derivative without a graph that a loss is computed from is told, though other losses train the same tensors."""
    severity, body = SECOND_ORDER[case]
    found = must_be(workshop, "missing-create-graph", body, severity)
    assert sum(name.endswith(("0.weight", "0.bias", "2.weight", "2.bias")) for name in found.tensors) == 4


@pytest.mark.parametrize("case", SILENT)
def test_gradients_that_are_no_residuals(case: str, workshop: Workshop) -> None:
    """Gradients with a graph, those that weight a loss, and those that move inputs are meant as they are."""
    assert findings(workshop, SILENT[case]) == ()


def test_input_dies_where_another_is_taken(workshop: Workshop) -> None:
    """Where what is computed from an input is passed by, that which takes another in its stead is shown."""
    body = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 2)

            def forward(self, ids):
                self.hidden = self.embed(ids)
                return self.score(self.hidden)

            def score(self, hidden):
                return self.head(self.hidden)  # here


        net = Net()
        ids = torch.arange(4)
        net(ids)
        shift = torch.zeros(4, 3, requires_grad=True)
        loss = net.score(net.hidden + shift).square().mean()
        torch.autograd.grad(loss, shift)
        """
    found = must_be(workshop, "unused-input", body)
    assert found.tensors == ("shift",)
    assert [label.message for label in found.labels] == [
        "what is computed from `shift` here is never used",
        "so torch raises RuntimeError here",
    ]
