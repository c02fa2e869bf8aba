"""`gradscope.observe` as a decorator on training steps."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, assert_type

import pytest
import torch
from torch import nn

import gradscope
from gradscope.probes.observation import Observation
from gradscope.reports.report import FindingsRaised, Report
from tests.workshop import operations

Step = Callable[[], Any]


def training(cut: bool = False) -> tuple[nn.Module, Step]:
    """A model and a whole step of its training, with or without a cut behind its first layer."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> float:
        h = model[0](torch.rand(8, 3))
        loss = model[2](torch.tanh(h.detach() if cut else h)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return model, step


def repeat(step: Step, times: int) -> None:
    """Call a step again and again."""
    for _ in range(times):
        step()


def is_free(function: Any) -> bool:
    """Whether a call of a decorated function leaves no probe at work."""
    before = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    function()
    return not Observation.is_running() and torch.autograd._engine_run_backward is before  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [None, {}, {"steps": 2}], ids=["bare", "brackets", "steps"])
def test_first_steps_then_out(options: dict[str, Any] | None) -> None:
    """The first steps are observed (five unless said otherwise), then no probe is left and the report stays."""
    _, step = training()
    decorated: Any = gradscope.observe(step) if options is None else gradscope.observe(**options)(step)
    steps = (options or {}).get("steps", 5)
    for _ in range(steps):
        assert isinstance(decorated(), float)
    assert is_free(decorated)
    for _ in range(3):
        decorated()
    assert decorated.report().run.step_count == steps
    assert decorated.report().ok
    assert decorated.__name__ == "step"


def test_results_are_those_of_the_bare_step() -> None:
    """Losses and parameters are bit-identical."""
    torch.manual_seed(0)
    model, step = training()
    bare = [step() for _ in range(4)], [p.tolist() for p in model.parameters()]
    torch.manual_seed(0)
    model, step = training()
    decorated = gradscope.observe(steps=2)(step)
    assert ([decorated() for _ in range(4)], [p.tolist() for p in model.parameters()]) == bare


def test_a_finding_warns_once() -> None:
    """By default a finding is told as a warning with the whole explanation, once."""
    _, step = training(cut=True)
    decorated = gradscope.observe(steps=3, every=4)(step)
    with pytest.warns(gradscope.GradscopeWarning, match=r"error\[detach\]") as told:
        repeat(decorated, 8)
    assert len(told) == 1


def test_a_finding_raises() -> None:
    """`on_finding="raise"` raises after the last observed step, with the explanation."""
    _, step = training(cut=True)
    decorated = gradscope.observe(steps=3, on_finding="raise")(step)
    decorated()
    decorated()
    with pytest.raises(FindingsRaised, match="never learns"):
        decorated()
    assert is_free(decorated)


def test_a_finding_is_handed_over() -> None:
    """`on_finding` may be a function: it gets the report."""
    reports: list[Report] = []
    _, step = training(cut=True)
    decorated = gradscope.observe(steps=3, on_finding=reports.append)(step)
    for _ in range(5):
        decorated()
    assert [finding.rule for finding in reports[0].findings] == ["detach"]
    assert len(reports) == 1


def test_again_every_so_many_calls() -> None:
    """`every=4` looks again at calls 4, 8, ... for as many steps."""
    seen: list[bool] = []
    _, step = training()

    @gradscope.observe(steps=2, every=4)
    def decorated() -> None:
        seen.append(Observation.is_running())
        step()

    for _ in range(10):
        decorated()
    assert seen == [True, True, False, False] * 2 + [True, True]


def test_disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With GRADSCOPE=0 in the environment the function stays as it is, and its report says why it is empty."""
    _, step = training(cut=True)
    monkeypatch.setenv("GRADSCOPE", "0")
    decorated = gradscope.observe(step)
    assert decorated is step
    decorated()
    assert decorated.report().ok
    assert "GRADSCOPE=0 in the environment switches gradscope off" in str(decorated.report())


def test_types_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decorated function has the arguments and the result that it had, with parentheses and without, as a method."""
    monkeypatch.setenv("GRADSCOPE", "0")

    @gradscope.observe
    def bare(x: int, *, scale: float = 1.0) -> float:
        return x * scale

    @gradscope.observe(steps=1)
    def called(x: int) -> str:
        return str(x)

    class Trainer:
        @gradscope.observe(steps=1)
        def step(self, x: int) -> list[int]:
            return [x]

    assert_type(bare(2, scale=0.5), float)
    assert_type(called(2), str)
    assert_type(Trainer().step(2), list[int])
    assert_type(bare.report(), Report)
    assert_type(Trainer().step.report(), Report)
    assert (bare(2, scale=0.5), called(2), Trainer().step(2)) == (1.0, "2", [2])


def test_a_warning_points_at_the_line_of_the_call() -> None:
    """Who reads the warning finds his own line under it, not one of ours or of torch's."""
    _, step = training(cut=True)
    decorated = gradscope.observe(steps=2)(step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            decorated()
    told = [warning for warning in caught if warning.category is gradscope.GradscopeWarning]
    assert [warning.filename for warning in told] == [__file__]
    assert linecache.getline(__file__, told[0].lineno).strip() == "decorated()"


def test_a_method_that_leaves_backward_to_its_caller() -> None:
    """A step that only computes the loss is observed until the next one begins; its module gives the names."""

    class Lit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        @gradscope.observe(steps=2)
        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).square().mean()

    module = Lit()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        module.training_step(torch.rand(4, 3)).backward()
        optimizer.step()
    report = Lit.training_step.report()  # type: ignore[attr-defined]
    assert report.run.step_count == 2
    rows = {row.name: row.received.steps for row in report.tensors if row.role == "parameter"}
    assert rows == {"layer.weight": 2, "layer.bias": 2}
    assert not Observation.is_running()


def test_a_generator_of_steps() -> None:
    """Each item of a generator is a step; values sent, exceptions thrown in and the return value pass through."""
    _, step = training()

    @gradscope.observe(steps=2)
    def loop(times: int) -> Iterator[Any]:
        got = []
        for number in range(times):
            step()
            try:
                got.append((yield number))
            except KeyError:
                got.append("key")
        return got

    items: Any = loop(4)
    assert next(items) == 0
    assert items.send("a") == 1
    assert not Observation.is_running()
    assert items.throw(KeyError()) == 2
    assert next(items) == 3
    with pytest.raises(StopIteration) as end:
        next(items)
    assert end.value.value == ["a", "key", None, None]
    assert loop.report().run.step_count == 2  # type: ignore[attr-defined]


def test_a_coroutine() -> None:
    """A step that is awaited is looked at while it runs, and not while it waits; calls at one time share a look."""
    model, step = training(cut=True)
    reports: list[Report] = []
    other = torch.ones(2, requires_grad=True)

    @gradscope.observe(steps=3, on_finding=reports.append)
    async def decorated(number: int) -> int:
        await asyncio.sleep(0)
        step()
        await asyncio.sleep(0)
        return number

    async def others() -> None:
        for _ in range(4):
            other.exp()
            await asyncio.sleep(0)

    async def main() -> list[Any]:
        assert await decorated(-1) == -1
        return await asyncio.gather(*map(decorated, range(4)), others())

    assert inspect.iscoroutinefunction(decorated)
    assert asyncio.run(main()) == [0, 1, 2, 3, None]
    assert not Observation.is_running()
    (report,) = reports
    assert [finding.rule for finding in report.findings] == ["detach"]
    names = [operation.name for operation in operations(report.run)]
    assert "tanh" in names
    assert "Tensor.exp" not in names
    assert all(p.grad is not None for p in model[2].parameters())  # type: ignore[index]


def test_a_coroutine_that_raises_or_is_cancelled() -> None:
    """Its exceptions come out, those thrown in come to it, and no probe is left."""
    told: list[str] = []

    @gradscope.observe(on_finding=lambda report: told.append(report.findings[0].rule))
    async def decorated(wait: bool) -> None:
        try:
            await asyncio.sleep(3600 if wait else 0)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        w = torch.ones(3, requires_grad=True)
        y = w.exp()
        y += 1
        y.sum().backward()

    async def cancel() -> None:
        task = asyncio.ensure_future(decorated(True))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(RuntimeError, match="inplace"):
        asyncio.run(decorated(False))
    assert told == ["inplace-modified"]
    assert not Observation.is_running()
    decorated = gradscope.observe(decorated.__wrapped__)  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert told == ["inplace-modified", "cancelled"]
    assert not Observation.is_running()


def test_an_async_generator_of_steps() -> None:
    """Each item is a step; values sent, exceptions thrown in and the end pass through."""
    _, step = training()
    closed: list[str] = []

    @gradscope.observe(steps=2)
    async def loop(times: int) -> AsyncGenerator[Any, Any]:
        got: Any = None
        try:
            for number in range(times):
                await asyncio.sleep(0)
                step()
                try:
                    got = yield number, got
                except KeyError:
                    got = "key"
        finally:
            closed.append("closed")

    async def main() -> None:
        items = loop(4)
        assert await anext(items) == (0, None)
        assert await items.asend("a") == (1, "a")
        assert not Observation.is_running()
        assert await items.athrow(KeyError()) == (2, "key")
        assert [item async for item in items] == [(3, None)]
        assert closed == ["closed"]
        left = loop(4)
        await anext(left)
        await left.aclose()
        assert closed == ["closed"] * 2

    asyncio.run(main())
    assert loop.report().run.step_count == 2  # type: ignore[attr-defined]


def test_an_exception_is_explained_and_passes() -> None:
    """A step that raises is told of its cause; the exception is the program's own, and no probe is left."""
    w = torch.ones(3, requires_grad=True)

    @gradscope.observe
    def step() -> None:
        y = w.exp()
        y += 1
        y.sum().backward()

    with (
        pytest.warns(gradscope.GradscopeWarning, match="inplace-modified"),
        pytest.raises(RuntimeError),
    ):
        step()
    assert not Observation.is_running()


def test_within_another_observation() -> None:
    """Where somebody observes already, a decorated step is merely called, and its report is theirs."""
    _, step = training()
    decorated: Any = gradscope.observe(step)
    with gradscope.observe() as seen:
        decorated()
        decorated()
    assert seen.report().run.step_count == decorated.report().run.step_count == 2


def test_the_counting_form() -> None:
    """Without operations there are the counts and the moves, and no finding that needs the data flow."""
    model, step = training(cut=True)
    decorated: Any = gradscope.observe(model=model, steps=3, operations=False, on_finding=lambda report: None)(step)
    for _ in range(3):
        decorated()
    report = decorated.report()
    received = {row.name: (row.received.steps, row.received.of) for row in report.tensors if row.received}
    assert received == {
        "model.0.weight": (0, 3),
        "model.0.bias": (0, 3),
        "model.2.weight": (3, 3),
        "model.2.bias": (3, 3),
    }
    assert all(row.moved for row in report.tensors if row.name.startswith("2."))
    assert report.graph.operations == 0


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 3, "every": 2}, {"on_finding": "shout"}], ids=["steps", "every", "on_finding"]
)
def test_misuse(options: dict[str, Any]) -> None:
    """Options that make no sense are refused with a line that says what to give."""
    with pytest.raises(ValueError, match="must be"):
        gradscope.observe(**options)


def test_a_block_that_tells() -> None:
    """A `with` block tells of findings at its end where it is asked to, and not otherwise."""
    _, step = training(cut=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gradscope.observe():
            step()
            step()
    with pytest.raises(FindingsRaised), gradscope.observe(on_finding="raise"):
        repeat(step, 2)


def test_counting_form_does_not_judge_what_it_has_not_seen() -> None:
    """Without operations nobody knows why a gradient is missing: rules that need them are not asked, which is said."""
    encoder, decoder = nn.Linear(4, 4), nn.Linear(4, 2)
    model = nn.Sequential(encoder, decoder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @gradscope.observe(model=model, optimizer=optimizer, steps=3, operations=False, on_finding=lambda report: None)
    def step() -> None:
        loss = decoder(encoder(torch.randn(8, 4)).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    report = step.report()
    assert report.findings == ()
    asked = {rule.rule: rule.needs for rule in report.document.not_asked}
    assert asked["detach"] == asked["unused-parameter"] == "operations"
    assert "missing-zero-grad" not in asked
    assert f"not asked: {len(asked)} rules that need operations" in str(report)
