"""Types and devices that do not go together: where an operand came to have its own."""

from __future__ import annotations

import pytest

from tests.rules.crashes import findings, must_be
from tests.workshop import Workshop

TYPES = {
    "numpy into a layer": """
        import numpy as np

        table = torch.from_numpy(np.random.rand(20, 3))  # here
        net = nn.Linear(3, 1)
        for rows in torch.arange(20).split(5):
            net(table[rows]).sum().backward()
    """,
    "numpy by values": """
        import numpy as np

        table = torch.tensor(np.random.rand(20, 3))  # here
        net = nn.Linear(3, 1)
        for rows in torch.arange(20).split(5):
            net(table[rows]).sum().backward()
    """,
    "float labels": """
        x = torch.rand(8, 3)
        y = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0])  # here
        F.cross_entropy(nn.Linear(3, 2)(x), y).backward()
    """,
    "labels cast": """
        x, y = torch.rand(8, 3), torch.randint(2, (8,))
        F.cross_entropy(nn.Linear(3, 2)(x), y.float()).backward()  # here
    """,
    "whole numbers into a layer": """
        x = torch.randint(0, 9, (8, 3))  # here
        nn.Linear(3, 1)(x).sum().backward()
    """,
    "bytes of an image": """
        image = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)  # here
        conv = nn.Conv2d(3, 4, 3)
        conv(image).sum().backward()
    """,
    "whole target": """
        y = torch.ones(8, 1, dtype=torch.long)  # here
        F.binary_cross_entropy_with_logits(nn.Linear(3, 1)(torch.rand(8, 3)), y).backward()
    """,
    "float tokens": """
        tokens = torch.zeros(2, 5)  # here
        nn.Embedding(9, 4)(tokens).sum().backward()
    """,
    "double state": """
        rnn = nn.GRU(3, 4)
        x = torch.rand(5, 2, 3).double()  # here
        rnn(x)[0].sum().backward()
    """,
    "half model": """
        net = nn.Linear(3, 2).half()
        x = torch.rand(4, 3)  # here
        net(x).sum().backward()
    """,
    "matrix product": """
        w = torch.rand(3, 2, requires_grad=True)
        x = torch.tensor([[1, 2, 3]])  # here
        (x @ w).sum().backward()
    """,
    "mean of whole numbers": """
        losses = torch.tensor([1, 2, 3])  # here
        losses.mean()
    """,
    "mask of whole numbers": """
        scores, mask = torch.rand(3, requires_grad=True), torch.tensor([1, 0, 1])
        scores.masked_fill(mask, 0.0).sum().backward()  # here
    """,
}


@pytest.mark.parametrize("body", TYPES.values(), ids=TYPES)
def test_type_is_told_where_it_came_about(workshop: Workshop, body: str) -> None:
    """The line that made the odd operand, if a call there made it so."""
    assert must_be(workshop, "dtype-mismatch", body).help


def test_type_of_what_a_loader_gives(workshop: Workshop) -> None:
    """Nobody has seen NumPy's numbers become a tensor: then the call that refuses them is told."""
    must_be(
        workshop,
        "dtype-mismatch",
        """
        import numpy as np
        from torch.utils.data import DataLoader, TensorDataset

        x, y = np.random.rand(20, 3), np.random.randint(0, 2, 20)
        data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        net = nn.Linear(3, 2)
        for rows, labels in DataLoader(data, batch_size=5):
            F.cross_entropy(net(rows), labels).backward()  # here
        """,
    )


DEVICES = {
    "made in forward": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(3, 3)

            def forward(self, x):
                noise = torch.randn(x.shape)  # here
                return self.fc(x) + noise

        net = Net().to("meta")
        net(torch.rand(4, 3, device="meta")).sum().backward()
    """,
    "modules in a list": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(3, 3)
                self.others = [nn.LayerNorm(3) for _ in range(2)]  # here

            def forward(self, x):
                x = self.first(x)
                for other in self.others:
                    x = other(x)
                return x

        net = Net().to("meta")
        net(torch.rand(4, 3, device="meta")).sum().backward()
    """,
    "a tensor that is no buffer": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(3, 3)
                self.scale = torch.ones(3)  # here

            def forward(self, x):
                return self.fc(x) * self.scale

        net = Net().to("meta")
        net(torch.rand(4, 3, device="meta")).sum().backward()
    """,
    "data": """
        net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).to("meta")
        x = torch.rand(4, 3)
        net(x).sum().backward()  # here
    """,
    "target": """
        net = nn.Linear(3, 3).to("meta")
        x, y = torch.rand(4, 3, device="meta"), torch.rand(4, 3)
        F.mse_loss(net(x), y).backward()  # here
    """,
}


@pytest.mark.parametrize("body", DEVICES.values(), ids=DEVICES)
def test_device(workshop: Workshop, body: str) -> None:
    """What was left behind when the rest moved."""
    assert must_be(workshop, "device-mismatch", body).help


def test_caught(workshop: Workshop) -> None:
    """A program that tries a type and takes another is left alone."""
    body = """
        net = nn.Linear(3, 1)
        x = torch.rand(4, 3).double()
        try:
            loss = net(x).sum()
        except RuntimeError:
            loss = net(x.float()).sum()
        loss.backward()
    """
    assert findings(workshop, body) == ()
