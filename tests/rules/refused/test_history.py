"""Calls that torch refuses over history, or over what is mapped."""

from __future__ import annotations

import pytest

from tests.rules.crashes import must_be
from tests.workshop import Workshop

WRONG = {
    "vmap-inplace": """
        from torch.func import vmap

        def rows(x, y):
            table = torch.zeros(2, 3)
            table[0] = x * y  # here
            return table.sum()

        vmap(rows)(torch.rand(5, 3), torch.rand(5, 3))
    """,
    "vmap-inplace copy": """
        from torch.func import vmap

        buffer = torch.zeros(3)
        vmap(lambda x: buffer.copy_(x))(torch.rand(5, 3))  # here
    """,
    "deepcopy-non-leaf": """
        import copy

        weight = torch.rand(3, requires_grad=True)
        state = {"scaled": weight * 2}  # here
        copy.deepcopy(state)
    """,
    "non-differentiable-argument": """
        scores, importance = nn.Linear(4, 3)(torch.rand(2, 4)), nn.Parameter(torch.ones(3))
        loss = nn.CrossEntropyLoss(weight=importance)
        loss(scores, torch.tensor([0, 2])).backward()  # here
    """,
    "non-differentiable-argument nll": """
        scores, raw = torch.rand(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
        weights = raw.softmax(0)
        F.nll_loss(scores.log_softmax(1), torch.tensor([0, 2]), weight=weights).backward()  # here
    """,
}


@pytest.mark.parametrize("case", WRONG)
def test_told(workshop: Workshop, case: str) -> None:
    """The cause's line, and the tensor by name where it has one."""
    found = must_be(workshop, case.partition(" ")[0], WRONG[case])
    assert found.tensors
    assert found.help
