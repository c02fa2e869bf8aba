"""What steps changed is written over before the next ones, or only for a while, or with a part of it."""

from __future__ import annotations

import pytest

from tests.rules.training import NET, judge
from tests.workshop import Workshop

LOST = {
    "initialised in each epoch": """
        def init(m):
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)  # here
                nn.init.zeros_(m.bias)
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for epoch in range(5):
            net.apply(init)
            fit(net, optimizer, 3)
        """,
    "an old state is loaded": """
        net = Net()
        best = copy.deepcopy(net.state_dict())
        optimizer = SGD(net.parameters(), lr=0.01)
        for epoch in range(5):
            fit(net, optimizer, 4)
            net.load_state_dict(best)  # here
        """,
    "a loop over data": """
        net = Net()
        start = [p.detach().clone() for p in net.parameters()]
        optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9)
        for epoch in range(6):
            for p, s in zip(net.parameters(), start):
                p.data = s.clone()  # here
            fit(net, optimizer, 3)
        """,
}
SILENT = {
    "averages for a while": """
        net = Net()
        average = copy.deepcopy(net)
        optimizer = SGD(net.parameters(), lr=0.01)
        for epoch in range(5):
            fit(net, optimizer, 3)
            with torch.no_grad():
                for a, p in zip(average.parameters(), net.parameters()):
                    a.lerp_(p, 0.01)
            own = copy.deepcopy(net.state_dict())
            net.load_state_dict(average.state_dict())
            with torch.no_grad():
                loss_of(net)
            net.load_state_dict(own)
        """,
    "lookahead": """
        net = Net()
        slow = [p.detach().clone() for p in net.parameters()]
        optimizer = SGD(net.parameters(), lr=0.01)
        for epoch in range(6):
            fit(net, optimizer, 4)
            with torch.no_grad():
                for s, p in zip(slow, net.parameters()):
                    s.add_(p - s, alpha=0.5)
                    p.copy_(s)
        """,
    "reptile": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for task in range(6):
            before = copy.deepcopy(net.state_dict())
            fit(net, optimizer, 4)
            after = net.state_dict()
            net.load_state_dict({name: before[name] + 0.1 * (after[name] - before[name]) for name in before})
        """,
    "sharpness": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for step in range(12):
            optimizer.zero_grad()
            loss_of(net).backward()
            with torch.no_grad():
                old = [p.clone() for p in net.parameters()]
                for p in net.parameters():
                    p.copy_(p + 0.01 * p.grad)
            optimizer.zero_grad()
            loss_of(net).backward()
            with torch.no_grad():
                for p, o in zip(net.parameters(), old):
                    p.copy_(o)
            optimizer.step()
        """,
    "a round of each task": """
        net = Net()
        start = copy.deepcopy(net.state_dict())
        for task in range(6):
            net.load_state_dict(start)
            fit(net, SGD(net.parameters(), lr=0.01), 4)
        """,
    "put back with the state of the optimizer": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        start, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
        for sample in range(6):
            fit(net, optimizer, 3)
            net.load_state_dict(start)
            optimizer.load_state_dict(state)
        """,
    "projected": """
        delta = torch.zeros(4, requires_grad=True)
        net = Net()
        optimizer = SGD([delta], lr=1.0, maximize=True)
        for step in range(20):
            optimizer.zero_grad()
            net(torch.ones(8, 4) + delta).sum().backward()
            optimizer.step()
            delta.data = delta.data.clamp(-0.1, 0.1)
        """,
    "to its best twice": """
        net = Net()
        best = copy.deepcopy(net.state_dict())
        optimizer = SGD(net.parameters(), lr=0.01)
        for epoch in range(8):
            fit(net, optimizer, 3)
            if epoch in (2, 5):
                net.load_state_dict(best)
        """,
}


@pytest.mark.parametrize("program", LOST.values(), ids=LOST)
def test_progress_that_is_written_over(program: str, workshop: Workshop) -> None:
    """The line that writes is told, with all that it takes the progress of."""
    judge(workshop, program).must_be("overwritten-update", "warning", NET)


@pytest.mark.parametrize("program", SILENT.values(), ids=SILENT)
def test_writes_that_keep_progress(program: str, workshop: Workshop) -> None:
    """Values that are put back, mixed, projected, or begun anew on purpose, lose nothing."""
    judge(workshop, program).must_be_silent()
