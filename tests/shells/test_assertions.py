"""Assertions on gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeError


class Model(nn.Module):
    """An encoder that can be cut off from its decoder."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder, self.cut = nn.Linear(3, 2), nn.Linear(2, 1), cut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number a sample."""
        z = self.encoder(x)
        if self.cut:
            z = z.detach()
        out: torch.Tensor = self.decoder(z)
        return out

    def loss(self) -> torch.Tensor:
        """A loss of a batch."""
        return self(torch.rand(4, 3)).square().mean()


def told(assertion: Callable[[], None]) -> str:
    """What an assertion says that must fail."""
    with pytest.raises(AssertionError) as failed:
        assertion()
    return str(failed.value)


def test_a_model_that_learns() -> None:
    """Modules, optimizers, tensors, lists and dicts of them learn; no gradient is left behind and the graph stays."""
    model = Model()
    loss = model.loss()
    weight = model.encoder.weight
    whats: tuple[Any, ...] = (
        model,
        torch.optim.SGD(model.parameters()),
        weight,
        model.parameters(),
        dict(model.named_parameters()),
    )
    for what in whats:
        gradscope.assert_learns(what, loss)
    gradscope.assert_learns(model, {"loss": loss, "step": 3})
    assert weight.grad is None
    loss.backward()
    assert weight.grad is not None
    kept = weight.grad.clone()
    gradscope.assert_learns(model, loss)  # the graph is freed, its ways are left
    assert torch.equal(weight.grad, kept)


def test_frozen_parts_of_a_model_need_not_learn() -> None:
    """Of a module the parameters that require grad count; a tensor that is named itself must learn."""
    model = Model()
    model.encoder.requires_grad_(False)
    gradscope.assert_learns(model, model.loss())
    assert told(lambda: gradscope.assert_learns(model.encoder, model.loss())).startswith(
        "2 of 2 tensors cannot learn, requires_grad is off: "
    )
    assert "requires_grad is off: model.encoder.weight" in told(
        lambda: gradscope.assert_learns([model.encoder.weight, model.decoder.weight], model.loss())
    )


def test_what_does_not_learn_is_named() -> None:
    """Without an observation the message counts and names, and the table shows what the graph reaches."""
    model = Model(cut=True)
    text = told(lambda: gradscope.assert_learns(model, model.loss()))
    first, *rest = text.splitlines()
    assert first == "2 of 4 tensors got no gradient from the loss: encoder.weight, encoder.bias"
    assert any(line.split()[:6] == ["encoder.weight", "2x3", "parameter", "yes", "yes", "0/1"] for line in rest)
    assert rest[-1].startswith("help: to be told where it is lost, run ")
    assert told(lambda: gradscope.assert_learns(model, model.loss().detach())).startswith("4 of 4 tensors got no")


def test_an_observation_tells_the_line() -> None:
    """Under an observation the message is the finding, whoever else the graph reaches; nothing is added to the run."""
    model = Model(cut=True)
    with gradscope.observe(model=model) as seen:
        gradscope.assert_learns(model.decoder, model.loss())
        gradscope.assert_no_gradient(model.encoder, model.loss())
        assert seen.report().run.backward_count == 0
        assert not any(step.backwards for step in seen.report().run.steps)
        text = told(lambda: gradscope.assert_learns(model, model.loss()))
        everywhere = told(lambda: gradscope.assert_learns(model, model.loss().detach()))
    assert "error[detach]: backward cannot reach `encoder`" in text
    assert "            z = z.detach()" in text
    assert "^^^^^^^^^ the path to the loss is cut here" in text
    assert "help: to be told where" not in text
    assert "error[detach]" in everywhere


def test_values_of_gradients_count() -> None:
    """Gradients that are zero everywhere, or not finite, are no learning; a single zero is."""
    w, v = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    gradscope.assert_learns([w, v], (w * v).sum())
    assert told(lambda: gradscope.assert_learns({"w": w, "v": v}, (w * v).sum() * 0)).startswith(
        "the gradient of the loss is exactly zero at w, v\n"
    )
    assert told(lambda: gradscope.assert_learns({"w": w, "v": v}, (v.sqrt() + w).sum())).startswith(
        "1 of 2 tensors got a gradient from the loss that is not finite: v\n"
    )


def test_other_errors_of_torch_come_out() -> None:
    """A backward that would raise for another reason than a freed graph does raise."""
    w = torch.ones(2, requires_grad=True)
    y = w.exp()
    loss = y.sum()
    y.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        gradscope.assert_learns(w, loss)


def test_sparse_gradients_are_read() -> None:
    """An embedding with sparse gradients learns."""
    table = nn.Embedding(5, 2, sparse=True)
    gradscope.assert_learns(table, table(torch.tensor([1, 3])).sum())


def test_frozen() -> None:
    """Frozen is what requires no grad and keeps no gradient that an optimizer would still apply."""
    model = Model()
    encoder = model.encoder
    text = told(lambda: gradscope.assert_frozen(model))
    assert text.startswith("4 of 4 tensors not frozen, requires_grad is on: encoder.weight, encoder.bias, ")
    model.loss().backward()
    encoder.requires_grad_(False)
    assert told(lambda: gradscope.assert_frozen(encoder.weight)).startswith(
        "`encoder.weight` frozen with a gradient from before, which an optimizer still applies: encoder.weight"
    )
    encoder.zero_grad()
    gradscope.assert_frozen(encoder)
    gradscope.assert_frozen({"w": encoder.weight})


def test_no_gradient() -> None:
    """What is frozen, cut off or not used gets no gradient; where one arrives, the way that it took is told."""
    model, teacher = Model(), Model()
    gradscope.assert_no_gradient(teacher, model.loss())
    gradscope.assert_no_gradient(model.encoder, Model(cut=True).loss())
    gradscope.assert_no_gradient(model, model.loss().detach())
    loss = model.loss() + teacher.loss()
    text = told(lambda: gradscope.assert_no_gradient(teacher.decoder, loss))
    assert text.splitlines()[0] == "2 of 2 tensors got a gradient from the loss: weight, bias"
    assert "way of the gradient: AddBackward0 -> MeanBackward0 -> PowBackward0 -> AddmmBackward0 -> " in text.replace(
        "\n    ", ""
    )
    teacher.requires_grad_(False)
    gradscope.assert_no_gradient(teacher, model.loss() + teacher.loss())


def test_the_way_has_lines_under_an_observation() -> None:
    """Where operations were seen, the way names them with their lines."""
    with gradscope.observe():
        w = torch.ones(2, requires_grad=True)
        text = told(lambda: gradscope.assert_no_gradient(w, w.exp().sum()))
    assert "way of the gradient: sum (" in text.replace("\n     ", " ")
    assert "test_assertions.py:" in text
    assert text.replace("\n     ", " ").splitlines()[1].endswith("-> w")


@pytest.mark.parametrize("what", [None, 3, "model", [], {}, [1], nn.Linear, nn.ReLU()])
def test_what_holds_no_tensor_is_refused(what: Any) -> None:
    """What holds no tensor is misuse, and so is a loss that is none: no assertion may pass on nothing."""
    loss = torch.ones(1, requires_grad=True).sum()
    for assertion in (gradscope.assert_learns, gradscope.assert_no_gradient):
        with pytest.raises(GradscopeError, match="there are no tensors in"):
            assertion(what, loss)
        with pytest.raises(GradscopeError, match="there is no tensor in this float"):
            assertion(loss, 3.0)
    with pytest.raises(GradscopeError, match="there are no tensors in"):
        gradscope.assert_frozen(what)


def test_names_steer_no_terminal() -> None:
    """What an assertion says of names is on the lines on which it says it, without control characters."""
    name = "zq\x1b[2J\n::error::x\u202e"
    shown = r"zq\x1b[2J\n\x3a:error::x\u202e"
    model = nn.Sequential()
    model.add_module(name, nn.Linear(3, 2))
    loss = model(torch.rand(4, 3)).sum()
    said = [
        told(lambda: gradscope.assert_learns(model, loss.detach())),
        told(lambda: gradscope.assert_frozen(model)),
        told(lambda: gradscope.assert_no_gradient(model, loss)),
    ]
    for text in said:
        assert f"{shown}.weight" in text
        assert text.replace("\n", "").isprintable()
        assert not any(line.lstrip().startswith("::") for line in text.splitlines())
