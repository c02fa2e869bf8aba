"""Programs whose values stand still, or move though they are frozen, and programs that only look so."""

from __future__ import annotations

import pytest

from tests.rules.training import BODY, NET, judge
from tests.workshop import Workshop

FROZEN = {
    "last_gradient_stays": (
        BODY,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9)
        fit(net, optimizer, 4)
        net.body.requires_grad_(False)  # here
        for _ in range(8):
            optimizer.zero_grad(set_to_none=False)
            loss_of(net).backward()
            optimizer.step()
        """,
    ),
    "only_the_head_is_cleared": (
        BODY,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        fit(net, optimizer, 4)
        for p in net.body.parameters():
            p.requires_grad = False  # here
        for _ in range(8):
            net.head.zero_grad()
            loss_of(net).backward()
            optimizer.step()
        """,
    ),
    "rows_masked_under_weight_decay": (
        ("table.weight",),
        """
        table, head = nn.Embedding(10, 4), nn.Linear(4, 1)
        optimizer = AdamW([*table.parameters(), *head.parameters()], lr=0.01, weight_decay=0.1)
        for _ in range(8):
            words = torch.randint(0, 10, (32,))
            optimizer.zero_grad()
            F.mse_loss(head(table(words)), words.float().unsqueeze(1)).backward()
            table.weight.grad[:5] = 0  # here
            optimizer.step()
        """,
    ),
    "rows_masked_by_a_hook": (
        ("table.weight",),
        """
        table, head = nn.Embedding(10, 4), nn.Linear(4, 1)
        known = torch.arange(10).unsqueeze(1) < 5
        table.weight.register_hook(lambda grad: grad.masked_fill(known, 0.0))  # here
        optimizer = AdamW([*table.parameters(), *head.parameters()], lr=0.01, weight_decay=0.1)
        for _ in range(8):
            words = torch.randint(0, 10, (32,))
            optimizer.zero_grad()
            F.mse_loss(head(table(words)), words.float().unsqueeze(1)).backward()
            optimizer.step()
        """,
    ),
    "held_by_a_hook_from_the_middle_on": (
        BODY,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01, momentum=0.95)
        fit(net, optimizer, 16)
        for p in net.body.parameters():
            p.register_hook(torch.zeros_like)  # here
        fit(net, optimizer, 24)
        """,
    ),
    "masked_by_multiplication": (
        ("head.weight",),
        """
        net = Net()
        mask = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
        optimizer = SGD(net.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            net.head.weight.grad.mul_(mask)  # here
            optimizer.step()
        """,
    ),
    "zeroed_after_momentum_has_built_up": (
        BODY,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        fit(net, optimizer, 2)
        for _ in range(12):
            optimizer.zero_grad()
            loss_of(net).backward()
            for p in net.body.parameters():
                p.grad.zero_()  # here
            optimizer.step()
        """,
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_frozen_tensors_that_move(case: str, workshop: Workshop) -> None:
    """What is frozen by `requires_grad` or a zeroed gradient, and moves, is shown where it was frozen."""
    tensors, program = FROZEN[case]
    found = judge(workshop, program)
    finding = found.must_be("frozen-but-updated", "warning", tensors)
    assert [found.line(label.span).strip() for label in finding.labels] == ["optimizer.step()"]


def test_frozen_is_told_by_its_kind(workshop: Workshop) -> None:
    """The reason is the gradient left in `.grad`, or what moves elements without a gradient."""
    left = judge(workshop, FROZEN["last_gradient_stays"][1]).findings[0]
    masked = judge(workshop, FROZEN["masked_by_multiplication"][1]).findings[0]
    assert "why: `requires_grad` is off, and `.grad` still holds a gradient" in left.facts
    assert "why: weight decay, momentum or averages move elements whose gradient is zero" in masked.facts
    assert masked.message == "`head.weight` is frozen, yet SGD goes on moving it"


STILL = {
    "rate_of_zero": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.0)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()  # here
        """,
    ),
    "schedule_of_integers": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch // 100)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()  # here
            scheduler.step()
        """,
    ),
    "rate_that_shrinks_in_every_step": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(24):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()  # here
            for group in optimizer.param_groups:
                group["lr"] *= 1e-9
        """,
    ),
    "squares_that_are_infinite": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            (loss_of(net) * 1e30).backward()
            optimizer.step()  # here
        """,
    ),
    "step_that_writes_into_nothing": (
        NET,
        """
        class Plain(torch.optim.Optimizer):
            def __init__(self, params, lr):
                super().__init__(params, {"lr": lr})

            @torch.no_grad()
            def step(self):
                for group in self.param_groups:
                    for p in group["params"]:
                        p = p - group["lr"] * p.grad

        net = Net()
        optimizer = Plain(net.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()  # here
        """,
    ),
    "rate_that_decays_to_nothing": (
        NET,
        """
        net = Net()
        nn.init.zeros_(net.head.bias)
        optimizer = SGD(net.parameters(), lr=1e-60)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()  # here
        """,
    ),
    "below_half_precision": (
        NET,
        """
        net = Net().to(torch.bfloat16)
        for p in net.parameters():
            nn.init.ones_(p)
        optimizer = SGD(net.parameters(), lr=1e-6)
        for _ in range(8):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(net(x.bfloat16()), y.bfloat16()).backward()
            optimizer.step()  # here
        """,
    ),
}


@pytest.mark.parametrize("case", STILL)
def test_steps_that_move_nothing(case: str, workshop: Workshop) -> None:
    """Steps with a gradient that leave values as they are, to the last bit, are shown at the step."""
    tensors, program = STILL[case]
    finding = judge(workshop, program).must_be("no-update", "warning", tensors)
    assert ("does not move" in finding.message) == (len(tensors) == 1 or finding.message.startswith("`net`"))


def test_cause_is_the_rate_or_the_precision(workshop: Workshop) -> None:
    """The headline says whether the learning rate is 0 or the update too small for the type."""
    rate = judge(workshop, STILL["rate_of_zero"][1]).findings[0]
    precision = judge(workshop, STILL["below_half_precision"][1]).findings[0]
    judged = judge(workshop, STILL["step_that_writes_into_nothing"][1])
    (nothing,) = judged.findings
    assert "optimizer = Plain(" in judged.line(nothing.labels[0].span)
    assert nothing.message.endswith("not move: a step of Plain writes nothing into them")
    large = judge(workshop, STILL["squares_that_are_infinite"][1]).findings[0]
    assert large.message.endswith("not move: the gradients are so large that their squares are infinite")
    assert rate.message.endswith("not move: the learning rate is 0")
    assert not any("learning rate" in fact for fact in rate.facts)
    assert precision.message.endswith("not move: the updates are below the precision of bfloat16")
    assert any("unmoved in 8 of 8 steps" in fact for fact in precision.facts)


AS_MEANT = {
    "mask_of_an_earlier_phase": """
        table, head = nn.Embedding(10, 4), nn.Linear(4, 1)
        def train(optimizer, steps, masked):
            for step in range(steps):
                words = torch.randint(0, 10, (8,))
                optimizer.zero_grad()
                F.mse_loss(head(table(words)), words.float().unsqueeze(1)).backward()
                if masked:
                    table.weight.grad[:5] = 0
                optimizer.step()
        train(SGD([*table.parameters(), *head.parameters()], lr=0.01), 6, True)
        train(Adam([*table.parameters(), *head.parameters()], lr=0.01), 12, False)
    """,
    "hook_removed_after_a_phase": """
        table, head = nn.Embedding(10, 4), nn.Linear(4, 1)
        def train(optimizer, steps):
            for step in range(steps):
                words = torch.randint(0, 10, (8,))
                optimizer.zero_grad()
                F.mse_loss(head(table(words)), words.float().unsqueeze(1)).backward()
                optimizer.step()
        known = torch.arange(10).unsqueeze(1) < 5
        hook = table.weight.register_hook(lambda grad: grad.masked_fill(known, 0.0))
        train(SGD([*table.parameters(), *head.parameters()], lr=0.01), 6)
        hook.remove()
        train(Adam([*table.parameters(), *head.parameters()], lr=0.01), 12)
    """,
    "minimum_that_is_reached": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.1)
        x, y = torch.ones(1, 4), torch.ones(1, 1)
        for _ in range(400):
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()
    """,
    "hook_that_clips": """
        table, head = nn.Embedding(10, 4), nn.Linear(4, 1)
        table.weight.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
        optimizer = AdamW([*table.parameters(), *head.parameters()], lr=0.01, weight_decay=0.1)
        for _ in range(12):
            words = torch.randint(0, 10, (4,))
            optimizer.zero_grad()
            F.mse_loss(head(table(words)), words.float().unsqueeze(1)).backward()
            optimizer.step()
    """,
    "hook_that_drops_at_random": """
        net = Net()
        for p in net.parameters():
            p.register_hook(F.dropout)
        fit(net, SGD(net.parameters(), lr=0.01, momentum=0.9), 16)
    """,
    "hook_that_masks_without_decay": """
        net = Net()
        net.body[0].weight.register_hook(lambda grad: grad * (torch.arange(6) < 3).unsqueeze(1))
        fit(net, SGD(net.parameters(), lr=0.01, momentum=0.9), 12)
    """,
    "warm_up_from_zero": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
        for _ in range(10):
            fit(net, optimizer, 1)
            scheduler.step()
    """,
    "warm_up_and_cosine_to_zero": """
        net = Net()
        optimizer = AdamW(net.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 1e-8, 1.0, 3),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7),
            ],
            [3],
        )
        for _ in range(12):
            fit(net, optimizer, 1)
            scheduler.step()
    """,
    "group_at_rate_zero": """
        net = Net()
        groups = [{"params": net.body.parameters(), "lr": 0.0}, {"params": net.head.parameters()}]
        fit(net, Adam(groups, lr=0.01), 8)
    """,
    "frozen_and_cleared": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
        fit(net, optimizer, 4)
        net.body.requires_grad_(False)
        fit(net, optimizer, 8)
    """,
    "frozen_before_training": """
        net = Net()
        net.body.requires_grad_(False)
        fit(net, AdamW(net.head.parameters(), lr=0.01), 8)
    """,
    "frozen_by_none": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for i in range(12):
            optimizer.zero_grad()
            loss_of(net).backward()
            if i < 8:
                for p in net.body.parameters():
                    p.grad = None
            optimizer.step()
    """,
    "masked_without_momentum": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            net.head.weight.grad[:, :3] = 0
            optimizer.step()
    """,
    "masked_and_put_back": """
        net = Net()
        mask = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0]])
        net.head.weight.data.mul_(mask)
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            net.head.weight.grad.mul_(mask)
            optimizer.step()
            net.head.weight.data.mul_(mask)
    """,
    "clipped": """
        net = Net()
        optimizer = AdamW(net.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            torch.nn.utils.clip_grad_value_(net.parameters(), 0.01)
            optimizer.step()
    """,
    "values_clamped_after_the_step": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(8):
            fit(net, optimizer, 1)
            with torch.no_grad():
                for p in net.parameters():
                    p.clamp_(-0.5, 0.5)
    """,
    "bias_before_batch_norm": """
        class Normed(Net):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())

        net = Normed()
        fit(net, SGD(net.parameters(), lr=0.01), 8)
    """,
    "rows_that_no_word_uses": """
        table, head = nn.Embedding(50, 4), nn.Linear(4, 1)
        optimizer = AdamW([*table.parameters(), *head.parameters()], lr=0.01)
        for _ in range(8):
            words = torch.randint(0, 10, (16,))
            optimizer.zero_grad()
            F.mse_loss(head(table(words)), words.float().unsqueeze(1)).backward()
            optimizer.step()
    """,
    "autocast": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(8):
            x, y = data()
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = net(x)
            F.mse_loss(out.float(), y).backward()
            optimizer.step()
    """,
    "half_precision_that_moves": """
        net = Net().to(torch.bfloat16)
        optimizer = SGD(net.parameters(), lr=0.1)
        for _ in range(8):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(net(x.bfloat16()), y.bfloat16()).backward()
            optimizer.step()
    """,
}


@pytest.mark.parametrize("case", AS_MEANT)
def test_movement_as_meant_is_silent(case: str, workshop: Workshop) -> None:
    """Schedules that pass 0, groups kept at 0, parts frozen properly and masks that hold draw nothing."""
    judge(workshop, AS_MEANT[case]).must_be_silent()


PRUNED = """
net = Net()
optimizer = SGD(net.parameters(), lr=0.05, momentum=0.9)
keep = torch.ones(6, 4)
for step in range(60):
    if step == 30:
        keep[:3] = 0
        with torch.no_grad():
            net.body[0].weight.mul_(keep)
    optimizer.zero_grad()
    loss_of(net).backward()
    net.body[0].weight.grad.mul_(keep)  # here
    optimizer.step()
    {after}
"""


def test_pruned_weights_are_revived_by_momentum(workshop: Workshop) -> None:
    """A mask that begins in the middle of the run holds gradients back, and momentum moves what it holds."""
    judged = judge(workshop, PRUNED.format(after="pass"))
    judged.must_be("frozen-but-updated", "warning", ("body.0.weight",))


def test_pruned_weights_that_are_put_back_after_each_step(workshop: Workshop) -> None:
    """Whoever applies the mask to the values as well has nothing revived."""
    judge(workshop, PRUNED.format(after="net.body[0].weight.data.mul_(keep)")).must_be_silent()


GROUPS = """
net = Net()
groups = [{{"params": part.parameters()}} for part in (net.body, net.head)]
optimizer = SGD(groups, lr=0.0)
for step in range({steps}):
    rate = 0.05 * min(1, (step + 1) / 4)
    optimizer.param_groups[1]["lr"] = rate
    if step >= {unfrozen}:
        optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss_of(net).backward()
    optimizer.step()  # here
"""


def test_a_group_without_a_learning_rate_all_run(workshop: Workshop) -> None:
    """A schedule that passes one group by leaves it at 0 for ever."""
    judge(workshop, GROUPS.format(steps=40, unfrozen=100)).must_be("no-update", "warning", BODY)


def test_a_group_that_is_unfrozen_late(workshop: Workshop) -> None:
    """A group that waits at a rate of 0 and is trained later is meant so."""
    judge(workshop, GROUPS.format(steps=40, unfrozen=32)).must_be_silent()
