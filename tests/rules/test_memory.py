"""Programs that keep graphs alive from step to step, and programs that only look so."""

from __future__ import annotations

import pytest

from tests.rules.training import judge
from tests.workshop import Workshop

GROWING = {
    "running_sum": (
        ("total",),
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        total = 0.0
        for _ in range(10):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss  # here
        """,
    ),
    "sum_in_a_tensor": (
        ("total",),
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        total = torch.zeros(())
        for _ in range(10):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total = total + loss / 10  # here
        """,
    ),
    "running_average_of_a_state": (
        ("average",),
        """
        cell, head = nn.GRUCell(4, 6), nn.Linear(6, 1)
        optimizer = Adam([*cell.parameters(), *head.parameters()], lr=0.01)
        h, average = torch.zeros(2, 6), torch.zeros(2, 6)
        for _ in range(10):
            h = cell(torch.randn(2, 4), h.detach())
            average = 0.9 * average + 0.1 * h  # here
            optimizer.zero_grad()
            head(h).square().mean().backward()
            optimizer.step()
        """,
    ),
    "sum_in_an_object": (
        ("sum",),
        """
        class Meter:
            def __init__(self):
                self.sum = 0.0

            def update(self, value):
                self.sum = self.sum + value  # here

        net, meter = Net(), Meter()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(10):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meter.update(loss)
        """,
    ),
    "hidden_state_under_retained_graphs": (
        ("h",),
        """
        cell, head = nn.RNNCell(4, 6), nn.Linear(6, 1)
        optimizer = SGD(head.parameters(), lr=0.01)
        cell.requires_grad_(True)
        h = torch.zeros(2, 6)
        for _ in range(10):
            h = cell(torch.randn(2, 4), h)  # here
            optimizer.zero_grad()
            head(h).square().mean().backward(inputs=list(head.parameters()), retain_graph=True)
            optimizer.step()
        """,
    ),
    "state_in_a_dict_in_evaluation": (
        ("carry['state'][0]", "carry"),
        """
        class Tagger(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.out = nn.LSTM(4, 6), nn.Linear(6, 1)

            def forward(self, x, state=None):
                h, state = self.lstm(x, state)
                return {"y": self.out(h), "state": state}

        net = Tagger()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(2, 3, 4))["y"].square().mean().backward()
            optimizer.step()
        carry = {"state": None}
        for _ in range(30):
            out = net(torch.rand(2, 3, 4), carry["state"])  # here
            carry["state"] = out["state"]
        """,
    ),
    "list_of_outputs": (
        ("kept[16]", "kept"),
        """
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        optimizer = Adam(net.parameters(), lr=0.01)
        kept = []
        for _ in range(20):
            fit(net, optimizer, 1)
            kept.append(net(data()[0]))  # here
        """,
    ),
    "dict_of_outputs": (
        ("kept[16]", "kept"),
        """
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        optimizer = SGD(net.parameters(), lr=0.01)
        kept = {}
        for i in range(20):
            fit(net, optimizer, 1)
            out = net(data()[0])
            kept[i] = out  # here
        """,
    ),
    "attribute_of_a_trainer": (
        ("history", "self.history"),
        """
        class Trainer:
            def __init__(self):
                self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
                self.optimizer = Adam(self.net.parameters(), lr=0.01)
                self.history = {"outputs": [], "losses": []}

            def step(self, x, y):
                out = self.net(x)
                loss = F.mse_loss(out, y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.history["losses"].append(loss.item())
                self.note(out, y)

            def note(self, out, y):
                self.history["outputs"] += [(out, y)]  # here

        trainer = Trainer()
        for _ in range(20):
            trainer.step(*data())
        """,
    ),
    "list_of_an_epoch": (
        ("outputs[43]", "outputs"),
        """
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        optimizer = Adam(net.parameters(), lr=0.01)
        for epoch in range(2):
            outputs = []
            for _ in range(45):
                fit(net, optimizer, 1)
                out = net(data()[0])
                outputs.append(out)  # here
            mean = torch.stack(outputs).mean().item()
        """,
    ),
    "list_that_a_hook_fills": (
        ("kept",),
        """
        def train():
            net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
            kept = []
            net[1].register_forward_hook(lambda module, inputs, output: kept.append(output))  # here
            fit(net, SGD(net.parameters(), lr=0.01), 20)

        train()
        """,
    ),
    "gradients_with_their_graphs": (
        ("v", "v.grad"),
        """
        for _ in range(14):
            w = torch.randn(4, requires_grad=True)
            v = torch.randn(4, requires_grad=True)
            optimizer = SGD([v], lr=0.01)
            (w * w * v).sum().backward(create_graph=True)  # here
            optimizer.step()
        """,
    ),
}


@pytest.mark.parametrize("case", GROWING)
def test_graphs_that_grow(case: str, workshop: Workshop) -> None:
    """A sum, a state, a list or a gradient that holds the graphs of all steps is shown where it is computed."""
    tensors, program = GROWING[case]
    found = judge(workshop, program)
    finding = found.must_be("graph-growth", "warning", tensors)
    assert "everything that these graphs saved stays in memory" in finding.facts[0]


def test_growth_is_counted(workshop: Workshop) -> None:
    """The headline says through how many steps the graph leads, and how many results are alive."""
    total = judge(workshop, GROWING["running_sum"][1]).findings[0]
    kept = judge(workshop, GROWING["dict_of_outputs"][1]).findings[0]
    assert total.message.startswith("the graph behind `total` grows: it leads through ")
    assert kept.message == "`kept[16]` is kept with its graph: those of 17 steps are alive at once"


def test_state_carried_through_calls_without_training(workshop: Workshop) -> None:
    """In a stream that nobody trains, a state that is carried on grows with every call of the module."""
    found = judge(
        workshop,
        """
        cell = nn.GRUCell(4, 6)
        h = torch.zeros(1, 6)
        head = nn.Linear(6, 1)
        for _ in range(40):
            h = cell(torch.randn(1, 4), h)  # here
            y = head(h)
        print(h.sum().item())
        """,
    )
    found.must_be("graph-growth", "warning", ("h",))


BOUNDED = {
    "sum_of_numbers": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        total, detached, history = 0.0, torch.zeros(()), []
        for _ in range(20):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            detached = detached + loss.detach()
            history.append(loss.detach())
        mean = torch.stack(history).mean()
    """,
    "losses_after_backward": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        history = []
        for _ in range(20):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss)
        mean = sum(history) / 20
    """,
    "sum_under_no_grad": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        total = torch.zeros(())
        for _ in range(20):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                total += loss
    """,
    "accumulated_loss": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            total = 0.0
            for _ in range(10):
                total = total + loss_of(net)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    """,
    "state_carried_detached": """
        cell, head = nn.GRUCell(4, 6), nn.Linear(6, 1)
        optimizer = Adam([*cell.parameters(), *head.parameters()], lr=0.01)
        h = torch.zeros(2, 6)
        for _ in range(20):
            h = cell(torch.randn(2, 4), h.detach())
            optimizer.zero_grad()
            head(h).square().mean().backward()
            optimizer.step()
    """,
    "truncated_backpropagation": """
        cell, head = nn.LSTMCell(4, 6), nn.Linear(6, 1)
        optimizer = Adam([*cell.parameters(), *head.parameters()], lr=0.01)
        state = torch.zeros(2, 6), torch.zeros(2, 6)
        for _ in range(8):
            state = tuple(part.detach() for part in state)
            loss = 0.0
            for _ in range(10):
                state = cell(torch.randn(2, 4), state)
                loss = loss + head(state[0]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """,
    "backpropagation_through_time": """
        cell, head = nn.GRUCell(4, 6), nn.Linear(6, 1)
        optimizer = Adam([*cell.parameters(), *head.parameters()], lr=0.01)
        for _ in range(5):
            h = torch.zeros(2, 6)
            for _ in range(25):
                h = cell(torch.randn(2, 4), h)
            optimizer.zero_grad()
            head(h).square().mean().backward()
            optimizer.step()
        h = torch.zeros(2, 6)
        for _ in range(50):
            h = cell(torch.randn(2, 4), h)
    """,
    "forecast": """
        net = nn.Linear(4, 4)
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            F.mse_loss(net(x), 0.5 * x).backward()
            optimizer.step()
        x = torch.randn(1, 4)
        for _ in range(10):
            x = net(x)
        shown = x.detach()
    """,
    "bounded_queue": """
        from collections import deque

        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        latest = deque(maxlen=3)
        for _ in range(20):
            fit(net, optimizer, 1)
            latest.append(net(data()[0]))
    """,
    "queue_of_detached_keys": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        keys = torch.zeros(16, 6)
        for _ in range(20):
            x, y = data(4)
            hidden = net.body(x)
            optimizer.zero_grad()
            ((hidden @ keys.t()).mean() + F.mse_loss(net.head(hidden), y)).backward()
            optimizer.step()
            keys = torch.cat([keys[4:], hidden.detach()])
    """,
    "result_reused": """
        net = Net()
        optimizer = SGD(net.head.parameters(), lr=0.01)
        x, y = data()
        hidden = net.body(x)
        for _ in range(20):
            optimizer.zero_grad()
            F.mse_loss(net.head(hidden), y).backward(inputs=list(net.head.parameters()), retain_graph=True)
            optimizer.step()
    """,
    "average_of_weights": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        shadow = [p.detach().clone() for p in net.parameters()]
        for _ in range(20):
            fit(net, optimizer, 1)
            shadow = [0.9 * a + 0.1 * p.detach() for a, p in zip(shadow, net.parameters())]
    """,
    "double_backward_without_grad": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(20):
            x, y = data()
            x.requires_grad_()
            out = net(x)
            slope = torch.autograd.grad(out.sum(), x, create_graph=True)[0]
            optimizer.zero_grad()
            (F.mse_loss(out, y) + slope.square().mean()).backward()
            optimizer.step()
    """,
    "log_probabilities_of_an_episode": """
        actor, critic = nn.Linear(4, 2), nn.Linear(4, 1)
        for_actor, for_critic = SGD(actor.parameters(), lr=0.01), SGD(critic.parameters(), lr=0.01)
        chosen, sums = [], []
        for step in range(95):
            x, y = data()
            chosen.append(actor(x).log_softmax(1)[:, 0])
            sums.append(chosen[-1].mean())
            for_critic.zero_grad()
            F.mse_loss(critic(x), y).backward()
            for_critic.step()
            if step % 10 == 9:
                for_actor.zero_grad()
                (-torch.stack(sums).mean()).backward()
                for_actor.step()
                chosen, sums = [], []
    """,
    "log_probabilities_of_long_episodes": """
        actor, critic = nn.Linear(4, 2), nn.Linear(4, 1)
        for_actor, for_critic = SGD(actor.parameters(), lr=0.01), SGD(critic.parameters(), lr=0.01)
        for steps in (70, 68):
            chosen = []
            for _ in range(steps):
                x, y = data()
                chosen.append(actor(x).log_softmax(1)[:, 0].mean())
                for_critic.zero_grad()
                F.mse_loss(critic(x), y).backward()
                for_critic.step()
            for_actor.zero_grad()
            (-torch.stack(chosen).mean()).backward()
            for_actor.step()
    """,
    "outputs_without_history": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        kept = []
        for _ in range(20):
            fit(net, optimizer, 1)
            with torch.no_grad():
                kept.append(net(data()[0]))
    """,
}


@pytest.mark.parametrize("case", BOUNDED)
def test_bounded_graphs_are_silent(case: str, workshop: Workshop) -> None:
    """Detached states, bounded queues, unrolled loops and numbers draw nothing."""
    judge(workshop, BOUNDED[case]).must_be_silent()
