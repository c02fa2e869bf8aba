"""The names by which tensors are told to the user."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Run
from tests.workshop import Workshop, named, operations


def line_of(run: Run, name: str) -> int:
    """The line on which the tensor of a name was made."""
    made = named(run, name).made
    assert made is not None
    return made.line


def parameters(run: Run) -> set[str | None]:
    """The names of all parameters and buffers of modules."""
    return {tensor.name for tensor in run.tensors if tensor.registered in ("parameter", "buffer")}


def test_a_single_model_needs_no_prefix(workshop: Workshop) -> None:
    """With one model its tensors are called as `named_parameters()` and `named_buffers()` call them.

    What would be a bare word or begin with a number says which variable it is of.
    """
    run = workshop.run(
        """
        import torch
        from torch import nn


        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
                self.scale = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return self.body(x) * self.scale

        net = Net()
        net(torch.rand(4, 2)).sum().backward()
        """
    )
    assert parameters(run) == {
        "body.0.weight",
        "body.1.weight",
        "body.1.bias",
        "body.1.running_mean",
        "body.1.running_var",
        "body.1.num_batches_tracked",
        "net.scale",
    }
    bare = workshop.run(
        "import torch\nfrom torch import nn\nnet = nn.Sequential(nn.Linear(2, 1))\nnet(torch.rand(1, 2)).backward()"
    )
    assert parameters(bare) == {"net.0.weight", "net.0.bias"}


def test_several_models_are_told_apart_by_their_variables(workshop: Workshop) -> None:
    """With several models each path begins with the variable that holds the model."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(5, 3)

            def forward(self, x):
                return self.embed(x)

        encoder, head = Encoder(), nn.Linear(3, 1)
        head(encoder(torch.arange(5))).sum().backward()
        """
    )
    assert parameters(run) == {"encoder.embed.weight", "head.weight", "head.bias"}
    modules = {operation.module for operation in operations(run)}
    assert {"encoder.embed", "head"} <= modules


def test_models_of_a_function_are_called_by_its_variables(workshop: Workshop) -> None:
    """Models that live in a function only are named by the expressions that call them."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        def train():
            actor, critic = nn.Linear(2, 2), nn.Linear(2, 1)
            optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                critic(actor(torch.rand(4, 2))).sum().backward()
                optimizer.step()

        train()
        """
    )
    assert parameters(run) == {"actor.weight", "actor.bias", "critic.weight", "critic.bias"}
    assert named(run, "actor.weight").received is not None


def test_models_without_any_variable_are_told_apart(workshop: Workshop) -> None:
    """Two models of one class that no variable names do not share a name."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        def make():
            return [nn.Linear(2, 2) for _ in range(2)]

        def forward(x):
            for layer in layers:
                x = layer(x)
            return x

        layers = make()
        forward(torch.rand(1, 2)).sum().backward()
        """
    )
    names = [tensor.name for tensor in run.tensors if tensor.registered == "parameter"]
    assert len(set(names)) == len(names) == 4
    assert None not in names


def test_shared_parameters_have_their_first_name(workshop: Workshop) -> None:
    """A parameter that two modules share is one tensor, under the name that `named_parameters()` gives it."""
    run = workshop.run(
        """
        import torch
        from torch import nn
        net = nn.ModuleDict({"embed": nn.Linear(3, 3, bias=False), "out": nn.Linear(3, 3, bias=False)})
        net["out"].weight = net["embed"].weight
        net["out"](net["embed"](torch.rand(1, 3))).sum().backward()
        """
    )
    assert parameters(run) == {"embed.weight"}


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("w = torch.ones(2, requires_grad=True)", "w"),
        ("w: torch.Tensor = torch.ones(2, requires_grad=True)", "w"),
        ("w = torch.ones(2).requires_grad_()", "w"),
        ("a, (w, b) = 1, (torch.ones(2, requires_grad=True), 2)", "w"),
        ("w, b = (torch.ones(2, requires_grad=True) for _ in range(2))", "w"),
        ("ws = [torch.ones(2, requires_grad=True) for _ in range(3)]", "ws[0]"),
        ("ws = {'in': torch.ones(2, requires_grad=True)}", "ws['in']"),
        ("ws = (torch.ones(1), torch.ones(2, requires_grad=True))", "ws[1]"),
        ("torch.sin(w := torch.ones(2, requires_grad=True))", "w"),
    ],
)
def test_leaves_of_the_script_are_named_by_its_variables(workshop: Workshop, lines: str, name: str) -> None:
    """A plain leaf has the name of the variable, or the place in a list, tuple or dict, that holds it."""
    run = workshop.run(f"import torch\n{lines}\nloss = {name}.sum()\nloss.backward()\n")
    tensor = named(run, name)
    assert (tensor.leaf, tensor.requires_grad, tensor.shape) == (True, True, (2,))
    assert line_of(run, name) == 2


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("w = torch.ones(2, requires_grad=True)", "w"),
        ("w: torch.Tensor = torch.ones(2, requires_grad=True)", "w"),
        ("state.w = torch.ones(2, requires_grad=True)", "state.w"),
        ("ws[0] = torch.ones(2, requires_grad=True)", "ws[0]"),
        ("b, w = torch.ones(2, 2, requires_grad=True).unbind()", "w"),
        ("[b, w] = torch.ones(2, 2, requires_grad=True).unbind()", "w"),
        ("if (w := torch.ones(2, requires_grad=True)) is None:\n        pass", "w"),
    ],
)
def test_tensors_of_functions_are_named_by_their_assignment(workshop: Workshop, lines: str, name: str) -> None:
    """A tensor that is local to a function has the name to which the line assigned it."""
    run = workshop.run(
        f"""
import torch
from types import SimpleNamespace

def train():
    state, ws = SimpleNamespace(), [None]
    {lines}
    loss = torch.sin({name} * 2).sum()
    loss.backward()

train()
"""
    )
    assert named(run, name).shape == (2,)
    assert named(run, "loss").differentiated


def test_attributes_of_plain_objects_drop_self(workshop: Workshop) -> None:
    """`self.w = ...` in a class that is no module names the tensor `w`."""
    run = workshop.run(
        """
        import torch

        class Regression:
            def __init__(self):
                self.w = torch.zeros(2, requires_grad=True)
                self.ws = [torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)]
                self.optimizer = torch.optim.SGD([self.w, self.ws[0], self.ws[1]], lr=0.1)

            def fit(self, x):
                for _ in range(3):
                    self.optimizer.zero_grad()
                    loss = (x @ self.w).mean() + (self.ws[0] * self.ws[1]).sum()
                    loss.backward()
                    self.optimizer.step()

        def main():
            Regression().fit(torch.rand(4, 2))

        main()
        """
    )
    for name in ("w", "ws[0]", "ws[1]"):
        tensor = named(run, name)
        assert tensor.optimizer is not None
        assert tensor.received is not None
        assert (tensor.received.steps, tensor.received.of) == (3, 3)


def test_an_optimizers_list_names_what_nothing_else_does(workshop: Workshop) -> None:
    """`SGD([w, b])` in a function names its tensors, also where the lines that made them do not."""
    run = workshop.run(
        """
        import torch

        def leaf(n):
            return torch.ones(n).requires_grad_()

        def train():
            w, b = leaf(2), leaf(2)
            optimizer = torch.optim.SGD([w, b], lr=0.1)
            ((w * 2).sum() + (b * 3).sum()).backward()
            optimizer.step()

        train()
        """
    )
    assert {tensor.name for tensor in run.tensors if tensor.optimizer is not None} == {"w", "b"}


def test_attributes_of_modules_are_named(workshop: Workshop) -> None:
    """A tensor that a module holds unregistered, also in a list or dict, is called as the user would write it."""
    run = workshop.run(
        """
        import torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.ones(2, requires_grad=True)
                self.parts = [torch.ones(2, requires_grad=True)]
                self.table = {"a": torch.ones(2, requires_grad=True)}

            def forward(self, x):
                return x * self.scale * self.parts[0] * self.table["a"]

        net = Net()
        net(torch.rand(2)).sum().backward()
        """
    )
    for name in ("net.scale", "net.parts[0]", "net.table['a']"):
        tensor = named(run, name)
        assert (tensor.registered, tensor.nn_parameter, tensor.predicted) == ("attribute", False, True)


def test_arguments_are_named_by_what_is_passed(workshop: Workshop) -> None:
    """Inputs and results of a model are called as the line that calls the model calls them."""
    run = workshop.run(
        """
        import torch
        from torch import nn

        def train(batches):
            net = nn.Linear(2, 1)
            for features, target in batches:
                prediction = net(features)
                loss = nn.functional.mse_loss(prediction, target)
                loss.backward()

        train([(torch.rand(3, 2), torch.rand(3, 1))])
        """
    )
    shapes = {tensor.name: tensor.shape for tensor in run.tensors}
    expected = {"features": (3, 2), "target": (3, 1), "prediction": (3, 1), "loss": ()}
    assert {name: shapes.get(name) for name in expected} == expected


def test_what_cannot_be_matched_gets_no_name(workshop: Workshop) -> None:
    """Where operands and tensors do not agree in number, no name is guessed."""
    run = workshop.run(
        """
        import torch

        def total(parts):
            return torch.stack(parts).sum()

        def train():
            total([torch.ones(2, requires_grad=True) * k for k in range(2)]).backward()

        train()
        """
    )
    leaves = [tensor for tensor in run.tensors if tensor.leaf and tensor.requires_grad]
    assert len(leaves) == 2
    assert {tensor.name for tensor in leaves} == {None}


def test_module_without_a_mode(workshop: Workshop) -> None:
    """A class may answer for its attributes as it likes, and refuse `training`: its call goes through."""
    run = workshop.run(
        """
        import torch

        class Modeless(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(2, 1)
                del self.training

            def __call__(self, x):
                return self.layer(x)

            def __getattr__(self, name):
                if name == "training":
                    raise RuntimeError(name)
                return super().__getattr__(name)

        class Outer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Modeless()

            def forward(self, x):
                return self.inner(x)

        Outer()(torch.rand(3, 2)).sum().backward()
        """
    )
    assert named(run, "inner.layer.weight").received is not None
