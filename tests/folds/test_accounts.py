"""What becomes of gradients: applied, cleared, piled up, thrown away, and what observing them leaves untouched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import gradscope
from gradscope.graph.facts import Ledger, Optimizer, Run
from tests.workshop import Workshop, named

HEAD = """
import torch
w = torch.ones(3, requires_grad=True)
v = torch.ones(3, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)
def loss():
    return (w * torch.rand(3)).sum()
"""


def run_of(workshop: Workshop, body: str) -> Run:
    """The facts of a program that follows on `HEAD`."""
    lines = body.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    return workshop.run(HEAD + "\n".join(line[margin:] for line in lines))


def ledger(run: Run, name: str = "w") -> Ledger:
    """The account of a tensor."""
    found = named(run, name).ledger
    assert found is not None
    return found


def text(workshop: Workshop, run: Run, place: object) -> str:
    """The source line of a span."""
    assert isinstance(place, gradscope.graph.facts.Span)
    return (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()[place.line - 1].strip()


def only(run: Run) -> Optimizer:
    """The only optimizer of a run."""
    (optimizer,) = run.optimizers
    return optimizer


def test_each_backward_and_step_is_counted(workshop: Workshop) -> None:
    """A run in order: every gradient is applied once, and the lines that arrive, clear and step are known."""
    run = run_of(
        workshop,
        """
        for _ in range(4):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        """,
    )
    found = ledger(run)
    assert (found.passes, found.applied, found.first, found.last) == (4, 4, 1, 4)
    assert (found.piled, found.starved, found.reapplied, found.robbed, found.by_hand) == (0, 0, 0, 0, 0)
    assert found.cleared is None
    assert text(workshop, run, found.backward) == "loss().backward()"
    optimizer = only(run)
    assert (optimizer.steps, optimizer.uses, optimizer.fed) == (4, 4, 4)
    assert text(workshop, run, optimizer.stepped) == "optimizer.step()"
    assert text(workshop, run, optimizer.cleared) == "optimizer.zero_grad()"
    assert run.discards == ()


COUNTS = {
    "piled": ("loss().backward()\noptimizer.step()", {"applied": 4, "piled": 3}),
    "accumulated": (
        "loss().backward()\nloss().backward()\noptimizer.step()\nw.grad = None",
        {"passes": 8, "applied": 4},
    ),
    "cleared": ("loss().backward()\noptimizer.zero_grad()\noptimizer.step()", {"starved": 4, "cleared_first": 4}),
    "zeroed": (
        "loss().backward()\noptimizer.zero_grad(set_to_none=False)\noptimizer.step()",
        {"starved": 4, "cleared_first": 4},
    ),
    "starved": ("loss()\noptimizer.step()", {"passes": 0, "starved": 4, "cleared_first": 0}),
    "looked_at_and_cleared": (
        "loss().backward()\ntorch.nn.utils.clip_grad_norm_([w], 1.0)\noptimizer.zero_grad()\noptimizer.step()",
        {"starved": 4, "cleared_first": 4, "by_hand": 0},
    ),
    "applied_again": ("if _ == 0:\n    loss().backward()\noptimizer.step()", {"applied": 1, "reapplied": 3}),
    "written": ("w.grad = torch.ones(3)\noptimizer.step()", {"passes": 0, "applied": 4}),
    "cleared_by_none": ("w.grad = None\nloss().backward()\noptimizer.step()", {"applied": 4, "piled": 0}),
    "cleared_by_del": ("loss().backward()\noptimizer.step()\ndel w.grad", {"applied": 4, "piled": 0}),
    "cleared_by_zero_": ("loss().backward()\noptimizer.step()\nw.grad.zero_()", {"applied": 4, "piled": 0}),
    "cleared_by_fill_": ("loss().backward()\noptimizer.step()\nw.grad.fill_(0)", {"applied": 4, "piled": 0}),
    "scaled": ("loss().backward()\nw.grad.div_(2)\noptimizer.step()\nw.grad = None", {"applied": 4, "by_hand": 0}),
}


@pytest.mark.parametrize("case", COUNTS)
def test_what_became_of_four_gradients(case: str, workshop: Workshop) -> None:
    """Each way to apply, clear, repeat or write gradients has its counts."""
    body, expected = COUNTS[case]
    program = "for _ in range(4):\n" + "\n".join(f"    {line}" for line in body.splitlines())
    found = ledger(run_of(workshop, program))
    assert {name: getattr(found, name) for name in expected} == expected


def test_clears_are_swept_or_single(workshop: Workshop) -> None:
    """The line of the clear is kept, and whether the whole optimizer or one tensor was cleared."""
    for line, swept in (("optimizer.zero_grad()", True), ("w.grad = None", False)):
        run = run_of(workshop, f"for _ in range(3):\n    loss().backward()\n    {line}\n    optimizer.step()")
        found = ledger(run)
        assert found.swept is swept
        assert text(workshop, run, found.cleared) == line


def test_updates_by_hand_are_uses(workshop: Workshop) -> None:
    """In-place updates, updates through `.data` and assignments to `.data` apply a gradient."""
    for update in ("v -= 0.1 * v.grad", "v.data.sub_(0.1 * v.grad)", "v.data = v.data - 0.1 * v.grad"):
        run = run_of(
            workshop,
            f"""
            for _ in range(4):
                (v * 2).sum().backward()
                with torch.no_grad():
                    {update}
            """,
        )
        found = ledger(run, "v")
        assert (found.applied, found.piled) == (4, 3), update
        assert found.by_hand >= 4


def test_closure_calls_are_uses(workshop: Workshop) -> None:
    """Each call of a step's closure uses what it left; the step itself counts once."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=3, tolerance_grad=0, tolerance_change=0)
        calls = []
        def closure():
            optimizer.zero_grad()
            loss = (w ** 4).sum()
            loss.backward()
            calls.append(1)
            return loss
        for _ in range(2):
            optimizer.step(closure)
        print(len(calls))
        """
    )
    optimizer = only(run)
    assert optimizer.steps == 2
    assert optimizer.uses == optimizer.fed == ledger(run).applied > 2
    assert ledger(run).piled == 0


def test_backwards_in_vain(workshop: Workshop) -> None:
    """Backwards whose gradients nobody used before the clear are counted by their line, with what they reached."""
    run = run_of(
        workshop,
        """
        for _ in range(3):
            for _ in range(2):
                optimizer.zero_grad()
                loss().backward()
            optimizer.step()
        """,
    )
    (discard,) = run.discards
    assert (discard.passes, discard.vain) == (6, 3)
    assert discard.tensors == (named(run, "w").id,)
    assert text(workshop, run, discard.backward) == "loss().backward()"
    assert text(workshop, run, discard.cleared) == "optimizer.zero_grad()"


@pytest.mark.parametrize(
    "look",
    [
        None,
        "w.grad.norm().item()",
        "torch.nn.utils.clip_grad_norm_([w], 1.0)",
        "kept = w.grad.clone()",
        "scaler.unscale_(optimizer)",
        "w.detach().sub_(w.grad)",
    ],
)
def test_gradients_that_are_looked_at_are_not_in_vain(look: str | None, workshop: Workshop) -> None:
    """Whoever reads a gradient and then clears it has had something of it."""
    body = f"""
    for _ in range(4):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        scaler.scale(loss()).backward()
        {look}
        optimizer.zero_grad()
    optimizer.step()
    """
    assert [discard.vain for discard in run_of(workshop, body).discards] == ([4] if look is None else [])


def test_robbed_of_a_shared_gradient(workshop: Workshop) -> None:
    """A tensor whose gradient was cleared while the same backward's others were applied was robbed."""
    run = run_of(
        workshop,
        """
        other = torch.optim.SGD([w], lr=0.1)
        optimizer = torch.optim.SGD([w, v], lr=0.1)
        for _ in range(3):
            (w * v).sum().backward()
            other.zero_grad()
            (w * 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        """,
    )
    assert (ledger(run).robbed, ledger(run, "v").robbed) == (3, 0)
    assert ledger(run).applied == ledger(run, "v").applied == 3


def test_second_optimizer_uses_the_same_gradient(workshop: Workshop) -> None:
    """What one optimizer has used is new to another."""
    run = run_of(
        workshop,
        """
        second = torch.optim.SGD([w], lr=0.1)
        for _ in range(3):
            loss().backward()
            optimizer.step()
            second.step()
            second.zero_grad()
        """,
    )
    assert ledger(run).applied == 6
    assert ledger(run).reapplied == 0
    assert [(optimizer.uses, optimizer.fed) for optimizer in run.optimizers] == [(3, 3), (3, 3)]


def test_groups_added_later_are_held(workshop: Workshop) -> None:
    """What `add_param_group` gave an optimizer is held from its next step on."""
    run = run_of(
        workshop,
        """
        for i in range(4):
            if i == 2:
                optimizer.add_param_group({"params": [v]})
            optimizer.zero_grad()
            (w * v).sum().backward()
            optimizer.step()
        """,
    )
    assert only(run).tensors == (named(run, "w").id, named(run, "v").id)
    assert ledger(run).applied == 4
    assert ledger(run, "v").starved == 0
    assert ledger(run, "v").applied == 2


# --- observed programs are as they were ----------------------------------------------------------------------------

Tensors = list[torch.Tensor]


def clearing(way: Callable[[nn.Module, torch.optim.Optimizer], None]) -> Tensors:
    """Six steps of Adam with one way to clear; values and gradients after each."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    seen = []
    for _ in range(6):
        F.mse_loss(net(torch.rand(8, 4)), torch.rand(8, 1)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        way(net, optimizer)
        seen += [tensor.clone() for p in net.parameters() for tensor in (p.detach(), p.grad) if tensor is not None]
    return seen


def closures(optimizer_of: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Tensors:
    """Steps with closures, one by position and one by name; values, losses and gradients."""
    net = nn.Linear(4, 1)
    optimizer = optimizer_of(list(net.parameters()))
    x, y = torch.rand(8, 4), torch.rand(8, 1)
    seen: Tensors = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y) + 0 * torch.rand(())
        loss.backward()
        return loss

    for step in range(4):
        loss = optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
        assert isinstance(loss, torch.Tensor)
        seen += [loss.detach(), *(p.detach().clone() for p in net.parameters())]
    return seen + [p.grad for p in net.parameters() if p.grad is not None]


def each_to_none(net: nn.Module) -> None:
    """`.grad = None`, one by one."""
    for p in net.parameters():
        p.grad = None


def each_to_zero(net: nn.Module) -> None:
    """`.grad.zero_()`, one by one."""
    for p in net.parameters():
        assert p.grad is not None
        p.grad.zero_()


PROGRAMS: dict[str, Callable[[], Tensors]] = {
    "optimizer": lambda: clearing(lambda net, optimizer: optimizer.zero_grad()),
    "to zeros": lambda: clearing(lambda net, optimizer: optimizer.zero_grad(set_to_none=False)),
    "by position": lambda: clearing(lambda net, optimizer: optimizer.zero_grad(False)),
    "module": lambda: clearing(lambda net, optimizer: net.zero_grad()),
    "each to none": lambda: clearing(lambda net, optimizer: each_to_none(net)),
    "each to zero": lambda: clearing(lambda net, optimizer: each_to_zero(net)),
    "never": lambda: clearing(lambda net, optimizer: None),
    "lbfgs": lambda: closures(lambda p: torch.optim.LBFGS(p, max_iter=5, line_search_fn="strong_wolfe")),
    "sgd closure": lambda: closures(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_observed_runs_are_bit_identical(program: str) -> None:
    """Values, gradients and the random state are those of the bare run, however gradients are cleared or used."""
    torch.manual_seed(5)
    bare = [*PROGRAMS[program](), torch.get_rng_state()]
    torch.manual_seed(5)
    with gradscope.observe() as seen:
        observed = [*PROGRAMS[program](), torch.get_rng_state()]
    assert len(bare) == len(observed) > 6
    assert all(map(torch.equal, observed, bare))
    assert list(seen.report().run.failures) == []


def test_gradients_keep_their_identity() -> None:
    """A `.grad` kept by the program is the object that it was, and `set_to_none` gives None."""
    w = torch.ones(2, requires_grad=True)
    with gradscope.observe():
        optimizer = torch.optim.SGD([w], lr=0.1)
        w.sum().backward()
        kept = w.grad
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        assert w.grad is kept
        assert kept is not None
        assert not kept.any()
        optimizer.zero_grad()
        assert w.grad is None


def test_what_was_patched_is_put_back() -> None:
    """`zero_grad`, the optimizer's hooks and its `__init__` are torch's own again, and were ours meanwhile."""
    import torch.optim.optimizer as optimizers

    def state() -> list[object]:
        hooks = [len(getattr(optimizers, f"_global_optimizer_{kind}_hooks")) for kind in ("pre", "post")]
        owners = (torch.optim.Optimizer, nn.Module)
        return [vars(torch.optim.Optimizer)["__init__"], *(vars(owner)["zero_grad"] for owner in owners), *hooks]

    before = state()
    with gradscope.observe():
        during = state()
        closures(lambda p: torch.optim.SGD(p, lr=0.1))
    assert state() == before
    assert all(now != then for now, then in zip(during, before, strict=True))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.SGD])
def test_an_exception_in_a_closure_comes_out(
    optimizer: Callable[..., torch.optim.Optimizer], error: type[BaseException]
) -> None:
    """What a closure raises is what the program sees, and the next step goes on."""
    w = torch.ones(2, requires_grad=True)
    thrown = error("in the closure")

    def closure() -> float:
        raise thrown

    def good() -> torch.Tensor:
        stepping.zero_grad()
        loss = w.sum()
        loss.backward()
        return loss

    with gradscope.observe() as seen:
        stepping = optimizer([w], lr=0.1)
        with pytest.raises(error) as caught:
            stepping.step(closure)
        stepping.step(good)
    assert caught.value is thrown
    run = seen.report().run
    assert list(run.failures) == []
    assert only(run).steps == 1
    assert only(run).fed == only(run).uses >= 1
