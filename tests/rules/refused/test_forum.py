"""Programs as beginners write them, with what is to be said of each; and errors that are the program's own."""

from __future__ import annotations

import pytest

from tests.rules.crashes import findings, must_be
from tests.workshop import Workshop

TOLD = {
    "a state for other batches": (
        "shape-mismatch",
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 1)
                self.hidden = torch.zeros(1, 16, 8), torch.zeros(1, 16, 8)  # here

            def forward(self, x):
                out, self.hidden = self.lstm(x, self.hidden)
                return self.head(out[:, -1])

        net = Net()
        net(torch.randn(8, 7, 5)).mean().backward()
        """,
        "state",
        "`x.shape[0]`",
    ),
    "an index with too few axes": (
        "shape-mismatch",
        """
        values, actions = nn.Linear(4, 2)(torch.randn(16, 4)), torch.randint(0, 2, (16,))
        values.gather(1, actions).mean().backward()  # here
        """,
        "`actions` (16)",
        "index",
    ),
    "a column that is a row": (
        "shape-mismatch",
        """
        table, age = nn.Embedding(10, 4), torch.randn(16)
        x = torch.cat([table(torch.randint(0, 10, (16,))), age], dim=1)  # here
        """,
        "`age` (16)",
        "`age.unsqueeze(1)`",
    ),
    "places that are no whole numbers": (
        "dtype-mismatch",
        """
        values = nn.Linear(4, 2)(torch.randn(16, 4))
        actions = torch.zeros(16, 1)  # here
        values.gather(1, actions).mean().backward()
        """,
        "`actions` is of float32",
        "`.long()`",
    ),
    "doubles of numpy": (
        "dtype-mismatch",
        """
        import numpy as np

        x = np.random.rand(64, 5)
        x = torch.from_numpy(x)  # here
        nn.Linear(5, 1)(x).mean().backward()
        """,
        "`x` is of float64",
        "`.float()`",
    ),
    "few targets": (
        "index-range",
        """
        scores, labels = nn.Linear(4, 2)(torch.randn(2, 4)), torch.tensor([1, 2])
        F.cross_entropy(scores, labels).backward()  # here
        """,
        "names class 2",
        "3 classes",
    ),
}
OWN = {
    "assertion": 'assert out.shape == (4, 3), f"size mismatch, got {tuple(out.shape)}"',
    "words of torch's": 'raise RuntimeError("expected scalar type Double but found Float")',
    "words of a loss": 'raise ValueError("Using a target size that is different to the input size")',
    "index": '{}["labels"]',
    "list": "[1, 2][5]",
    "caught before": "try:\n    net(torch.randn(4, 5))\nexcept RuntimeError:\n    pass\n{}['model']",
    "state": 'net.load_state_dict({"weight": torch.zeros(4, 3), "bias": torch.zeros(4)})',
}


@pytest.mark.parametrize("case", TOLD)
def test_told(workshop: Workshop, case: str) -> None:
    """The line, what is said of it, and a mend that is one."""
    rule, program, said, mend = TOLD[case]
    found = must_be(workshop, rule, program)
    assert said in found.message
    assert mend in " ".join(help_.message for help_ in found.help)


@pytest.mark.parametrize("case", OWN)
def test_errors_of_the_program(workshop: Workshop, case: str) -> None:
    """Nothing is said of what torch did not raise over operands, whatever its words."""
    assert findings(workshop, f"net = nn.Linear(3, 2)\nout = net(torch.randn(4, 3))\n{OWN[case]}\n") == ()
