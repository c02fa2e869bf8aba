"""The row of an embedding that `padding_idx` names: one like the others, or padding indeed."""

from __future__ import annotations

import pytest

from tests.rules.training import judge
from tests.workshop import Workshop

PROGRAM = """
class Tagger(nn.Module):
    def __init__(self, words=6):
        super().__init__()
        self.words = nn.Embedding({made})  # here
        self.out = nn.Linear(5, 1)

    def forward(self, x):
        {mask}
        return self.out(self.words(x)){after}

torch.manual_seed(1)
net = Tagger()
optimizer = SGD(net.parameters(), lr=0.01)
for step in range(4):
    x = {index}
    optimizer.zero_grad()
    (net(x) - 1).square().mean().backward()
    optimizer.step()
"""
TAIL = "torch.tensor([[1, 2, 3, 4], [5, 4, 3, 2], [3, 1, 0, 0], [2, 5, 1, 0]])"


def program(index: str, made: str = "words, 5, padding_idx=0", mask: str = "", after: str = "") -> str:
    """A tagger that is asked for these words."""
    return PROGRAM.format(index=index, made=made, mask=mask or "pass", after=after)


@pytest.mark.parametrize(
    "index",
    [
        "torch.randint(6, (12, 8))",
        "torch.randperm(24) % 6",
        "(torch.randperm(24) % 6).unsqueeze(1)",
    ],
    ids=["words of sentences", "a class for each sample", "a column"],
)
def test_a_row_like_the_others(index: str, workshop: Workshop) -> None:
    """It stands between others, as often as these: the constructor is told."""
    judge(workshop, program(index)).must_be("padding-row", "warning", ("words.weight",))


@pytest.mark.parametrize(
    ("index", "more"),
    [
        (TAIL, {}),
        (TAIL + ".flip(1)", {}),
        (TAIL + ".view(-1)", {}),
        ("torch.randint(6, (12, 8))", {"mask": "mask = (x != 0).unsqueeze(-1)", "after": " * mask"}),
        ("torch.randint(6, (12, 8))", {"made": "words + 1, 5, padding_idx=0"}),
        ("torch.randint(6, (12, 8))", {"made": "words, 5"}),
        ("torch.randint(1, 6, (12, 8))", {}),
        ("torch.randint(6, (12, 8)) * (torch.rand(12, 8) < 0.1)", {}),
    ],
    ids=["at the end", "at the start", "laid side by side", "masked", "a row more", "no padding", "never", "mostly"],
)
def test_padding(index: str, more: dict[str, str], workshop: Workshop) -> None:
    """What fills sequences up, is masked or stands for nothing is padding."""
    judge(workshop, program(index, **more)).must_be_silent()
