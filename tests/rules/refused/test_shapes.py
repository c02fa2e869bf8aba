"""Sizes that do not go together: the line that fixed the wrong one."""

from __future__ import annotations

import pytest

from tests.rules.crashes import findings, must_be
from tests.workshop import Workshop

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")  # torch says so before it refuses

WRONG = {
    "flatten into linear": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 6, 5)
                self.fc1 = nn.Linear(6 * 12 * 12, 20)  # here
                self.fc2 = nn.Linear(20, 10)

            def forward(self, x):
                x = F.max_pool2d(F.relu(self.conv(x)), 2)
                x = torch.flatten(x, 1)
                return self.fc2(F.relu(self.fc1(x)))

        Net()(torch.rand(2, 3, 32, 32)).sum().backward()
    """,
    "layers in a row": """
        net = nn.Sequential(
            nn.Linear(13, 32),
            nn.ReLU(),
            nn.Linear(64, 1),  # here
        )
        net(torch.rand(8, 13)).sum().backward()
    """,
    "features of the data": """
        table = torch.rand(40, 7)
        net = nn.Linear(in_features=8, out_features=1)  # here
        net(table[:10]).sum().backward()
    """,
    "a number handed in": """
        class Net(nn.Module):
            def __init__(self, size, hidden):
                super().__init__()
                self.first = nn.Linear(size, hidden)

            def forward(self, x):
                return self.first(x)

        net = Net(12, 5)  # here
        net(torch.rand(8, 13)).sum().backward()
    """,
    "channels of an image": """
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())  # here
        net(torch.rand(4, 1, 28, 28)).sum().backward()
    """,
    "channels of the second convolution": """
        one = nn.Conv1d(4, 8, 3)
        two = nn.Conv1d(16, 8, 3)  # here
        two(one(torch.rand(2, 4, 20))).sum().backward()
    """,
    "batch norm": """
        conv, norm = nn.Conv2d(3, 16, 3), None
        norm = nn.BatchNorm2d(32)  # here
        norm(conv(torch.rand(2, 3, 8, 8))).sum().backward()
    """,
    "batch norm of another kind": """
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm2d(8), nn.ReLU())  # here
        net(torch.rand(5, 4)).sum().backward()
    """,
    "layer norm": """
        norm = nn.LayerNorm(32)  # here
        norm(torch.rand(2, 5, 16)).sum().backward()
    """,
    "lstm": """
        class Tagger(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(20, 16)
                self.lstm = nn.LSTM(32, 8, batch_first=True)  # here

            def forward(self, words):
                out, _ = self.lstm(self.embed(words))
                return out

        Tagger()(torch.randint(20, (3, 7))).sum().backward()
    """,
    "not flattened": """
        net = nn.Sequential(nn.Linear(28 * 28, 10))
        images = torch.rand(5, 1, 28, 28)
        net(images).sum().backward()  # here
    """,
    "channels last": """
        conv = nn.Conv2d(3, 8, 3)
        conv(torch.rand(2, 16, 20, 3)).sum().backward()  # here
    """,
    "embedding into conv1d": """
        table, conv = nn.Embedding(50, 12), nn.Conv1d(12, 4, 3)
        conv(table(torch.randint(50, (2, 9)))).sum().backward()  # here
    """,
    "no channel": """
        conv = nn.Conv2d(1, 8, 3)
        conv(torch.rand(6, 28, 28)).sum().backward()  # here
    """,
    "view of the wrong size": """
        x = torch.rand(4, 8, 5, 5)
        x.view(-1, 8 * 6 * 6).sum()  # here
    """,
    "view of the last batch": """
        batch_size = 8
        for x in torch.rand(12, 6).split(batch_size):
            x.view(batch_size, 3, 2).sum()  # here
    """,
    "view of what was turned round": """
        x = torch.rand(4, 3, 2, requires_grad=True)
        x.transpose(1, 2).view(4, 6).sum().backward()  # here
    """,
    "view that mixes samples": """
        conv, fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 5 * 5, 10)

        def model(x):
            x = F.max_pool2d(conv(x), 2)
            x = x.view(-1, 4 * 5 * 5)  # here
            return fc(x)

        y = torch.randint(10, (6,))
        F.cross_entropy(model(torch.rand(6, 1, 22, 22)), y).backward()
    """,
    "target that is not flattened": """
        logits, words = torch.rand(4, 7, 11, requires_grad=True), torch.randint(11, (4, 7))
        F.cross_entropy(logits.view(-1, 11), words).backward()  # here
    """,
    "classes last": """
        logits, words = torch.rand(4, 7, 11, requires_grad=True), torch.randint(11, (4, 7))
        F.cross_entropy(logits, words).backward()  # here
    """,
    "target with an axis": """
        logits, y = nn.Linear(3, 2)(torch.rand(8, 3)), torch.randint(2, (8, 1))
        F.cross_entropy(logits, y).backward()  # here
    """,
    "binary target without the axis": """
        net = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
        loss = nn.BCELoss()
        loss(net(torch.rand(8, 3)), torch.ones(8)).backward()  # here
    """,
    "outputs of the last layer": """
        net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))  # here
        F.mse_loss(net(torch.rand(8, 3)), torch.rand(8, 4)).backward()
    """,
    "cat": """
        up, skip = torch.rand(2, 4, 15, 15), torch.rand(2, 4, 16, 16)
        torch.cat([up, skip], dim=1).sum()  # here
    """,
    "stack": """
        rows = [torch.rand(3), torch.rand(4)]
        torch.stack(rows).sum()  # here
    """,
    "residual": """
        one = nn.Linear(4, 8)
        x = torch.rand(3, 4)
        (x + one(x)).sum().backward()  # here
    """,
    "positions": """
        class Embed(nn.Module):
            def __init__(self):
                super().__init__()
                self.position = nn.Parameter(torch.zeros(1, 16, 8))  # here

            def forward(self, x):
                return x + self.position

        Embed()(torch.rand(2, 20, 8)).sum().backward()
    """,
    "matrix product": """
        w = torch.rand(5, 3, requires_grad=True)
        (torch.rand(8, 3) @ w).sum().backward()  # here
    """,
    "state with a fixed batch": """
        rnn = nn.GRU(4, 6, batch_first=True)
        state = torch.zeros(1, 16, 6)  # here
        for x in torch.rand(24, 5, 4).split(16):
            out, _ = rnn(x, state)
            out.sum().backward()
    """,
    "batch_first": """
        rnn = nn.LSTM(4, 6)  # here
        x = torch.rand(16, 5, 4)
        start = torch.zeros(1, 16, 6), torch.zeros(1, 16, 6)
        rnn(x, start)[0].sum().backward()
    """,
    "under no_grad": """
        net = nn.Linear(3, 2)  # here
        with torch.no_grad():
            net(torch.rand(4, 5))
    """,
    "in a loss of one's own": """
        def score(a, b):
            return (a - b).abs().mean()  # here

        score(nn.Linear(3, 4)(torch.rand(5, 3)), torch.rand(5, 3)).backward()
    """,
    "attention": """
        attention = nn.MultiheadAttention(16, 2, batch_first=True)  # here
        x = torch.rand(2, 5, 12)
        attention(x, x, x)[0].sum().backward()
    """,
    "batch of one": """
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        net(torch.rand(1, 3)).sum().backward()  # here
    """,
    "mask": """
        x = torch.rand(4, 3)
        x[torch.tensor([True, False, True])].sum()  # here
    """,
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_told_at_the_line_of_the_cause(workshop: Workshop, body: str) -> None:
    """The constructor that fixed the number, the view that mixed the samples, or else the operation."""
    assert must_be(workshop, "shape-mismatch", body).help


MENDS = {
    "flatten into linear": "nn.Linear(6 * 14 * 14, 20)",
    "layers in a row": "nn.Linear(32, 1)",
    "features of the data": "in_features=7",
    "a number handed in": "Net(13, 5)",
    "channels of an image": "nn.Conv2d(1, 8, 3)",
    "channels of the second convolution": "nn.Conv1d(8, 8, 3)",
    "lstm": "nn.LSTM(16, 8",
    "view of the wrong size": "x.view(-1, 8 * 5 * 5)",
    "view of the last batch": "x.view(-1, 3, 2)",
    "view that mixes samples": "x.view(-1, 4 * 10 * 10)",
    "outputs of the last layer": "nn.Linear(8, 4)",
}


@pytest.mark.parametrize("case", MENDS)
def test_mend_is_computed(workshop: Workshop, case: str) -> None:
    """The edit puts the number there that fits what came in."""
    found = must_be(workshop, "shape-mismatch", WRONG[case])
    (edit,) = found.help[0].edits
    assert edit.span.line == edit.span.end_line
    lines = (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()
    line = lines[edit.span.line - 1]
    mended = line[: (edit.span.column or 0) - 1] + edit.text + line[(edit.span.end_column or 0) - 1 :]
    assert MENDS[case] in mended


def test_shapes_on_the_way_are_told(workshop: Workshop) -> None:
    """From the data to what was refused."""
    found = must_be(workshop, "shape-mismatch", WRONG["flatten into linear"])
    assert any("3x32x32 -> conv2d 2x6x28x28 -> relu" in fact and "-/- linear" in fact for fact in found.facts)


SILENT = {
    "caught": """
        net = nn.Linear(3, 2)
        try:
            net(torch.rand(4, 5))
        except RuntimeError:
            pass
        raise ValueError("to match target batch_size")
    """,
    "words of the program's own": """
        class Net(nn.Module):
            def forward(self, x):
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x5 and 3x2)")

        Net()(torch.rand(4, 5))
    """,
    "caught and mended": """
        w = torch.rand(3, 2, requires_grad=True)
        try:
            torch.rand(4, 5) @ w
        except RuntimeError:
            loss = (torch.rand(4, 3) @ w).sum()
        loss.backward()
    """,
}


@pytest.mark.parametrize("body", SILENT.values(), ids=SILENT)
def test_silent(workshop: Workshop, body: str) -> None:
    """What the program has caught, or has said itself, is no call that torch refused."""
    assert findings(workshop, body) == ()
