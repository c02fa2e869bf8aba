"""The library: explain, render, observe and confirm."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope import Report
from gradscope.errors import GradscopeError
from gradscope.reports.document import TensorRow
from tests.workshop import Workshop, operations

Pair = namedtuple("Pair", ["loss", "extra"])


@dataclass
class Output:
    """An output as models return it."""

    loss: torch.Tensor
    extra: Any = None


class Plain:
    """An object with attributes."""

    def __init__(self, loss: torch.Tensor, extra: Any) -> None:
        self.loss, self.extra = loss, extra


def rows(report: Report) -> dict[str, TensorRow]:
    """The rows of a report by name."""
    return {row.name: row for row in report.tensors}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss, extra: loss + extra,
        lambda loss, extra: (loss, extra),
        lambda loss, extra: [loss, {"deep": extra}],
        lambda loss, extra: {"loss": loss, "extra": (extra, None, 3)},
        Output,
        Pair,
        Plain,
    ],
    ids=["tensor", "tuple", "list", "dict", "dataclass", "namedtuple", "object"],
)
def test_any_output_is_explained(wrap: Any) -> None:
    """Whatever holds the output tensors, the leaves behind all of them are found, named and confirmed."""
    w, v, unused = (torch.ones(3, requires_grad=True) for _ in range(3))
    scale = torch.full((3,), 2.0)
    output = wrap((w * scale).sum(), v.exp().sum())
    report = gradscope.explain(output)
    found = rows(report)
    for name in ("w", "v"):
        row = found[name]
        assert (row.role, row.leaf, row.predicted) == ("input", True, True)
        assert row.received is not None
        assert (row.received.steps, row.received.of) == (1, 1)
    assert "unused" not in found
    assert [tensor.grad for tensor in (w, v, unused)] == [None] * 3
    assert report.run.backward_count == 0
    names = {node.name for step in report.run.steps for backward in step.backwards for node in backward.nodes}
    assert {"SumBackward0", "MulBackward0", "ExpBackward0", "AccumulateGrad"} <= names
    w.grad = torch.zeros(3)
    gradscope.explain(output)
    assert torch.equal(w.grad, torch.zeros(3))


def test_explain_leaves_the_graph_usable() -> None:
    """After `explain` the user's own backward works, with the gradients that it would have had."""
    w = torch.ones(3, requires_grad=True)
    loss = (w**2).sum()
    gradscope.explain(loss)
    loss.backward()
    assert w.grad is not None
    assert torch.equal(w.grad, torch.full((3,), 2.0))


def test_explain_after_backward_walks_only() -> None:
    """Where backward has freed the graph, the walk still tells which leaves it reached."""
    w = torch.ones(3, requires_grad=True)
    loss = (w**2).sum()
    loss.backward()
    report = gradscope.explain(loss)
    assert rows(report)["w"].predicted
    assert w.grad is not None
    assert "a backward has freed its graph: explain it before `backward()`" in str(report)


def test_explain_names_with_model_and_optimizer() -> None:
    """`model` and `optimizer` give names and roles; a parameter without a way to the output is told."""
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    optimizer = torch.optim.Adam(model.parameters())
    found = rows(gradscope.explain(model["used"](torch.rand(4, 2)).sum(), model=model, optimizer=optimizer))
    assert {name for name, row in found.items() if row.role == "parameter"} == {
        "used.weight",
        "used.bias",
        "idle.weight",
        "idle.bias",
    }
    assert [found[name].predicted for name in ("used.weight", "idle.weight")] == [True, False]
    assert {row.optimizer for row in found.values() if row.role == "parameter"} == {"Adam"}


def test_an_output_without_history_is_refused(tmp_path: Path) -> None:
    """Nothing can learn by what is cut off: that is told in one line, and no report says that all is well."""
    model = nn.Linear(3, 1)
    cut = model(torch.rand(2, 3)).detach()
    for output in (cut, cut.mean(), {"loss": cut, "logits": cut}, torch.rand(3)):
        with pytest.raises(gradscope.GradscopeError, match="history: no gradient flows from it") as raised:
            gradscope.explain(output, model=model)
        assert "\n" not in str(raised.value)
    with torch.no_grad(), pytest.raises(gradscope.GradscopeError, match="has no history"):
        gradscope.render(model(torch.rand(2, 3)), tmp_path / "graph.dot")
    report = gradscope.explain((cut, model(torch.rand(2, 3))), model=model)
    assert rows(report)["model.weight"].predicted


def test_rules_are_chosen(tmp_path: Path) -> None:
    """`select` and `ignore` are names or a text of names; a rule that there is not is told before anything runs."""
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []

    def step() -> None:
        calls.append(1)
        optimizer.zero_grad()
        model["used"](torch.rand(4, 2)).sum().backward()
        optimizer.step()

    def found(**chosen: Any) -> list[str]:
        return [
            finding.rule for finding in gradscope.confirm(step, model=model, optimizer=optimizer, **chosen).findings
        ]

    everything = found()
    assert "unused-parameter" in everything
    assert "unused-parameter" not in found(ignore="unused-parameter")
    assert found(select=["unused-parameter"]) == ["unused-parameter"]
    assert found(select="unused-parameter, detach") == ["unused-parameter"]
    output = model["used"](torch.rand(4, 2))
    assert gradscope.explain(output, model=model, ignore=everything).findings == ()
    calls.clear()
    with pytest.raises(gradscope.GradscopeError, match="did you mean detach"):
        found(ignore=["detahc"])
    assert calls == []


def test_misuse_is_one_clear_line(tmp_path: Path) -> None:
    """Unknown styles, depths and levels are named, and what there is."""
    w = torch.ones(3, requires_grad=True)
    report = gradscope.explain(w.sum())
    path = tmp_path / "graph.dot"
    with pytest.raises(gradscope.GradscopeError, match="there is no style 'dot': it is 'gradscope' or 'torchviz'"):
        gradscope.render(report, path, style="dot")  # type: ignore[arg-type]
    for depth in (0, -1):
        with pytest.raises(gradscope.GradscopeError, match=f"depth must be at least 1, .*, not {depth}"):
            report.render(path, depth=depth)
    assert not path.exists()
    with pytest.raises(ValueError, match='the level must be "info", "warning" or "error", not \'warn\''):
        report.raise_for_findings("warn")  # type: ignore[arg-type]


def test_check_batch_raises_what_the_model_raises() -> None:
    """Inputs of a wrong shape are no batch without a leak."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gradscope.check_batch(nn.Linear(3, 1), torch.rand(4, 5))


def test_a_report_shows_itself_in_one_line() -> None:
    """`repr`, as a failing `assert report.ok` shows it, says what was found where."""
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.observe(model=model, optimizer=optimizer) as seen:
        model["used"](torch.rand(4, 2)).sum().backward()
        optimizer.step()
    assert repr(seen.report()).startswith("<Report on output, 1 step: warning[unused-parameter]")
    assert "\n" not in repr(seen.report())
    assert repr(gradscope.explain(torch.ones(3, requires_grad=True).sum())) == (
        "<Report on output, 0 steps: no findings>"
    )


@pytest.mark.parametrize("output", [None, 3.0, "loss", [], {}, (1, "a"), nn.Linear(1, 1), torch.Tensor])
def test_explain_refuses_what_holds_no_tensor(output: Any) -> None:
    """What holds no tensor raises a TypeError that says what to pass."""
    with pytest.raises(
        TypeError, match=r"there is no tensor in this .*: pass what the model returned, or its loss"
    ) as e:
        gradscope.explain(output)
    assert isinstance(e.value, GradscopeError)


def test_render_takes_outputs_reports_and_runs(tmp_path: Path) -> None:
    """The same picture is drawn from an output, from its report and from its run."""
    w = torch.ones(3, requires_grad=True)
    loss = (w * 2).sum()
    report = gradscope.explain(loss)
    gradscope.render(loss, tmp_path / "output.dot")
    gradscope.render(report, tmp_path / "report.dot")
    gradscope.render(report.run, tmp_path / "run.dot")
    drawn = {path.read_text() for path in tmp_path.glob("*.dot")}
    assert len(drawn) == 1
    assert "MulBackward0" in drawn.pop()
    report.render(tmp_path / "graph.svg")
    assert b"<svg" in (tmp_path / "graph.svg").read_bytes()
    assert b"prefers-color-scheme: dark" in (tmp_path / "graph.svg").read_bytes()


def test_render_opens_groups(tmp_path: Path) -> None:
    """`depth` and `open` of `render` and of `Report.render` close and open modules."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    report = gradscope.explain(model(torch.rand(4, 2)).sum(), model=model)
    report.render(tmp_path / "closed.dot", depth=1)
    gradscope.render(report, tmp_path / "open.dot", depth=1, open=["model.1*"])
    closed, opened = ((tmp_path / f"{name}.dot").read_text() for name in ("closed", "open"))
    assert "model: Sequential" in closed
    assert "1.0.weight" not in closed
    assert "1.0.weight" in opened


def test_render_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    """An unknown ending, a missing folder and an output without tensors raise errors of gradscope's."""
    loss = torch.ones(3, requires_grad=True).sum()
    for what, path in ((loss, tmp_path / "graph.bmp"), (loss, tmp_path / "no" / "graph.svg"), (3, tmp_path / "g.dot")):
        with pytest.raises(GradscopeError):
            gradscope.render(what, path)
    assert list(tmp_path.iterdir()) == []


def test_observe_reports_inside_and_after_the_block() -> None:
    """`report()` may be asked for at any time; what came later is in the later report only."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gradscope.observe(model=net, optimizer=optimizer) as seen:
        for step in range(4):
            optimizer.zero_grad()
            net(torch.rand(3, 2)).mean().backward()
            optimizer.step()
            if step == 1:
                early = seen.report()
    net(torch.rand(3, 2)).mean().backward()
    late = seen.report()
    for report, steps in ((early, 2), (late, 4)):
        received = rows(report)["model.weight"].received
        assert received is not None
        assert (received.steps, received.of, report.run.step_count) == (steps, steps, steps)


def test_observe_names_plain_tensors() -> None:
    """`tensors` gives names to plain tensors."""
    held = {"scale": torch.ones(2, requires_grad=True)}
    with gradscope.observe(tensors={"my scale": held["scale"]}) as seen:
        held["scale"].sum().backward()
    assert "my scale" in rows(seen.report())


def test_observe_does_not_nest() -> None:
    """A second observation inside of the first raises RuntimeError; the first goes on, and a new one can follow."""
    w = torch.ones(2, requires_grad=True)
    with gradscope.observe() as seen:
        with pytest.raises(RuntimeError, match="observing already"), gradscope.observe():
            raise AssertionError("must not be reached")
        w.sum().backward()
    assert seen.report().run.backward_count == 1
    with gradscope.observe() as again:
        pass
    assert again.report().run.backward_count == 0


def test_a_script_that_observes_itself_is_explained(workshop: Workshop) -> None:
    """`explain` runs a script that uses `gradscope.observe`; both see all of it, and warnings keep their place."""
    run = workshop.run(
        """
        import warnings
        import gradscope
        import torch
        import torch.nn.functional as F
        w = torch.ones(3, 1, requires_grad=True)
        with warnings.catch_warnings(record=True) as caught, gradscope.observe() as seen:
            warnings.simplefilter("always")
            loss = F.mse_loss(w, torch.rand(3))
            loss.backward()
        assert [(w.lineno, w.filename) for w in caught] == [(8, __file__)]
        inner = seen.report().run
        assert inner.backward_count == 1
        assert [operation.name for operation in inner.steps[0].operations] == ["rand", "nn.functional.mse_loss"]
        """
    )
    assert run.backward_count == 1
    assert "nn.functional.mse_loss" in [operation.name for operation in operations(run)]


def test_observe_lets_exceptions_pass_and_keeps_what_was_seen() -> None:
    """An exception comes out of the block as it is; the report on what came before is there, and blocks work again."""
    w = torch.ones(2, requires_grad=True)
    seen = gradscope.observe()
    with pytest.raises(RuntimeError, match="second time"), seen:  # noqa: PT012 - the block is what is tested
        loss = w.exp().sum()
        loss.backward()
        loss.backward()
    assert seen.report().run.backward_count == 1
    with gradscope.observe():
        pass


def test_a_block_that_cannot_begin_does_not_stay_open() -> None:
    """Where the model or the optimizer is none, entering raises, and the next block works."""
    wrong: tuple[dict[str, Any], ...] = ({"model": "net"}, {"optimizer": 3}, {"model": nn.Linear})
    for given in wrong:
        with pytest.raises(TypeError, match=r"must be an instance of \w+, not (a str|a int|the class Linear)"):
            gradscope.observe(**given)
    with pytest.raises(TypeError, match="model must be"):
        gradscope.explain(torch.ones(1), model=3)  # type: ignore[arg-type]
    with gradscope.observe() as seen:
        pass
    assert seen.report().findings == ()


def test_no_report_before_the_block() -> None:
    """Asking for a report before anything was observed raises RuntimeError."""
    with pytest.raises(RuntimeError, match="nothing was observed yet"):
        gradscope.observe().report()


def test_confirm_runs_the_loop() -> None:
    """`confirm` calls the step as often as it is told and reports what arrived and what moved."""
    w, b = torch.ones(3, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([w, b], lr=0.1)
    calls = []

    def step() -> None:
        calls.append(1)
        optimizer.zero_grad()
        (w**2).sum().backward()
        optimizer.step()

    report = gradscope.confirm(step, steps=4, tensors={"w": w, "b": b}, optimizer=optimizer)
    found = rows(report)
    assert len(calls) == 4
    for name, steps in (("w", 4), ("b", 0)):
        received = found[name].received
        assert received is not None
        assert (received.steps, received.of) == (steps, 4)
    assert found["w"].moved
    assert not found["b"].moved


def test_confirm_refuses_no_steps_and_passes_exceptions_on() -> None:
    """Less than one step raises ValueError; what the step raises comes out."""
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        gradscope.confirm(lambda: None, steps=0)

    def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        gradscope.confirm(fail)


def test_the_names_of_the_package() -> None:
    """All public names are there, and an unknown one raises AttributeError."""
    for name in gradscope.__all__:
        assert getattr(gradscope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        _ = gradscope.explian  # type: ignore[attr-defined]
    assert "explain" in dir(gradscope)
