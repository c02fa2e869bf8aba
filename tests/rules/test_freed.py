"""A graph that an earlier backward freed: what ties the two passes together."""

from __future__ import annotations

import pytest

from tests.rules.crashes import must_be
from tests.workshop import Workshop

FREED = {
    "hidden": """
        class Net(nn.Module):
            def __init__(s):
                super().__init__()
                s.rnn = nn.LSTM(3, 8, batch_first=True)
                s.o = nn.Linear(8, 1)

            def forward(s, x, h):
                y, h = s.rnn(x, h)
                return s.o(y), h


        net = Net()
        opt = torch.optim.Adam(net.parameters())
        h = None
        for _ in range(4):
            out, h = net(torch.randn(2, 5, 3), h)  # here
            loss = out.mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "twice": """
        net = nn.Linear(3, 1)
        opt = torch.optim.Adam(net.parameters())
        for _ in range(4):
            loss = net(torch.randn(2, 3)).square().mean()
            opt.zero_grad()
            loss.backward()  # here
            loss.backward()
            opt.step()
    """,
    "grad_then_backward": """
        net = nn.Linear(3, 1)
        opt = torch.optim.Adam(net.parameters())
        for _ in range(4):
            x = torch.randn(2, 3, requires_grad=True)
            loss = net(x).square().mean()
            opt.zero_grad()
            (g,) = torch.autograd.grad(loss, x)  # here
            print(g.norm())
            loss.backward()
            opt.step()
    """,
    "outside_loop": """
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        head = nn.Linear(4, 1)
        opt = torch.optim.Adam([*net.parameters(), *head.parameters()])
        x = torch.randn(6, 3)
        feats = net(x)  # here
        for _ in range(4):
            loss = head(feats).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "running_loss": """
        net = nn.Linear(3, 1)
        opt = torch.optim.Adam(net.parameters())
        total = 0
        for _ in range(4):
            loss = net(torch.randn(2, 3)).square().mean()
            opt.zero_grad()
            total = total + loss  # here
            total.backward()
            opt.step()
    """,
    "two_heads": """
        enc = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        a = nn.Linear(4, 1)
        b = nn.Linear(4, 1)
        opt = torch.optim.Adam([*enc.parameters(), *a.parameters(), *b.parameters()])
        for _ in range(4):
            z = enc(torch.randn(2, 3))
            opt.zero_grad()
            a(z).square().mean().backward()  # here
            b(z).square().mean().backward()
            opt.step()
    """,
    "replay_list": """
        net = nn.GRUCell(3, 4)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        buf = []
        h = torch.zeros(1, 4)
        for i in range(10):
            h = net(torch.randn(1, 3), h.detach())
            buf.append(h)  # here
            if len(buf) > 2:
                loss = (buf[-1] - buf[-2]).square().mean()
                opt.zero_grad()
                loss.backward()
                opt.step()
    """,
    "attr_state": """
        class M(nn.Module):
            def __init__(s):
                super().__init__()
                s.cell = nn.GRUCell(3, 4)
                s.h = torch.zeros(2, 4)

            def forward(s, x):
                s.h = s.cell(x, s.h)  # here
                return s.h.sum()


        m = M()
        opt = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(4):
            opt.zero_grad()
            l = m(torch.randn(2, 3))
            l.backward()
            opt.step()
    """,
    "prior_sched": """
        class Model(nn.Module):
            def __init__(s):
                super().__init__()
                s.a = nn.Parameter(torch.ones(3))
                s.l = nn.Linear(3, 1)
                s.gate = None

            def gates(s):
                if s.gate is None:
                    s.gate = torch.sigmoid(s.a)  # here
                return s.gate

            def forward(s, x):
                return s.l(x * s.gates())


        m = Model()
        opt = torch.optim.Adam(m.parameters())
        for _ in range(4):
            loss = m(torch.randn(4, 3)).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "target_bootstrap": """
        q = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        opt = torch.optim.Adam(q.parameters())
        s = torch.randn(1, 3)
        prev = q(s).max()
        for _ in range(4):
            s = torch.randn(1, 3)
            cur = q(s).max()
            loss = (prev - (1 + 0.9 * cur)).square()
            opt.zero_grad()
            loss.backward()
            opt.step()
            prev = cur  # here
    """,
    "actor_critic": """
        ac = nn.Linear(3, 2)
        cr = nn.Linear(3, 1)
        oa = torch.optim.Adam(ac.parameters())
        oc = torch.optim.Adam(cr.parameters())
        for _ in range(4):
            s = torch.randn(5, 3)
            r = torch.randn(5)
            adv = r - cr(s).squeeze(-1)
            al = -(torch.log_softmax(ac(s), -1)[:, 0] * adv).mean()
            cl = adv.square().mean()
            oa.zero_grad()
            al.backward()  # here
            oa.step()
            oc.zero_grad()
            cl.backward()
            oc.step()
    """,
    "closure": """
        w = nn.Parameter(torch.ones(3))
        opt = torch.optim.LBFGS([w], max_iter=4)
        y = torch.exp(w * 2).sum()  # here


        def closure():
            opt.zero_grad()
            loss = (y - 3).square()
            loss.backward()
            return loss


        opt.step(closure)
    """,
    "deepstep": """
        emb = nn.Embedding(4, 3)
        net = nn.Linear(3, 1)
        opt = torch.optim.SGD([*emb.parameters(), *net.parameters()], lr=0.1)
        cache = {}


        def look(i):
            if i not in cache:
                cache[i] = torch.tanh(emb(torch.tensor([i])))  # here
            return cache[i]


        order = [0, 1, 2, 3, 0, 1, 2, 3]
        for i in order:
            opt.zero_grad()
            net(look(i)).square().sum().backward()
            opt.step()
    """,
}


@pytest.mark.parametrize("case", FREED)
def test_what_ties_two_passes_together(case: str, workshop: Workshop) -> None:
    """The finding is where the tensor is kept, or at the first of two backwards that share it."""
    must_be(workshop, "freed-graph", FREED[case])
