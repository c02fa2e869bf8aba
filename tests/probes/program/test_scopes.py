"""Looking at what a program holds without running its code."""

from __future__ import annotations

import runpy

import pytest

from tests.workshop import Workshop

COUNTED = """
    import collections
    import torch
    from torch import nn

    calls = collections.Counter()

    def counted(name):
        def method(self, *args, **kwargs):
            calls[name] += 1
            return getattr(nn.Module, name)(self, *args, **kwargs)
        return method

    def counted_read(self, name):
        calls[f"{type(self).__name__}.{name}"] += 1
        return object.__getattribute__(self, name)

    def told(name, value):
        def method(self, *_):
            calls[name] += 1
            return value
        return method

    METHODS = [
        "named_modules", "named_parameters", "named_buffers", "children", "named_children", "modules", "parameters",
        "buffers", "state_dict", "__getattr__", "__setattr__", "__dir__", "__repr__", "__hash__", "get_submodule",
        "extra_repr", "train", "eval", "zero_grad", "apply", "_apply", "_named_members", "_get_name",
    ]
    asked = {"__len__": told("len", 3), "__bool__": told("bool", True), "__eq__": told("eq", False)}
    methods = {name: counted(name) for name in METHODS}
    Counted = type("Counted", (nn.Module,), {**methods, "__getattribute__": counted_read, **asked})

    class Thing:
        __getattribute__, __hash__, __repr__ = counted_read, told("hash", 1), told("repr", "thing")
        __len__, __bool__, __eq__ = asked.values()

        def __init__(self):
            self.w = torch.ones(3, requires_grad=True)

    class Posing:
        @property
        def __class__(self):
            calls["__class__"] += 1
            return torch.Tensor

        def __getattr__(self, name):
            calls[f"Posing.{name}"] += 1
            raise AttributeError(name)

    class Meta(type):
        def __getattr__(cls, name):
            calls[f"Meta.{name}"] += 1
            raise AttributeError(name)

        def __instancecheck__(cls, instance):
            calls["__instancecheck__"] += 1
            return type.__instancecheck__(cls, instance)

    class WithMeta(metaclass=Meta):
        pass

    class Items(dict):
        items, values, __iter__ = told("items", ()), told("values", ()), told("iter", iter(()))

    class Net(Counted):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.held = [Thing(), Posing(), WithMeta()]
            self.thing, self.posing, self.meta, self.items = Thing(), Posing(), WithMeta(), Items(x=1)

        @property
        def width(self):
            calls["property"] += 1
            return 1

        def forward(self, x, thing):
            return self.a(x) * thing.w

    class Descent(torch.optim.SGD):
        __getattribute__ = counted_read

    thing, posing, meta, items = Thing(), Posing(), WithMeta(), Items(y=2)
    net = Net()
    optimizer = Descent(net.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.ones(2, 3), thing).sum().backward()
        optimizer.step()
    for name in sorted(calls):
        print(name, calls[name])
"""


def test_what_a_program_overrides_is_not_called_to_look(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """Methods, attributes, classes and items of the program's own are asked as often as without us."""
    runpy.run_path(str(workshop.write(COUNTED)), run_name="__main__")
    bare = capsys.readouterr().out
    outcome = workshop.observe(COUNTED)
    assert outcome.error is None
    assert capsys.readouterr().out == bare
    assert "Net.a" in bare
