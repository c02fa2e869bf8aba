"""The callback for Lightning, in real fits of a tiny model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from gradscope.probes.observation import running
from gradscope.reports.report import FindingsRaised
from gradscope.rules import UnknownRule

pytestmark = [
    # Lightning's own: a loader without workers, and what its parts still call of torch's.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:DeprecationWarning"),
]


@pytest.fixture
def lightning() -> Iterator[Any]:
    """The library, which speaks of errors only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        module = pytest.importorskip(
            "lightning", reason="lightning is not installed: pip install '.[lightning]'", exc_type=ImportError
        )
        logger = logging.getLogger("lightning.pytorch")
        before = logger.level
        logger.setLevel(logging.ERROR)
        yield module
        logger.setLevel(before)


def model(lightning: Any, step: Callable[[Any, torch.Tensor, int], Any], optimizers: int = 1, **flags: Any) -> Any:
    """A module of two layers with a step of the test's."""

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
            for name, value in flags.items():
                setattr(self, name, value)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            return step(self, batch, batch_idx)

        def configure_optimizers(self) -> Any:
            parts = [self] if optimizers == 1 else [self.first, self.second]
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

    return Net()


def fit(lightning: Any, net: Any, *callbacks: Any, batches: int = 8, **options: Any) -> None:
    """One epoch over so many batches."""
    torch.manual_seed(1)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(net, torch.utils.data.DataLoader(torch.rand(2 * batches, 4), batch_size=2))


def learning(net: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
    """Both layers learn."""
    return net.second(torch.relu(net.first(batch))).square().mean()  # type: ignore[no-any-return]


def cut(net: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
    """The first layer does not."""
    hidden = torch.relu(net.first(batch))
    return net.second(hidden.detach()).square().mean()  # type: ignore[no-any-return]


def by_hand(net: Any, batch: torch.Tensor, batch_idx: int) -> None:
    """Manual optimisation of two optimizers, which step in turn."""
    optimizer = net.optimizers()[batch_idx % 2]
    loss = learning(net, batch, batch_idx)
    optimizer.zero_grad()
    net.manual_backward(loss)
    optimizer.step()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_fit_is_explained(lightning: Any, accumulated: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The first steps are observed, the cut is told with its line, and the rest of the fit runs without us."""
    from gradscope.integrations.lightning import GradscopeCallback

    callback = GradscopeCallback(steps=3)
    modes: list[int] = []

    class Looking(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, *_: Any) -> None:
            modes.append(int(running() is not None))

    assert callback.report is None
    fit(lightning, model(lightning, cut), callback, Looking(), batches=8, accumulate_grad_batches=accumulated)
    report = callback.report
    assert report is not None
    assert capsys.readouterr().out == f"{report}\n"
    assert (report.run.step_count, report.run.backward_count) == (3, 3 * accumulated)
    assert modes == [1] * 3 * accumulated + [0] * (8 - 3 * accumulated)
    (finding,) = report.findings
    assert (finding.rule, finding.tensors) == ("detach", ("first.weight", "first.bias"))
    assert finding.span is not None
    assert finding.span.function == "cut"
    received = {row.name: row.received.steps for row in report.tensors if row.received is not None}
    assert received == {"first.weight": 0, "first.bias": 0, "second.weight": 3, "second.bias": 3}
    assert list(report.run.failures) == []


def test_manual_optimisation_of_several_optimizers(lightning: Any) -> None:
    """Every optimizer's steps are counted; a correct fit draws nothing, and one that is short ends with the fit."""
    from gradscope.integrations.lightning import GradscopeCallback

    callback = GradscopeCallback(log=None)
    net = model(lightning, by_hand, 2, automatic_optimization=False)
    fit(lightning, net, callback, batches=6)
    report = callback.report
    assert report is not None
    assert report.findings == ()
    assert [optimizer.steps for optimizer in report.run.optimizers] == [3, 3]
    assert all(row.received is not None and row.received.steps for row in report.tensors if row.role == "parameter")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_observed_fit_is_bit_identical(lightning: Any, accumulated: int) -> None:
    """The same values come out of a fit with the callback and of one without."""
    from gradscope.integrations.lightning import GradscopeCallback

    ends = []
    for callbacks in ([], [GradscopeCallback(steps=2, log=None)]):
        torch.manual_seed(0)
        net = model(lightning, learning)
        fit(lightning, net, *callbacks, accumulate_grad_batches=accumulated)
        ends.append([*net.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))


def test_findings_can_raise(lightning: Any) -> None:
    """With `fail_on`, `fit` raises the explanation once the steps are spent; nothing of ours stays behind."""
    from gradscope.integrations.lightning import GradscopeCallback

    callback = GradscopeCallback(steps=2, fail_on="error", log=None)
    with pytest.raises(FindingsRaised, match="never learns: its 2 parameters got no gradient in 2 steps"):
        fit(lightning, model(lightning, cut), callback)
    assert callback.report is not None
    assert running() is None
    calm = GradscopeCallback(steps=2, fail_on="error", log=None, ignore=["detach"])
    fit(lightning, model(lightning, cut), calm)
    assert calm.report is not None
    assert calm.report.findings == ()


def test_an_exception_is_explained(lightning: Any) -> None:
    """What a step raises comes out as it is, and the report tells its cause."""
    from gradscope.integrations.lightning import GradscopeCallback

    def freed(net: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = learning(net, batch, batch_idx)
        loss.backward()
        return loss

    texts: list[str] = []
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        fit(lightning, model(lightning, freed), GradscopeCallback(log=texts.append))
    (text,) = texts
    assert text.startswith("error[freed-graph]")
    assert running() is None


def test_wrong_arguments_are_refused_at_once(lightning: Any) -> None:
    """Before any training."""
    from gradscope.integrations.lightning import GradscopeCallback

    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        GradscopeCallback(steps=0)
    with pytest.raises(ValueError, match="fail_on must be one of info, warning, error, never, not 'fatal'"):
        GradscopeCallback(fail_on="fatal")  # type: ignore[arg-type]
    with pytest.raises(UnknownRule):
        GradscopeCallback(ignore=["detatch"])
