"""`has_torch_function` says of the program's own tensors and modes what it says without us."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode

import gradscope
from gradscope.probes.observation import Observation
from tests.workshop import Workshop, operations


class Tagged(torch.Tensor):
    """A subclass of tensors, which overrides torch's functions by being one."""


def asked(*tensors: torch.Tensor) -> bool:
    """What code that chooses its way is told."""
    return bool(torch.overrides.has_torch_function(tensors))


def test_only_overrides_of_the_program_count() -> None:
    """Plain tensors have none; a subclass and a mode of the program's own have."""
    with gradscope.observe():
        assert not asked(torch.ones(1), nn.Parameter(torch.ones(1)))
        assert asked(torch.ones(1), torch.ones(1).as_subclass(Tagged))
        with BaseTorchFunctionMode():
            assert asked(torch.ones(1))
        assert not asked(torch.ones(1))
    assert not asked(torch.ones(1))


def test_calls_handed_over_are_recorded_whole() -> None:
    """A function that hands its call to the modes, if there are any, is one operation, also to nested observations."""

    def doubled(x: torch.Tensor) -> Any:
        if torch.overrides.has_torch_function((x,)):
            return torch.overrides.handle_torch_function(doubled, (x,), x)
        return x + x

    outer, inner = Observation({}), Observation({})
    outer.start()
    doubled(torch.ones(1, requires_grad=True))
    inner.start()
    doubled(torch.ones(1, requires_grad=True))
    assert not asked(torch.ones(1))
    inner.stop()
    outer.stop()
    for observation, calls in ((outer, 2), (inner, 1)):
        assert [operation.name for operation in operations(observation.run())].count("doubled") == calls


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_attention_takes_the_same_way() -> None:
    """Under compilation the question is a constant of the graph, which stays whole."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.rand(2, 5, 16)

    def run() -> torch.Tensor:
        torch.compiler.reset()
        with torch.no_grad():
            return torch.compile(attention, fullgraph=True, backend="eager")(x, x, x)[0]  # type: ignore[no-any-return]

    bare = run()
    with gradscope.observe():
        observed = run()
    assert torch.equal(observed, bare)


def test_a_compiler_that_began_under_observation_goes_on_without(workshop: Workshop) -> None:
    """Dynamo handles functions that it knows from its first trace: those of torch, whoever watched then."""
    workshop.write(
        """
        import torch, gradscope
        from torch import nn
        attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
        x = torch.rand(2, 5, 16)

        def run():
            torch.compiler.reset()
            with torch.no_grad():
                torch.compile(attention, fullgraph=True, backend="eager")(x, x, x)

        for _ in range(2):
            with gradscope.observe():
                run()
            run()
        print("done")
        """
    )
    ended = workshop.python("-W", "ignore", "script.py")
    assert ended.out == "done\n", ended.err
