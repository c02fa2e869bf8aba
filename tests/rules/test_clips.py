"""Clips that come too early, too late or on scaled gradients, and clips that only look so."""

from __future__ import annotations

import pytest
import torch

import gradscope
from gradscope.graph.events import Cleared, Clipped, Unscaled, Updated
from tests.rules.training import NET, judge
from tests.workshop import Workshop

EARLY = {
    "before_backward": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            loss = loss_of(net)
            optimizer.zero_grad()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here
            loss.backward()
            optimizer.step()
        """,
    ),
    "cleared_to_zeros": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad(set_to_none=False)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here
            loss_of(net).backward()
            optimizer.step()
        """,
    ),
    "in_a_helper": (
        NET,
        """
        def tame(model, limit=0.5):
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)  # here

        def train_step(net, optimizer):
            optimizer.zero_grad()
            loss = loss_of(net)
            tame(net)
            loss.backward()
            optimizer.step()

        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9)
        for _ in range(6):
            train_step(net, optimizer)
        """,
    ),
    "an_alias": (
        NET,
        """
        from torch.nn.utils import clip_grad_norm_ as c
        net = Net()
        optimizer = AdamW(list(net.parameters()), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            c(list(net.parameters()), max_norm=0.1, norm_type=float("inf"))  # here
            loss_of(net).backward()
            optimizer.step()
        """,
    ),
    "accumulation": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for step in range(12):
            if step % 2 == 0:
                optimizer.zero_grad()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here
            (loss_of(net) / 2).backward()
            if step % 2 == 1:
                optimizer.step()
        """,
    ),
    "one_of_two_optimizers": (
        tuple(f"critic.{name}" for name in NET),
        """
        actor, critic = Net(), Net()
        first, second = SGD(actor.parameters(), lr=0.01), SGD(critic.parameters(), lr=0.01)
        for _ in range(6):
            first.zero_grad()
            loss_of(actor).backward()
            nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
            nn.utils.clip_grad_norm_(critic.parameters(), 1.0)  # here
            first.step()
            second.zero_grad()
            loss_of(critic).backward()
            second.step()
        """,
    ),
    "never_cleared": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            loss = loss_of(net)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here
            loss.backward()
            optimizer.step()
        """,
    ),
    "a_closure": (
        NET,
        """
        net = Net()
        optimizer = LBFGS(net.parameters(), lr=0.1, max_iter=3)
        for _ in range(3):
            def closure():
                optimizer.zero_grad()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here
                loss = loss_of(net)
                loss.backward()
                return loss
            optimizer.step(closure)
        """,
    ),
}
LATE = {
    "after_step": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            nn.utils.clip_grad_value_(net.parameters(), 1.0)  # here
        """,
    ),
    "norm_and_clip_apart": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            loss_of(net).backward()
            optimizer.step()
            total = nn.utils.get_total_norm([p.grad for p in net.parameters()])
            nn.utils.clip_grads_with_norm_(net.parameters(), 0.5, total)  # here
            net.zero_grad()
        """,
    ),
    "by_hand": (
        ("w",),
        """
        w = torch.zeros(4, 1, requires_grad=True)
        for _ in range(6):
            x, y = data()
            F.mse_loss(x @ w, y).backward()
            with torch.no_grad():
                w -= 0.01 * w.grad
            nn.utils.clip_grad_norm_(w, 1.0)  # here
            w.grad = None
        """,
    ),
}
SCALED = {
    "before_unscale": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here
            scaler.step(optimizer)
            scaler.update()
        """,
    "unscaled_after_it": """
        net = Net()
        optimizer = AdamW(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        for _ in range(6):
            optimizer.zero_grad()
            for _ in range(2):
                scaler.scale(loss_of(net) / 2).backward()
            nn.utils.clip_grad_value_(net.parameters(), 0.5)  # here
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        """,
    "fused": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # here
            scaler.step(optimizer)
            scaler.update()
        """,
}
IN_TIME = {
    "each_of_several_backwards": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            for _ in range(3):
                (loss_of(net) / 3).backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        """,
    "what_can_be_gone_through_once": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            loss_of(net).backward()
            nn.utils.clip_grad_value_(filter(lambda p: p.requires_grad, net.parameters()), 0.1)
            optimizer.step()
        """,
    "reading_the_norm": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            norm = nn.utils.clip_grad_norm_(net.parameters(), max_norm=float("inf"))
        """,
    "unscaled_first": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        """,
    "a_limit_that_is_scaled_as_well": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0 * scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        """,
    "a_scaler_that_is_off": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        """,
    "gradients_written_by_hand": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            grads = torch.autograd.grad(loss_of(net), list(net.parameters()))
            for p, g in zip(net.parameters(), grads):
                p.grad = g
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        """,
    "in_a_hook_of_the_backward": """
        net = Net()
        held = {p: SGD([p], lr=0.01) for p in net.parameters()}
        def apply(p):
            nn.utils.clip_grad_norm_([p], 1.0)
            held[p].step()
            held[p].zero_grad()
        for p in net.parameters():
            p.register_post_accumulate_grad_hook(apply)
        for _ in range(6):
            loss_of(net).backward()
        """,
    "both_networks_at_each_step": """
        actor, critic = Net(), Net()
        first, second = SGD(actor.parameters(), lr=0.01), SGD(critic.parameters(), lr=0.01)
        both = [*actor.parameters(), *critic.parameters()]
        for _ in range(6):
            for net, optimizer in ((actor, first), (critic, second)):
                optimizer.zero_grad()
                loss_of(net).backward()
                nn.utils.clip_grad_norm_(both, 1.0)
                optimizer.step()
        """,
}


@pytest.mark.parametrize("name", EARLY)
def test_clipped_before_the_backward(workshop: Workshop, name: str) -> None:
    """What the step uses was brought after the clip."""
    tensors, program = EARLY[name]
    finding = judge(workshop, program).must_be("misplaced-clip", "warning", tensors)
    assert "clipped before the backward" in finding.message
    piled = [fact for fact in finding.facts if "pile up" in fact]
    assert len(piled) == (name == "never_cleared")


@pytest.mark.parametrize("name", LATE)
def test_clipped_after_the_step(workshop: Workshop, name: str) -> None:
    """What is clipped has been used already."""
    tensors, program = LATE[name]
    finding = judge(workshop, program).must_be("misplaced-clip", "warning", tensors)
    assert "clipped after the step" in finding.message


@pytest.mark.parametrize("name", SCALED)
def test_clipped_while_scaled(workshop: Workshop, name: str) -> None:
    """The help names the scaler and the optimizer as the program does."""
    finding = judge(workshop, SCALED[name]).must_be("misplaced-clip", "warning", NET)
    assert "GradScaler's scale" in finding.message
    assert finding.help[0].message == "call `scaler.unscale_(optimizer)` before it, after `backward()`"


@pytest.mark.parametrize("name", IN_TIME)
def test_clips_in_time(workshop: Workshop, name: str) -> None:
    """Each step uses what was clipped last, or nothing was clipped at all."""
    judge(workshop, IN_TIME[name]).must_be_silent()


def test_never_cleared_and_clipped_in_between_piles_up(workshop: Workshop) -> None:
    """A clip that is in time as well leaves the missing clear to be told."""
    program = """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            loss_of(net).backward()  # here
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        """
    judge(workshop, program).must_be("missing-zero-grad", "warning", NET)


def test_gradients_that_are_shrunk_between_steps_pile_up(workshop: Workshop) -> None:
    """Scaling what a step has used is no clear; setting it to nothing is one."""
    program = """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            loss_of(net).backward()  # here
            optimizer.step()
            for p in net.parameters():
                p.grad.mul_(0.5)
        """
    judge(workshop, program).must_be("missing-zero-grad", "warning", NET)
    judge(workshop, program.replace("mul_(0.5)", "mul_(0.0)")).must_be_silent()


def test_withheld_steps_are_counted(workshop: Workshop) -> None:
    """In all, and in a row up to the end."""
    run = judge(
        workshop,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu")
        for step in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(net) * (float("inf") if step in (1, 6, 7) else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
        """,
    ).run
    (optimizer,) = run.optimizers
    assert (optimizer.steps, optimizer.withheld, optimizer.in_a_row) == (5, 3, 2)
    assert optimizer.withheld_at is not None


def test_events_have_one_order_of_time(workshop: Workshop) -> None:
    """Together with operations and backwards."""
    run = judge(workshop, IN_TIME["unscaled_first"]).run
    for step in run.steps[:2]:
        cleared, unscaled, clipped, updated = step.events
        assert [type(event) for event in step.events] == [Cleared, Unscaled, Clipped, Updated]
        (backward,) = step.backwards
        assert cleared.at < backward.began < unscaled.at < clipped.at < updated.at
        assert all(event.place is not None for event in step.events)


def _replaced() -> list[object]:
    """What a probe of clips and scalers replaces."""
    return [vars(torch.nn.utils.clip_grad).copy(), vars(torch.nn.utils).copy(), vars(torch.amp.GradScaler).copy()]


def test_without_operations_and_through_an_older_name() -> None:
    """What was imported before the observation is seen as well; the functions are put back."""
    older, net, before = torch.nn.utils.clip_grad_norm_, torch.nn.Linear(3, 1), _replaced()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gradscope.observe(model=net, optimizer=optimizer, operations=False) as seen:
        for _ in range(5):
            optimizer.zero_grad()
            older(net.parameters(), 1.0)
            net(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    assert [finding.rule for finding in seen.report().findings] == ["misplaced-clip"]
    assert _replaced() == before
