"""A saved tensor that is changed: the line that changed it."""

from __future__ import annotations

import pytest

from tests.rules.crashes import must_be
from tests.workshop import Workshop

CHANGED = {
    "view_helper": """
        def mask_(t):
            t.view(-1)[0] = 0  # here
            return t


        net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            h = net(torch.randn(8, 4))
            mask_(h)
            loss = h.mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "softmax_mul": """
        net = nn.Linear(4, 4)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            p = net(torch.randn(8, 4)).softmax(-1)
            p.mul_(0.9).add_(0.025)  # here
            loss = -p.log().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "weight_clip_nograd": """
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.randn(8, 4)).mean()
            with torch.no_grad():
                for p in net.parameters():
                    p.clamp_(-0.1, 0.1)  # here
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "buffer": """
        class Roll(nn.Module):
            def __init__(s):
                super().__init__()
                s.l = nn.Linear(4, 4)
                s.register_buffer("mem", torch.zeros(8, 4))

            def forward(s, x):
                out = 0
                for t in range(3):
                    h = s.l(x) * s.mem
                    out = out + h
                    s.mem[t] = 1.0  # here
                return out


        net = Roll()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.randn(8, 4)).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "gan_step": """
        G = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        D = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        og = torch.optim.Adam(G.parameters())
        od = torch.optim.Adam(D.parameters())
        for _ in range(3):
            real = torch.randn(8, 2)
            fake = G(torch.randn(8, 2))
            score = D(fake)
            dl = score.mean() - D(real).mean()
            od.zero_grad()
            dl.backward(retain_graph=True)
            od.step()  # here
            gl = -score.mean()
            og.zero_grad()
            gl.backward()
            og.step()
    """,
    "detach_alias": """
        net = nn.Linear(4, 4)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            h = torch.sigmoid(net(torch.randn(8, 4)))
            stats = h.detach()
            stats.sub_(stats.mean())  # here
            loss = h.mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "ppo_epochs": """
        pi = nn.Linear(4, 4)
        opt = torch.optim.Adam(pi.parameters())
        x = torch.randn(8, 4)
        out = torch.tanh(pi(x)).square() @ pi.weight
        for _ in range(3):
            loss = out.mean()
            opt.zero_grad()
            loss.backward(retain_graph=True)
            opt.step()  # here
    """,
    "fill_list": """
        net = nn.Linear(1, 1)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            traj = torch.zeros(6)
            traj[0] = 1.0
            for t in range(5):
                traj[t + 1] = traj[t] * net(torch.ones(1, 1)).squeeze()  # here
            loss = traj.sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "custom_fn": """
        class E(torch.autograd.Function):
            @staticmethod
            def forward(ctx, a):
                r = a.exp()
                ctx.save_for_backward(r)
                return r

            @staticmethod
            def backward(ctx, g):
                return g * ctx.saved_tensors[0]


        net = nn.Linear(4, 4)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            y = E.apply(net(torch.randn(8, 4)))
            y[:, 0] = 0  # here
            loss = y.mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "ema_swap": """
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        ema = [p.detach().clone() for p in net.parameters()]
        opt = torch.optim.SGD(net.parameters(), lr=0.1)


        def swap():
            with torch.no_grad():
                for p, e in zip(net.parameters(), ema):
                    p.copy_(e)  # here


        for _ in range(3):
            loss = net(torch.randn(8, 4)).mean()
            swap()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
}


@pytest.mark.parametrize("case", CHANGED)
def test_line_that_changed_a_saved_tensor(case: str, workshop: Workshop) -> None:
    """The finding is at the change, and labels tell who saved the tensor and which backward met it."""
    found = must_be(workshop, "inplace-modified", CHANGED[case])
    assert any("saves" in label.message for label in found.labels)
    assert any("torch raises RuntimeError" in label.message for label in found.labels)


@pytest.mark.parametrize(("case", "way"), [("fill_list", "`torch.stack`"), ("softmax_mul", "to a new tensor")])
def test_help_follows_the_way_of_writing(case: str, way: str, workshop: Workshop) -> None:
    """Who writes into parts of a tensor is told to make it of parts; who changes a whole one, to make a new one."""
    found = must_be(workshop, "inplace-modified", CHANGED[case])
    assert way in found.help[0].message


def test_it_is_called_as_at_the_line_that_changes_it(workshop: Workshop) -> None:
    """A tensor that is `h` where it is overwritten, and bears another name where the program ended."""
    found = must_be(
        workshop,
        "inplace-modified",
        """
        cell = nn.Linear(3, 3)

        def roll():
            h = torch.zeros(2, 3)
            for k in (0, 1, 0):
                h[k] = torch.tanh(cell(h[k]))  # here
            return h

        last = roll()
        last.sum().backward()
        """,
    )
    assert found.tensors == ("h",)
