"""Indices and classes that there are not."""

from __future__ import annotations

import pytest

from tests.rules.crashes import must_be
from tests.workshop import Workshop

WRONG = {
    "tokens": """
        class Tagger(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(20, 8)  # here

            def forward(self, words):
                return self.embed(words).mean(1)

        words = torch.tensor([[1, 5, 20], [3, 4, 0]])
        Tagger()(words).sum().backward()
    """,
    "handed in": """
        class Tagger(nn.Module):
            def __init__(self, vocabulary, size):
                super().__init__()
                self.embed = nn.Embedding(vocabulary, size)

            def forward(self, words):
                return self.embed(words).mean(1)

        tagger = Tagger(20, 8)  # here
        tagger(torch.tensor([[1, 5, 20], [3, 4, 0]])).sum().backward()
    """,
    "padding of -1": """
        table = nn.Embedding(20, 8)
        table(torch.tensor([3, 4, -1])).sum().backward()  # here
    """,
    "positions": """
        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.words, self.places = nn.Embedding(9, 4), None
                self.places = nn.Embedding(16, 4)  # here

            def forward(self, x):
                return self.words(x) + self.places(torch.arange(x.shape[1]))

        Encoder()(torch.zeros(2, 20, dtype=torch.long)).sum().backward()
    """,
    "too few classes": """
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))  # here
        y = torch.tensor([0, 3, 1, 2])
        F.cross_entropy(net(torch.rand(4, 4)), y).backward()
    """,
    "classes from 1": """
        net = nn.Linear(4, 3)
        y = torch.tensor([1, 3, 1, 2])
        nn.CrossEntropyLoss()(net(torch.rand(4, 4)), y).backward()  # here
    """,
    "ignored": """
        net = nn.Linear(4, 3)
        y = torch.tensor([1, 2, -1, 0])
        F.cross_entropy(net(torch.rand(4, 4)), y).backward()  # here
    """,
    "nll": """
        net = nn.Sequential(nn.Linear(4, 2), nn.LogSoftmax(1))  # here
        F.nll_loss(net(torch.rand(4, 4)), torch.tensor([0, 1, 2, 1])).backward()
    """,
    "gather": """
        q = nn.Linear(4, 2)(torch.rand(3, 4))
        q.gather(1, torch.tensor([[0], [2], [1]])).sum().backward()  # here
    """,
    "index_select": """
        rows = torch.rand(5, 2, requires_grad=True)
        rows.index_select(0, torch.tensor([4, 5])).sum().backward()  # here
    """,
    "brackets": """
        rows = torch.rand(5, 2, requires_grad=True)
        for place in range(6):
            rows[place].sum().backward()  # here
    """,
    "one hot": """
        F.one_hot(torch.tensor([0, 1, 3]), 3)  # here
    """,
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_told_at_the_line_of_the_cause(workshop: Workshop, body: str) -> None:
    """The module that has too few, or the call that names what there is not."""
    assert must_be(workshop, "index-range", body).help


@pytest.mark.parametrize(
    ("case", "text"), [("tokens", "21"), ("handed in", "21"), ("positions", "20"), ("too few classes", "4")]
)
def test_number_is_computed(workshop: Workshop, case: str, text: str) -> None:
    """One more than the largest number that came in."""
    (edit,) = must_be(workshop, "index-range", WRONG[case]).help[0].edits
    assert edit.text == text


def test_classes_from_one_are_told(workshop: Workshop) -> None:
    """What is proposed first is to count from 0; of few targets, class 0 may be missing by chance."""
    found = must_be(workshop, "index-range", WRONG["classes from 1"])
    assert "holds 1 to 3" in found.caret
    assert "`y - 1`" in found.help[0].message
    assert "4 classes" in found.help[1].message
