"""Operations of later steps, jotted down and written out afterwards: they read as those that are written at once."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import gradscope
from gradscope.graph.facts import Run
from gradscope.probes.backward.nonfinite import SINGULAR
from gradscope.probes.forward.inspections import SQUASHING
from gradscope.probes.forward.recorder import _JOTTED, _PARTICULAR, _QUIET
from gradscope.probes.tape import Tape
from gradscope.reports.report import Report
from tests.workshop import Workshop

HEAD = """
import torch
from torch import nn
torch.manual_seed(0)
w, u = torch.ones(4, 4, requires_grad=True), nn.Parameter(torch.eye(4))
net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
optimizer = torch.optim.SGD([w, u, *net.parameters()], lr=0.01)
h = total = torch.zeros(4, 4)
kept = []
for i in range(12):
    x = torch.rand(4, 4)
"""
BACKWARD = """
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS = {
    "chain": "    a = x @ w + u\n    loss = torch.tanh(a[0] - x.t()).sum()",
    "module": "    loss = net(x @ w).square().mean()",
    "in place": "    a = x @ w\n    b = a * 2\n    b[0] += a[1]\n    loss = (a + b).sum()",
    "in place through a view": "    a = x @ w\n    a.view(-1)[:3].mul_(2)\n    loss = (a * u).sum()",
    "in place, seen through another view": "    a = x @ w\n    b, c = a[0], a[0]\n"
    "    b += 1\n    loss = (c * 2 + a[1] + b).sum()",
    "in place, later than its views": "    a = x @ w\n    b = a.t()\n    a *= 2\n    loss = (b @ u).sum() + a.mean()",
    "in place, again and again": "    a = x @ w\n    for row in range(4):\n"
    "        a[row] += a.detach().sum(dim=0)\n    loss = a.sum()",
    "in place, from step to step": "    h = h.detach()\n    h += x @ w\n    loss = (h * u).sum()",
    "in place, with its graph": "    if i == 0:\n        total = x @ w\n"
    "    total += (x @ w).mean()\n    loss = (x @ u).sum()",
    "in place, a constant": "    x[0] = 1.0\n    x.clamp_(min=0.5)\n    loss = (x[0] @ w * x.detach()).sum()",
    "in place, of a leaf": "    loss = (x @ w).sum()\n    with torch.no_grad():\n"
    "        u.mul_(0.5)\n    loss = loss + (x @ u).sum()",
    "in place, through what is detached": "    a = x @ w\n    b = a.detach()\n    b.zero_()\n    loss = (a + u).sum()",
    "a buffer": "    a = torch.zeros(4, 4)\n    for row in range(4):\n"
    "        a[row] = torch.tanh(x[row] @ w)\n    loss = (a + u).sum()",
    "required later": "    z = (x + 1).requires_grad_(True)\n    loss = (z @ w * z).sum()",
    "singular": "    a = (x @ w).exp()\n    loss = (a / a.sum(dim=-1, keepdim=True) + a.sqrt().log()).pow(2).mean()",
    "squashed": "    loss = nn.functional.cross_entropy(x @ w, torch.arange(4)) + (x @ u).softmax(-1).max()",
    "several results": "    a, places = (x @ w).max(dim=1)\n    loss = (a * places + (x @ u).min(dim=1).values).sum()",
    "numbers": "    a = (x @ w).detach().abs().max().item()\n    loss = (x @ w * a).sum() + x.mean().item()",
    "conditions": "    a = x @ w\n    if (a > 0).any() and bool(x.sum() > 0):\n"
    "        a = a.clamp(min=0.0).T\n    loss = (a + u).sum()",
    "carried": "    h = torch.tanh(h.detach() @ w + x)\n    loss = h.sum()",
    "carried with its graph": "    total = total + (x @ w).mean()\n    loss = (x @ u).sum()",
    "kept": "    kept.append(x @ u)\n    loss = (kept[-1] * w).sum()",
    "handed back": "    a = (x @ w).expand(4, 4).view(4, 4)\n    loss = a.sum()",
    "lists": "    a = torch.cat([x @ w, x + u])\n    loss = (torch.stack((a, a * 2)) + torch.where(a > 0, a, 0)).sum()",
    "loops of calls": "    a = x\n    for _ in range(10):\n        a = net(a + w)\n    loss = a.sum()",
    "gradients by hand": "    loss = (x @ w @ u).sum()\n    if w.grad is not None:\n        kept = [w.grad * 2, x + 1]",
    "without grad": "    with torch.no_grad():\n        a = x @ w\n    loss = (a * u + w * a.sum()).sum()",
    "penalty": "    (g,) = torch.autograd.grad((x @ w * w).sum(), w, create_graph=True)\n    loss = (g * u).sum()",
    "saved for later": "    kept = [*kept[-3:], (x @ w).detach()]\n    loss = sum((k * u).sum() for k in kept)",
}


def facts(run: Run) -> list[Any]:
    """What a run tells, without the numbers that operations, values and tensors happen to have."""
    tensors = {tensor.id: tensor for tensor in run.tensors}
    values = {value.id: value for value in run.values}

    def told(place: int) -> tuple[object, ...]:
        tensor = tensors[values[place].tensor]
        return tensor.shape, tensor.dtype, tensor.device, values[place].history, tensor.leaf, tensor.name, tensor.made

    found: list[Any] = []
    for step in run.steps:
        makers: dict[int, int] = {}
        first = min((operation.nodes[0] for operation in step.operations), default=0)
        for place, operation in enumerate(step.operations):
            found.append((operation.name, operation.span, operation.grad_enabled, operation.module, operation.failed))
            found.append((*(number - first for number in operation.nodes), operation.number))
            found += [(told(value), makers.get(value)) for value in operation.inputs]
            found += map(told, operation.outputs)
            makers.update(dict.fromkeys(operation.outputs, place))
        found += [(told(root), makers.get(root)) for backward in step.backwards for root in backward.roots]
    found += [(growth.kind, growth.span, growth.count, growth.trained) for growth in run.growths]
    used = {(tensor.name, tensor.used, tensor.consumed, tensor.received) for tensor in run.tensors if tensor.optimizer}
    return [*found, sorted(used, key=str), [finding.rule for finding in Report.of(run).findings]]


@pytest.mark.parametrize("program", PROGRAMS)
def test_jotted_steps_read_as_written_ones(program: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines, values, nodes, growth and findings of a run are the same whether its operations were jotted or not."""
    source = f"{HEAD}{PROGRAMS[program]}{BACKWARD}"
    jotted = facts(workshop.run(source))
    monkeypatch.setattr(Tape, "may_jot", lambda _: False)
    assert facts(workshop.run(source)) == jotted


@pytest.mark.parametrize("program", PROGRAMS)
def test_long_first_steps_read_as_short_ones(program: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes no difference from which operation on a first step is jotted."""
    source = f"{HEAD}{PROGRAMS[program]}{BACKWARD}"
    written = facts(workshop.run(source))
    monkeypatch.setattr("gradscope.probes.tape.JOT_AT", 3)
    assert facts(workshop.run(source)) == written


def test_gradients_are_followed_in_long_steps(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in which the program has read a gradient is not jotted, however long: what is done to it counts."""
    monkeypatch.setattr("gradscope.probes.tape.JOT_AT", 3)
    run = workshop.run("""
        import torch

        w = torch.ones(3, requires_grad=True)
        for _ in range(3):
            (w * 2).sum().backward()
            gradient = w.grad
            for _ in range(4):
                torch.ones(3).add(1)
            change = gradient * 0.1
            with torch.no_grad():
                w -= change
            w.grad = None
        """)
    ledger = next(tensor.ledger for tensor in run.tensors if tensor.name == "w")
    assert ledger is not None
    assert ledger.by_hand >= 3


def loops(seen: Any, steps: int) -> Iterator[Tape]:
    """Steps of a small loop, and the tape after each."""
    w = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (w * 2 + w).sum().backward()
        optimizer.step()
        yield seen._observation.tape


def test_steps_are_thrown_away_unread() -> None:
    """In a long plain run, the jottings of the latest steps wait and no others."""
    with gradscope.observe() as seen:
        waiting = [len(tape.backlog.waiting) for tape in loops(seen, 40)]
    assert waiting[:2] == [0, 1]
    assert set(waiting[5:]) == {3}


def test_nothing_is_kept_alive() -> None:
    """Tensors that jottings speak of die when they would have died."""
    with gradscope.observe() as seen:
        tape = list(loops(seen, 6))[-1]
        a = torch.ones(2) * 2
        b = a + 1
        assert tape.jotting is not None
        dead = weakref.ref(a), weakref.ref(b)
        del a, b
        gc.collect()
        assert [reference() for reference in dead] == [None, None]


def test_steps_that_change_tensors_in_place_are_thrown_away_unread() -> None:
    """What is changed in place is written at once; all else of its step is jotted, and nobody reads it."""
    with gradscope.observe() as seen:
        x = torch.zeros(3)
        waiting = []
        for tape in loops(seen, 60):
            waiting.append(len(tape.backlog.waiting))
            assert len(tape.step.operations) <= 1
            x[0] += 1
            (x * 2).clamp(min=1)
    assert set(waiting[5:]) == {3}


def test_who_merely_requires_gradients_has_not_been_written_to() -> None:
    """`requires_grad_` is no change in place: other views need no second look from then on."""
    with gradscope.observe() as seen:
        for tape in loops(seen, 12):
            x = torch.rand(3).detach().requires_grad_(True)
            torch.autograd.grad((x * x).sum(), x)
            assert not tape.changed_since
        x.detach().add_(1)
        assert tape.changed_since


@pytest.mark.parametrize(
    ("line", "singular"),
    [
        ("(w ** 2 / 10).sum()", False),
        ("w.pow(3).div(4).sum()", False),
        ("(1 / w).sum()", True),
        ("(w / w).sum()", True),
        ("(w / 0).sum()", True),
        ("(w ** 0.5).sum()", True),
        ("(w.half() / 10).sum()", True),
    ],
)
def test_what_autograd_multiplies_by_needs_no_watch(line: str, singular: bool) -> None:
    """A number that is divided by, and powers from 1 on, have no infinite derivative, in the first step or in later."""
    w = torch.ones(3, requires_grad=True)
    with gradscope.observe() as seen:
        for tape in loops(seen, 5):
            assert not tape.singular
            exec(line, {"w": w})
            assert tape.singular is singular
            tape.singular = False


def test_a_program_whose_results_lead_on_is_written_at_once() -> None:
    """Where each step has to be written out, the tape rests twice as long each time."""
    jotted = 0
    w = torch.ones(3, requires_grad=True)
    total = torch.zeros(3)
    with gradscope.observe() as seen:
        for tape in loops(seen, 60):
            jotted += tape.jotting is not None
            total = total + w * 2
    assert jotted < 20


def test_a_tensor_without_a_shape_is_recorded() -> None:
    """A plain operation on nested tensors, which refuse to tell their shape, is written at once."""
    with gradscope.observe() as seen:
        for _ in loops(seen, 4):
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are a prototype
            nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided)
        twice = nested + nested
        assert [part.tolist() for part in twice.unbind()] == [[2.0, 2.0], [2.0, 2.0, 2.0]]
    assert list(seen.report().run.failures) == []


def test_a_failing_operation_is_recorded() -> None:
    """What raises in a jotted step is an operation that failed, at its line."""
    with gradscope.observe() as seen:
        for _ in loops(seen, 4):
            pass
        with pytest.raises(RuntimeError, match="size"):
            torch.ones(2) + torch.ones(3)
    failed = [operation for step in seen.report().run.steps for operation in step.operations if operation.failed]
    assert [operation.name for operation in failed] == ["Tensor.add"]


def test_weak_references_do_not_hinder_swaps() -> None:
    """`swap_tensors` refuses tensors with weak references: jottings let go of theirs first."""
    with gradscope.observe() as seen:
        a, b = torch.zeros(2), torch.ones(2)
        for _ in loops(seen, 4):
            a + b
        torch.utils.swap_tensors(a, b)
    assert a.tolist() == [1, 1]


def test_a_model_that_is_first_used_late_is_used() -> None:
    """A parameter whose only use lies in steps that nobody reads counts as used."""
    extra = nn.Parameter(torch.ones(3))
    w = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w, extra], lr=0.1)

    def loss_of(step: int) -> Tensor:
        return (w * 2 + extra * 3).sum() if step == 20 else (w * 2).sum()

    with gradscope.observe(optimizer=optimizer) as seen:
        for step in range(40):
            optimizer.zero_grad()
            loss_of(step).backward()
            optimizer.step()
    used = [tensor.used for tensor in seen.report().run.tensors if tensor.optimizer is not None]
    assert used == [True, True]


def test_plain_functions_need_no_second_look() -> None:
    """Nothing that changes what it is given is jotted down, and of what is looked at before its call nothing else."""
    few = {F.embedding}  # what is looked up in the steps that are written says enough
    assert not _JOTTED.keys() & (_PARTICULAR - SINGULAR - SQUASHING - few)
    assert not _JOTTED.keys() & _QUIET
    names = [function.__name__ for function in _JOTTED]
    assert not [name for name in names if name.endswith("_") and "__" not in name]
    assert not [name for name in names if name.startswith("__i") and name not in ("__invert__", "__int__", "__index__")]
