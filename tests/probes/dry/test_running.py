"""Dry runs: what runs with fake tensors, what stands in, when it ends, and what is put back."""

from __future__ import annotations

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import gradscope
from gradscope.graph.facts import Run
from gradscope.probes.program.scripts import Outcome, observe_program, program_of_script
from gradscope.reports.report import Report
from tests.workshop import Workshop, named

TRAINING = """
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Linear(8, 4)
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.encoder(x).detach())

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for step in range(1000):
        x, y = torch.randn(16, 8), torch.randint(0, 3, (16,))
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"{step}: {loss.item():.3f} {float(loss.detach()):.2f} {loss:.1f}")
"""


def dry(workshop: Workshop, source: str, steps: int | None = None) -> Outcome:
    """Run a program dry."""
    workshop.write(source)
    return observe_program(program_of_script("script.py", ()), steps, dry=True)


def dry_run(workshop: Workshop, source: str, steps: int | None = None) -> Run:
    """The facts of a program that runs dry to its end."""
    outcome = dry(workshop, source, steps)
    if outcome.error is not None:
        raise outcome.error
    assert list(outcome.run.failures) == []
    return outcome.run


def test_a_cut_is_found_without_a_value(workshop: Workshop) -> None:
    """The same finding as for real, after 3 steps and one more."""
    run = dry_run(workshop, TRAINING)
    report = Report.of(run)
    assert [(found.rule, found.span and found.span.line) for found in report.findings] == [("detach", 10)]
    assert run.step_count == 4
    assert run.ended == "steps"
    assert "values" not in run.observed
    assert "zero-gradient" in report.not_asked
    rows = {row.name: row for row in report.tensors}
    assert (rows["head.weight"].predicted, rows["encoder.weight"].predicted) == (True, False)
    assert all(row.received is None and row.moved is None and not row.grad_norm for row in report.tensors)


def test_steps_say_otherwise(workshop: Workshop) -> None:
    """`--steps` has the last word on when a dry run ends."""
    assert dry_run(workshop, TRAINING, steps=7).step_count == 7


def test_each_optimizer_makes_its_steps(workshop: Workshop) -> None:
    """One that steps seldom is waited for, and goes one further round."""
    run = dry_run(
        workshop,
        """
        import torch
        a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        often, seldom = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (a, b))
        for step in range(100):
            for net, optimizer in ((a, often), (b, seldom)):
                optimizer.zero_grad()
                net(torch.ones(3, 2)).sum().backward()
                if optimizer is often or step % 2 == 1:
                    optimizer.step()
        """,
    )
    assert sorted(optimizer.steps for optimizer in run.optimizers) == [4, 8]


def test_the_report_says_what_stood_in(workshop: Workshop) -> None:
    """Text and JSON: that it was dry, stand-ins with their lines, and rules that were not asked."""
    workshop.write(TRAINING)
    ended = workshop.gradscope("explain", "--dry", "script.py")
    assert "0: 1.000 1.00 1.0" in ended.out
    assert "script.py, dry, 4 steps, 1 finding" in ended.out
    assert "ended when every optimizer had made 3 steps and one more" in " ".join(ended.out.split())
    assert "stood in for a value that was read, 3 times: 1.0 (script.py:21)" in ended.out
    assert "predicted" in ended.out
    assert "moved\n" not in ended.out.partition("gradscope: ")[0]
    assert "rules that need values" in ended.out
    ended = workshop.gradscope("explain", "--dry", "--format", "json", "-o", "report.json", "script.py")
    run = json.loads((workshop.folder / "report.json").read_text())["run"]
    assert run["dry"] is True
    assert run["stand_ins"] == [
        {"what": "a value that was read", "instead": "1.0", "count": 3, "location": {"file": "script.py", "line": 21}}
    ]


def test_small_integers_stay_real(workshop: Workshop) -> None:
    """Indices, masks and labels keep the control flow true; what leaves torch has the right shape."""
    dry_run(
        workshop,
        """
        import copy, torch
        order = torch.arange(6)
        assert order[1:].view(5, 1).tolist() == [[1], [2], [3], [4], [5]]
        mask = torch.zeros(6, dtype=torch.bool)
        mask[2:4] = True
        assert order[mask].tolist() == [2, 3] and int(mask.sum()) == 2
        x = torch.randn(6, 3)
        assert x[mask].shape == (2, 3) and x[x > 0].shape[0] > 0
        assert torch.nonzero(mask).tolist() == [[2], [3]] and torch.unique(order % 2).tolist() == [0, 1]
        assert x.numpy().shape == (6, 3) and len(x.tolist()) == 6 and torch.isfinite(x).all()
        assert 0 < (torch.rand(1000) < 0.5).sum() < 1000
        assert torch.tensor([x.mean(), x.sum()]).shape == torch.Tensor([x.mean(), 2]).shape == (2,)
        assert torch.distributions.Categorical(logits=x).sample().max().item() < 3
        net = torch.nn.BatchNorm1d(3)
        assert copy.deepcopy(net).running_mean.shape == (3,)
        torch.save(net.state_dict(), "net.pt")
        net.load_state_dict(torch.load("net.pt"))
        """,
    )
    assert not (workshop.folder / "net.pt").exists()


def test_no_accelerator_is_needed(workshop: Workshop) -> None:
    """CUDA in the places where people write it, mixed precision, fused kernels, compiled functions and workers."""
    run = dry_run(
        workshop,
        """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        device = torch.device("cuda")
        torch.cuda.set_device(0)
        net = torch.compile(torch.nn.Linear(4, 2).cuda().to("cuda:0"))
        data = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
        loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=2, pin_memory=True)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cuda")
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.pin_memory().cuda()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(net(x), y) + torch.zeros((), device="cuda")
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        torch.cuda.synchronize()
        """,
    )
    assert run.step_count == 4
    assert Report.of(run).findings == ()
    assert run.dry is not None
    assert {stood.what for stood in run.dry.stand_ins} >= {"torch.compile", "2 workers of a DataLoader"}


def test_threads_run_dry_too(workshop: Workshop) -> None:
    """What a thread makes is as fake as what the main thread makes."""
    run = dry_run(
        workshop,
        """
        import threading, torch
        from torch._subclasses.fake_tensor import FakeTensor
        made = []
        def make(): made.append(torch.nn.Linear(2, 2)(torch.randn(3, 2)))
        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(made) == 4 and all(isinstance(tensor, FakeTensor) for tensor in made)
        """,
    )
    assert run.ended == "end"


def test_a_crash_is_explained(workshop: Workshop) -> None:
    """What torch refuses for real it refuses dry, and the report has the cause."""
    outcome = dry(
        workshop,
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        y = torch.sigmoid(w * 2)
        y.add_(1)
        y.sum().backward()
        """,
    )
    assert isinstance(outcome.error, RuntimeError)
    assert [found.rule for found in Report.of(outcome.run).findings] == ["inplace-modified"]


def test_a_parameter_that_no_optimizer_holds(workshop: Workshop) -> None:
    """Gradients of which nobody knows the value count as gradients."""
    run = dry_run(
        workshop,
        """
        import torch
        net = torch.nn.Linear(4, 4)
        head = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            head(net(torch.randn(8, 4))).square().mean().backward()
            optimizer.step()
        """,
    )
    assert [found.rule for found in Report.of(run).findings] == ["not-in-optimizer"]


def test_gradients_that_are_set_by_hand(workshop: Workshop) -> None:
    """A step on gradients without values that somebody has written is no step without a backward."""
    run = dry_run(
        workshop,
        """
        import torch
        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(6):
            loss = net(torch.randn(8, 4)).square().mean()
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            for parameter, gradient in zip(net.parameters(), gradients):
                parameter.grad = gradient
            optimizer.step()
        """,
    )
    assert Report.of(run).findings == ()


def test_a_block_leaves_what_was_there_before() -> None:
    """A dry block changes no value, gradient or state of what existed before, and takes all of its own out again."""
    net = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    before = [tensor.detach().clone() for tensor in net.parameters()]
    gradients = [tensor.grad for tensor in net.parameters()]
    save, compile_, loader = torch.save, torch.compile, torch.utils.data.DataLoader.__init__
    with gradscope.observe(model=net, optimizer=optimizer, dry=True) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(3, 4)).sum().backward()
            optimizer.step()
    run = seen.report().run
    assert run.dry is not None
    assert run.step_count == 3
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
    assert all(old is new.grad for old, new in zip(gradients, net.parameters(), strict=True))
    assert optimizer.state[net.weight]["step"].item() == 1
    assert (torch.save, torch.compile, torch.utils.data.DataLoader.__init__) == (save, compile_, loader)
    assert type(torch.ones(1)) is torch.Tensor


def test_a_dry_decorator_is_refused() -> None:
    """What it gives its caller would be fake."""
    with pytest.raises(TypeError, match="with"):

        @gradscope.observe(dry=True)
        def step() -> None: ...


@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_outputs_without_values_are_explained(kind: str) -> None:
    """`explain` walks a graph of fake and of meta tensors as it walks any."""
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        net = torch.nn.Linear(4, 2)
        frozen = torch.nn.Linear(2, 2).requires_grad_(False)
        loss = frozen(net(torch.ones(3, 4))).sum()
    report = gradscope.explain(loss, model=net)
    assert report.ok
    rows = {row.name: row for row in report.tensors}
    assert rows["model.weight"].predicted


def test_a_real_run_is_not_dry(workshop: Workshop) -> None:
    """Nothing of it is in the report of another run."""
    run = workshop.run(TRAINING, steps=2)
    assert run.dry is None
    assert Report.of(run).document.run.dry is False
    assert named(run, "head.weight").change
