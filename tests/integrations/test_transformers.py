"""The callback for `transformers.Trainer`, and plain loops of accelerate, with tiny models and no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.probes.observation import running
from gradscope.reports.report import FindingsRaised
from tests.workshop import Workshop


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, offline and quiet."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install '.[transformers]'")
    module = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install '.[transformers]'", exc_type=ImportError
    )
    module.logging.set_verbosity_error()
    yield module
    module.logging.set_verbosity_warning()


class Net(nn.Module):
    """Two layers; with `cut` the first one is cut off."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.cut = cut

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a trainer asks for."""
        hidden = torch.relu(self.first(x))
        out = self.second(hidden.detach() if self.cut else hidden)
        return {"loss": (out - labels).square().mean(), "logits": out}


def trainer(transformers: Any, folder: Path, net: nn.Module, *callbacks: Any, **options: Any) -> Any:
    """A trainer that says nothing."""
    arguments = {"max_steps": 6, "per_device_train_batch_size": 2, "report_to": "none", "save_strategy": "no"}
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        **{**arguments, **options},
    )
    torch.manual_seed(1)
    data = [{"x": torch.rand(4), "labels": torch.rand(1)} for _ in range(64)]
    return transformers.Trainer(model=net, args=args, train_dataset=data, callbacks=list(callbacks))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_training_is_explained(
    transformers: Any, tmp_path: Path, accumulated: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first steps are observed, the cut is told with its line, and the trainer is left as it was."""
    from gradscope.integrations.transformers import GradscopeCallback

    callback = GradscopeCallback(steps=3)
    modes: list[int] = []

    class Looking(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            modes.append(int(running() is not None))

    assert callback.report is None
    made = trainer(transformers, tmp_path, Net(cut=True), callback, Looking(), gradient_accumulation_steps=accumulated)
    made.train()
    report = callback.report
    assert report is not None
    assert f"{report}\n" in capsys.readouterr().out
    assert (report.run.step_count, report.run.backward_count) == (3, 3 * accumulated)
    assert modes == [1, 1, 1, 0, 0, 0]
    assert "training_step" not in vars(made)
    (finding,) = report.findings
    assert (finding.rule, finding.tensors) == ("detach", ("first.weight", "first.bias"))
    assert finding.span is not None
    assert finding.span.function == "Net.forward"
    received = {row.name: row.received.steps for row in report.tensors if row.received is not None}
    assert received == {"first.weight": 0, "first.bias": 0, "second.weight": 3, "second.bias": 3}
    assert list(report.run.failures) == []


def test_an_observed_training_is_bit_identical(transformers: Any, tmp_path: Path) -> None:
    """The same values come out with the callback and without; a correct one that is short draws nothing."""
    from gradscope.integrations.transformers import GradscopeCallback

    callback = GradscopeCallback(log=None)
    ends = []
    for callbacks in ([], [callback]):
        torch.manual_seed(0)
        net = Net()
        trainer(transformers, tmp_path, net, *callbacks, gradient_accumulation_steps=2, warmup_steps=1).train()
        ends.append([*net.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))
    assert callback.report is not None
    assert callback.report.findings == ()
    assert callback.report.run.step_count == 6


def test_findings_can_raise(transformers: Any, tmp_path: Path) -> None:
    """With `fail_on`, `train` raises the explanation; nothing of ours stays behind."""
    from gradscope.integrations.transformers import GradscopeCallback

    callback = GradscopeCallback(steps=2, fail_on="error", log=None)
    made = trainer(transformers, tmp_path, Net(cut=True), callback)
    with pytest.raises(FindingsRaised, match="never learns: its 2 parameters got no gradient in 2 steps"):
        made.train()
    assert running() is None
    assert "training_step" not in vars(made)


def test_an_exception_is_explained(transformers: Any, tmp_path: Path) -> None:
    """What a training step raises comes out as it is, the report tells its cause, and the trainer is as it was."""
    from gradscope.integrations.transformers import GradscopeCallback

    class Failing(Net):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            out = super().forward(x, labels)
            out["loss"].backward()
            return out

    texts: list[str] = []
    made = trainer(transformers, tmp_path, Failing(), GradscopeCallback(log=texts.append))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        made.train()
    (text,) = texts
    assert text.startswith("error[freed-graph]")
    assert running() is None
    assert "training_step" not in vars(made)


ACCELERATED = """
    import torch
    from accelerate import Accelerator

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(torch.rand(32, 4), batch_size=4)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(net):
            loss = net(batch).square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    print(float(loss), [p.sum().item() for p in net.parameters()])
"""


@pytest.mark.usefixtures("transformers")
def test_a_loop_of_accelerate_just_works(workshop: Workshop) -> None:
    """Under `gradscope explain` it gives what it gives bare, every parameter learns, and nothing is found."""
    workshop.write(ACCELERATED)
    bare, seen = workshop.pair("script.py", options=["-o", "report.txt"])
    assert (seen.status, seen.out) == (bare.status, bare.out)
    text = (workshop.folder / "report.txt").read_text()
    assert "4 steps" in text
    assert "no findings" in text


@pytest.mark.usefixtures("transformers")
def test_observe_around_a_loop_of_accelerate() -> None:
    """The library's `observe` sees through what accelerate prepares."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net, made = Net(), Net(cut=True)
    optimizer = torch.optim.SGD([*net.parameters(), *made.parameters()], lr=0.1)
    prepared, other, stepping = accelerator.prepare(net, made, optimizer)
    with gradscope.observe(optimizer=optimizer) as seen:
        for _ in range(3):
            x, y = torch.rand(2, 4), torch.rand(2, 1)
            accelerator.backward(prepared(x, y)["loss"] + other(x, y)["loss"])
            stepping.step()
            stepping.zero_grad()
    report = seen.report()
    assert report.run.step_count == 3
    assert [loss.name for loss in report.run.losses] == ["loss"]  # and not "accelerator", which calls backward
    assert [finding.rule for finding in report.findings] == ["detach"]
