"""Sizes are plain numbers in the facts, whatever torch gives, and nobody's graph grows or narrows by our asking."""

from __future__ import annotations

import gzip

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from gradscope.graph.facts import UNKNOWN
from gradscope.graph.storage import decode, encode
from gradscope.probes.tensors.attributes import number_of_bytes, plain, shape_of
from tests.workshop import Workshop, named


def test_symbolic_sizes_are_read_without_a_guard() -> None:
    """A size that stands for many is told as it is now; to ask for it binds no program to that."""
    environment = ShapeEnv()
    tensor = FakeTensorMode(shape_env=environment).from_tensor(torch.ones(5, 3), static_shapes=False)
    assert type(tensor.shape[0]) is torch.SymInt
    assert shape_of(tensor) == (5, 3)
    assert number_of_bytes(tensor) == 60
    assert all(type(size) is int for size in shape_of(tensor))
    assert plain([environment.create_unbacked_symint(), 2]) == (UNKNOWN, 2)
    assert environment.guards == []


@pytest.mark.parametrize("layout", ["jagged", "strided"])
def test_nested_tensors_are_reported(workshop: Workshop, layout: str) -> None:
    """A jagged tensor has a size that is no number: it is left open, and the run can be kept."""
    run = workshop.run(
        f"""
        import warnings
        import torch
        from torch import nn
        warnings.simplefilter("ignore")  # that they are a prototype
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        parts = [torch.ones(2, 4), torch.ones(3, 4)]
        n = torch.nested.nested_tensor(parts, layout=torch.{layout}, requires_grad=True)
        out = net[0](n)
        if torch.{layout} is torch.jagged:
            out.values().sum().backward()
        else:
            out.to_padded_tensor(0.0).sum().backward()
        """
    )
    assert named(run, "n").shape == ((2, UNKNOWN, 4) if layout == "jagged" else ())
    assert all(type(size) is int for tensor in run.tensors for size in tensor.shape)
    assert decode(encode(run)) == run


def test_dynamic_shapes_reach_the_facts_as_numbers(workshop: Workshop) -> None:
    """Fake tensors of symbolic sizes, lazy parameters, symbolic tracing and export: all that torch says of sizes."""
    run = workshop.run(
        """
        import torch
        from torch import nn
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        w = nn.Parameter(torch.ones(4, 4))
        lazy = nn.LazyLinear(3)
        optimizer = torch.optim.SGD([w], lr=0.1)
        for n in (3, 4, 5, 6):
            optimizer.zero_grad()
            (torch.ones(n, 4) @ w).sum().backward()
            optimizer.step()
        environment = ShapeEnv()
        with FakeTensorMode(shape_env=environment) as mode:
            t = mode.from_tensor(torch.ones(6, 4), static_shapes=False)
            v = nn.Parameter(torch.ones(t.shape[0], 4))
            z = torch.zeros(t.shape[0], 3) + torch.ones(t.shape[0], 3)
            (v * t).sum().backward()
            total = z.sum() + t.sum()
        guards = len(environment.guards)
        traced = make_fx(lambda a: (a @ a.T).relu().sum(), tracing_mode="symbolic")(torch.randn(3, 4))
        """
    )
    assert all(type(size) is int for tensor in run.tensors for size in tensor.shape)
    assert named(run, "t").shape == named(run, "v").shape == (6, 4)
    assert named(run, "z").shape == (6, 3)
    assert decode(gzip.decompress(encode(run))) == run
