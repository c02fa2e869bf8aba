"""Dynamo under observation: the same graphs, guards, breaks and recompilations as without."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from tests.workshop import Workshop

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
_Program = Callable[[torch.Tensor], Any]
WHOLE: dict[str, _Program] = {
    "1 - x": lambda x: 1 - x,
    "1 / x": lambda x: 1 / x,
    "2 ** x": lambda x: 2**x,
    "x ** 2": lambda x: x**2,
    "2 // x": lambda x: 2 // x.detach(),
    "5 % x": lambda x: 5 % x.detach(),
    "x * (1 - x)": lambda x: x * (1 - x),
    "-x": lambda x: -x,
    "x > 0.5": lambda x: (x > 0.5) & ~(x > 0.7),
    "x @ x": lambda x: x @ x.mT,
    "rsub": lambda x: torch.rsub(x, 1),
    "unflatten": lambda x: x.unflatten(1, (2, 3)),
    "Unflatten": lambda x: nn.Unflatten(1, (2, 3))(x),
    "index": lambda x: x[:, [0, 2]] + x[..., :2],
    "rotate": lambda x: torch.cat((-x[..., 3:], x[..., :3]), -1),
    "in place": lambda x: x.clone().mul_(2),
    "chunk": lambda x: x.chunk(2, 1)[0].softmax(1),
    "where": lambda x: torch.where(x > 0.5, x, 0.0),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "vmap": lambda x: torch.vmap(lambda row: 1 - row)(x),
    "grad": lambda x: torch.func.grad(lambda t: (t**2).sum())(x),
    "norm": lambda x: nn.functional.layer_norm(x, (6,)).norm(),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "dropout": lambda x: nn.functional.dropout(x, 0.5) + torch.rand(4, 6),
    "handlers": lambda x: x * (2 if torch.overrides.has_torch_function((x,)) else 3),
    "modes": lambda x: x * (1 + torch._C._len_torch_function_stack()),
}


def _item(x: torch.Tensor) -> torch.Tensor:
    return (1 - x) * x.sum().item()


def _branch(x: torch.Tensor) -> torch.Tensor:
    return 1 - x if x.sum() > 0 else x


def _no_grad(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        mean = x.mean()
        torch._dynamo.graph_break()
    return 1 - x * mean


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _power(x: torch.Tensor) -> torch.Tensor:
    return 2**x  # type: ignore[no-any-return]


def _excepted(x: torch.Tensor) -> torch.Tensor:
    return 1 - _power(x)  # type: ignore[no-any-return]


def _parameter(x: torch.Tensor) -> torch.Tensor:
    return x * nn.Parameter(torch.ones(6))


def _backward(x: torch.Tensor) -> torch.Tensor:
    (1 - x).square().sum().backward()  # type: ignore[no-untyped-call]
    return 1 - x.detach()


def _update(x: torch.Tensor) -> torch.Tensor:
    layer = nn.Linear(6, 2)
    layer.zero_grad()
    return 1 - layer(x)


def _recurrent(x: torch.Tensor) -> torch.Tensor:
    return nn.GRU(6, 2)(1 - x)[0]  # type: ignore[no-any-return]


BROKEN = (_item, _branch, _no_grad, _excepted, _parameter, _backward, _update, _recurrent)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is compiled before or after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def course(program: _Program, fullgraph: bool) -> list[Any]:
    """What comes of a compiled program called with two sizes, what Dynamo counted, and the warnings."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    compiled = torch.compile(program, backend="eager", fullgraph=fullgraph)
    seen: list[Any] = []
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for rows in (4, 4, 5) if not fullgraph else (4, 4):
            x = torch.rand(rows, 6, requires_grad=True)
            result = compiled(x)
            if result.requires_grad and result.grad_fn is not None and x.grad is None:
                result.sum().backward()
            seen += [result.tolist(), None if x.grad is None else x.grad.tolist()]
    counted = {name: dict(counter) for name, counter in torch._dynamo.utils.counters.items()}
    return [seen, counted, [str(warning.message) for warning in shown]]


def assert_same(program: _Program, fullgraph: bool) -> None:
    """Torch and Dynamo do some things once in a process, so the first course is not looked at."""
    course(program, fullgraph)
    bare = course(program, fullgraph)
    with gradscope.observe() as seen:
        observed = course(program, fullgraph)
    assert observed == bare
    assert list(seen.report().run.failures) == []


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_graph_is_the_same(name: str) -> None:
    """One graph, without a break."""
    assert_same(WHOLE[name], True)


@pytest.mark.parametrize("program", BROKEN)
def test_breaks_are_the_same(program: _Program) -> None:
    """Programs that Dynamo breaks into several graphs, or does not compile."""
    assert_same(program, False)


def test_what_is_excepted_is_recorded() -> None:
    """A function that is not to be compiled is recorded as any other, on the way from one region to the next."""
    weight = nn.Parameter(torch.ones(3))
    compiled = torch.compile(lambda: _cut(weight * 2) * 3, backend="eager")
    with gradscope.observe() as seen:
        compiled()
    names = [operation.name for step in seen.report().run.steps for operation in step.operations]
    assert names == ["compiled", "Tensor.detach", "compiled"]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _cut(x: torch.Tensor) -> torch.Tensor:
    return x.detach()


def test_a_backward_inside_is_recorded() -> None:
    """The whole step is compiled, and breaks at its backward."""
    weight = nn.Parameter(torch.ones(3))

    def step() -> None:
        (1 - weight * 3).square().sum().backward()  # type: ignore[no-untyped-call]

    compiled = torch.compile(step, backend="eager")
    with gradscope.observe() as seen:
        compiled()
    run = seen.report().run
    assert run.backward_count == 1
    assert [tensor.received.steps for tensor in run.tensors if tensor.received is not None] == [1]


def test_a_mode_of_the_program_is_found_again_in_a_whole_graph(workshop: Workshop) -> None:
    """What a mode's handler changes is done after the graph has run, to the mode that is on top without us."""
    workshop.run(
        """
        import torch
        from torch import nn

        class Counting(torch.overrides.TorchFunctionMode):
            def __init__(self):
                super().__init__()
                self.calls = []
            def __torch_function__(self, function, types, args=(), kwargs=None):
                self.calls.append(getattr(function, "__name__", "?"))
                return function(*args, **(kwargs or {}))

        net = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), backend="eager", fullgraph=True)
        with Counting() as counting:
            for _ in range(2):
                net(torch.ones(2, 4))
        assert "linear" in counting.calls, counting.calls
        """
    )
