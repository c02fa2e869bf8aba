"""The role of a tensor."""

from __future__ import annotations

from typing import Any

import pytest

from gradscope.graph.facts import Run, Tensor
from gradscope.graph.roles import Role, role, roles

LEAF: dict[str, Any] = {"leaf": True, "requires_grad": False}
MADE: dict[str, Any] = {"leaf": False, "requires_grad": True}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({**LEAF, "nn_parameter": True, "requires_grad": True}, "parameter"),
        ({**LEAF, "nn_parameter": True}, "parameter"),
        ({**LEAF, "optimizer": 1, "requires_grad": True}, "parameter"),
        ({**LEAF, "registered": "buffer"}, "buffer"),
        ({**LEAF, "registered": "attribute"}, "constant"),
        (LEAF, "constant"),
        ({**LEAF, "requires_grad": True}, "input"),
        ({**MADE, "consumed": True}, "intermediate"),
        ({**MADE, "consumed": True, "differentiated": True}, "output"),
        (MADE, "output"),
        ({**MADE, "consumed": True, "optimizer": 1}, "intermediate"),
    ],
)
def test_roles(facts: dict[str, Any], expected: Role) -> None:
    """A frozen parameter stays a parameter, what an optimizer holds is one if it is a leaf, and so on."""
    tensor = Tensor(7, "t", (2,), "float32", "cpu", **facts)
    assert role(tensor) == expected
    assert roles(Run("0", "2", tensors=(tensor,))) == {7: expected}
