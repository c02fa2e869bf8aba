"""Programs that clear, differentiate and step in the wrong order, and programs that only look so."""

from __future__ import annotations

import pytest

from gradscope.reports.report import Report
from tests.rules.training import BODY, NET, OUT, judge
from tests.workshop import Workshop

# --- missing-zero-grad ---------------------------------------------------------------------------------------------

PILING = {
    "never_cleared": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            loss_of(net).backward()  # here
            optimizer.step()
        """,
    ),
    "cleared_once_an_epoch": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for epoch in range(2):
            optimizer.zero_grad()
            for _ in range(5):
                loss_of(net).backward()  # here
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
        """,
    ),
    "another_model_is_cleared": (
        tuple(f"net.{name}" for name in NET),
        """
        net, other = Net(), Net()
        optimizer, second = SGD(net.parameters(), lr=0.01), SGD(other.parameters(), lr=0.01)
        for _ in range(6):
            second.zero_grad()
            loss_of(net).backward()  # here
            optimizer.step()
            second.zero_grad()
            loss_of(other).backward()
            second.step()
        """,
    ),
    "updates_under_no_grad": (
        ("w",),
        """
        w = torch.zeros(4, 1, requires_grad=True)
        for _ in range(6):
            x, y = data()
            F.mse_loss(x @ w, y).backward()  # here
            with torch.no_grad():
                w -= 0.01 * w.grad
        """,
    ),
    "updates_through_data": (
        NET,
        """
        net = Net()
        for _ in range(6):
            loss_of(net).backward()  # here
            for p in net.parameters():
                p.data.add_(p.grad, alpha=-0.01)
        """,
    ),
    "updates_by_assigning_data": (
        ("w",),
        """
        w = torch.zeros(4, 1, requires_grad=True)
        for _ in range(6):
            x, y = data()
            F.mse_loss(x @ w, y).backward()  # here
            w.data = w.data - 0.01 * w.grad
        """,
    ),
    "closure_that_does_not_clear": (
        ("w",),
        """
        w = torch.zeros(4, 1, requires_grad=True)
        optimizer = LBFGS([w], lr=0.1, max_iter=4)
        x, y = data()

        def closure():
            loss = F.mse_loss(x @ w, y)
            loss.backward()  # here
            return loss

        for _ in range(3):
            optimizer.step(closure)
        """,
    ),
    "closure_cleared_outside": (
        ("w",),
        """
        w = torch.zeros(4, 1, requires_grad=True)
        optimizer = LBFGS([w], lr=0.1, max_iter=6)
        x, y = data()

        def closure():
            loss = F.mse_loss(x @ w, y)
            loss.backward()  # here
            return loss

        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step(closure=closure)
        """,
    ),
    "only_the_head_is_cleared": (
        BODY,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            net.head.zero_grad()
            loss_of(net).backward()  # here
            optimizer.step()
        """,
    ),
    "accumulation_that_never_clears": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for i in range(12):
            (loss_of(net) / 2).backward()  # here
            if i % 2:
                optimizer.step()
        """,
    ),
}


@pytest.mark.parametrize("case", PILING)
def test_gradients_that_pile_up(case: str, workshop: Workshop) -> None:
    """Gradients that a step has used and the next backward adds to are shown at the backward."""
    tensors, program = PILING[case]
    judge(workshop, program).must_be("missing-zero-grad", "warning", tensors)


def test_piling_up_is_counted_with_the_step_as_label(workshop: Workshop) -> None:
    """The headline counts the steps, a label shows the one that uses the sum, the help says where to clear."""
    found = judge(workshop, PILING["never_cleared"][1])
    finding = found.must_be("missing-zero-grad", "warning", NET)
    assert "5 of 6 steps used those of earlier ones again" in finding.message
    assert [found.line(label.span).strip() for label in finding.labels] == ["optimizer.step()"]
    assert finding.help[0].message == "call `optimizer.zero_grad()` once in every step, before backward"


def test_help_calls_the_optimizer_as_the_program_does(workshop: Workshop) -> None:
    """The optimizer that is to clear is the one that steps here, under the name that it has here."""
    program = PILING["never_cleared"][1].replace("optimizer", "opt_d")
    (finding,) = judge(workshop, program).findings
    assert finding.help[0].message == "call `opt_d.zero_grad()` once in every step, before backward"


def test_help_fits_the_kind_of_update(workshop: Workshop) -> None:
    """Manual updates and closures are told where they have to clear."""
    by_hand = judge(workshop, PILING["updates_under_no_grad"][1]).findings[0]
    closure = judge(workshop, PILING["closure_that_does_not_clear"][1]).findings[0]
    assert "updates used those of earlier ones again" in by_hand.message
    assert by_hand.help[0].message == "set `.grad = None` after each update, or before each backward"
    assert "closure calls used those of earlier ones again" in closure.message
    assert closure.help[0].message == "call `optimizer.zero_grad()` first in the closure"


# --- zero-grad-before-step -----------------------------------------------------------------------------------------

GAN = """
generator, critic = nn.Linear(3, 4), nn.Linear(4, 1)
ours, theirs = Adam(generator.parameters(), lr=0.01), Adam(critic.parameters(), lr=0.01)
for _ in range(8):
    {first}
    fake = generator(torch.rand(5, 3))
    F.softplus(critic(fake.detach())).mean().backward()
    theirs.step()
    {after}
    {before}
    F.softplus(-critic(fake)).mean().backward()  # here
    ours.step()
    ours.zero_grad()
"""


def test_gradients_of_the_other_side_are_left_over(workshop: Workshop) -> None:
    """The generator's loss leaves gradients in the critic, which clears after its own step only."""
    found = judge(workshop, GAN.format(first="", after="theirs.zero_grad()", before=""))
    finding = found.must_be("missing-zero-grad", "warning", ("critic.weight", "critic.bias"))
    assert "`critic` takes gradients of another loss along: 7 of 8 steps" in finding.message
    assert [found.line(label.span).strip() for label in finding.labels] == ["theirs.step()"]
    assert finding.help[0].message.startswith("call `theirs.zero_grad()`")


@pytest.mark.parametrize(
    "places",
    [
        {"first": "theirs.zero_grad()", "after": "", "before": ""},
        {"first": "theirs.zero_grad()", "after": "theirs.zero_grad()", "before": ""},
        {
            "first": "critic.requires_grad_(True)",
            "after": "theirs.zero_grad()",
            "before": "critic.requires_grad_(False)",
        },
    ],
)
def test_each_side_clears_before_its_own_backward(workshop: Workshop, places: dict[str, str]) -> None:
    """What the other loss leaves behind is thrown away, or never comes."""
    assert judge(workshop, GAN.format(**places)).findings == ()


THROWN_AWAY = {
    "optimizer_clears": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            loss_of(net).backward()
            optimizer.zero_grad()  # here
            optimizer.step()
        """,
    ),
    "optimizer_clears_to_zeros": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            loss_of(net).backward()
            optimizer.zero_grad(set_to_none=False)  # here
            optimizer.step()
        """,
    ),
    "module_clears": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            loss_of(net).backward()
            net.zero_grad()  # here
            optimizer.step()
        """,
    ),
    "each_is_set_to_none": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            loss_of(net).backward()
            for p in net.parameters():
                p.grad = None  # here
            optimizer.step()
        """,
    ),
    "each_is_zeroed": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            loss_of(net).backward()
            for p in net.parameters():
                p.grad.zero_()  # here
            optimizer.step()
        """,
    ),
    "after_clipping": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            loss_of(net).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.zero_grad()  # here
            optimizer.step()
        """,
    ),
    "after_unscaling": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(5):
            scaler.scale(loss_of(net)).backward()
            scaler.unscale_(optimizer)
            optimizer.zero_grad()  # here
            scaler.step(optimizer)
            scaler.update()
        """,
    ),
    "micro_batches": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            for _ in range(4):
                optimizer.zero_grad()  # here
                (loss_of(net) / 4).backward()
            optimizer.step()
        """,
    ),
    "second_optimizer_on_a_shared_module": (
        ("shared.weight", "shared.bias"),
        """
        shared, a, b = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        first = Adam([*shared.parameters(), *a.parameters()], lr=0.01)
        second = Adam([*shared.parameters(), *b.parameters()], lr=0.01)
        for _ in range(6):
            x, y = data()
            hidden = torch.tanh(shared(x))
            first.zero_grad()
            F.mse_loss(a(hidden), y).backward(retain_graph=True)
            second.zero_grad()  # here
            F.mse_loss(b(hidden), 2 * y).backward()
            first.step()
            second.step()
        """,
    ),
    "between_two_losses": (
        tuple(f"net.{name}" for name in OUT),
        """
        net, aux = Net(), nn.Linear(6, 1)
        optimizer = Adam([*net.parameters(), *aux.parameters()], lr=0.01)
        for _ in range(6):
            loss_of(net).backward()
            optimizer.zero_grad()  # here
            x, y = data()
            F.mse_loss(aux(net.body(x)), y).backward()
            optimizer.step()
        """,
    ),
    "loss_differentiated_after_the_step": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()  # here
            optimizer.step()
            loss_of(net).backward()
        """,
    ),
    "closure_that_clears_last": (
        ("w",),
        """
        w = torch.zeros(4, 1, requires_grad=True)
        optimizer = LBFGS([w], max_iter=4)
        x, y = data()

        def closure():
            loss = F.mse_loss(x @ w, y)
            loss.backward()
            optimizer.zero_grad()  # here
            return loss

        for _ in range(4):
            optimizer.step(closure)
        """,
    ),
}


@pytest.mark.parametrize("case", THROWN_AWAY)
def test_gradients_that_are_thrown_away(case: str, workshop: Workshop) -> None:
    """Gradients that are cleared before the step that was to use them are shown at the clear."""
    tensors, program = THROWN_AWAY[case]
    judge(workshop, program).must_be("zero-grad-before-step", "error", tensors)


def test_clear_before_the_step_has_both_ends_as_labels(workshop: Workshop) -> None:
    """Labels show where the gradients arrived and the step that finds none."""
    found = judge(workshop, THROWN_AWAY["optimizer_clears"][1])
    finding = found.must_be("zero-grad-before-step", "error", NET)
    assert "their gradients are cleared before 5 of 5 steps" in finding.message
    assert [(label.message, found.line(label.span).strip()) for label in finding.labels] == [
        ("they arrive here", "loss_of(net).backward()"),
        ("and this finds none", "optimizer.step()"),
    ]


def test_part_of_the_gradient_is_told_as_a_part(workshop: Workshop) -> None:
    """Where another loss brings a gradient after the clear, only a part is lost, and the headline says so."""
    found = judge(workshop, THROWN_AWAY["second_optimizer_on_a_shared_module"][1])
    finding = found.findings[0]
    assert "loses part of its gradients" in finding.message
    assert "backward(retain_graph=True)" in found.line(finding.labels[0].span)
    assert finding.labels[-1].message == "and this finds the rest"


def test_backwards_in_vain_are_counted(workshop: Workshop) -> None:
    """Of micro-batches that clear each other, all but the last are in vain."""
    finding = judge(workshop, THROWN_AWAY["micro_batches"][1]).findings[0]
    assert finding.message.startswith("15 of 20 backwards are in vain")


# --- step-without-backward -----------------------------------------------------------------------------------------

NOTHING_TO_APPLY = {
    "no_backward": (
        NET,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            loss = loss_of(net)
            optimizer.zero_grad()
            optimizer.step()  # here
        """,
    ),
    "backward_of_the_other_loss": (
        ("judge.weight", "judge.bias"),
        """
        net, judge = Net(), nn.Linear(4, 1)
        optimizer, second = Adam(net.parameters(), lr=0.01), Adam(judge.parameters(), lr=0.01)
        for _ in range(5):
            loss, other = loss_of(net), loss_of(judge)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            second.zero_grad()
            second.step()  # here
        """,
    ),
    "gradients_of_another_loss_only": (
        ("judge.weight", "judge.bias"),
        """
        net, judge = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer, second = Adam(net.parameters(), lr=0.01), Adam(judge.parameters(), lr=0.01)
        for _ in range(5):
            second.zero_grad()
            loss = judge(net(data()[0]).detach()).mean() - judge(data()[0]).mean()
            second.step()  # here
            optimizer.zero_grad()
            other = -judge(net(data()[0])).mean()
            other.backward()
            optimizer.step()
        """,
    ),
    "one_backward_for_many_steps": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        loss_of(net).backward()
        for _ in range(6):
            optimizer.step()  # here
        """,
    ),
    "gradients_asked_for_and_dropped": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            gradients = torch.autograd.grad(loss_of(net), list(net.parameters()))
            optimizer.step()  # here
        """,
    ),
}


@pytest.mark.parametrize("case", NOTHING_TO_APPLY)
def test_steps_with_nothing_to_apply(case: str, workshop: Workshop) -> None:
    """A step with no gradient since the last one is shown where it is called."""
    tensors, program = NOTHING_TO_APPLY[case]
    judge(workshop, program).must_be("step-without-backward", "warning", tensors)


def test_step_without_backward_points_to_the_loss(workshop: Workshop) -> None:
    """A label shows the loss that nobody differentiates, and the help names it."""
    found = judge(workshop, NOTHING_TO_APPLY["no_backward"][1])
    finding = found.must_be("step-without-backward", "warning", NET)
    assert "Adam stepped 5 times, and no backward ever reached them" in finding.message
    assert [label.message for label in finding.labels] == ["`loss` is computed here, and no backward starts from it"]
    assert finding.help[0].message == "call `loss.backward()` before the step"


def test_gradient_applied_again_is_counted(workshop: Workshop) -> None:
    """Steps that apply the gradient of the step before are counted, with a label on the backward it came from."""
    found = judge(workshop, NOTHING_TO_APPLY["one_backward_for_many_steps"][1])
    finding = found.must_be("step-without-backward", "warning", NET)
    assert "5 of 6 steps applied the gradient of the step before again" in finding.message
    assert [found.line(label.span).strip() for label in finding.labels] == ["loss_of(net).backward()"]


# --- never-stepped -------------------------------------------------------------------------------------------------

NEVER_STEPPED = {
    "no_step": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(net).backward()  # here
        """,
    ),
    "only_the_scheduler_steps": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(net).backward()  # here
            scheduler.step()
        """,
    ),
    "condition_that_never_holds": (
        NET,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for i in range(6):
            (loss_of(net) / 8).backward()  # here
            if (i + 1) % 8 == 0:
                optimizer.step()
                optimizer.zero_grad()
        """,
    ),
    "second_of_two": (
        ("critic.0.weight", "critic.0.bias", "critic.2.weight", "critic.2.bias"),
        """
        maker = Net()
        critic = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1))
        optimizer, second = Adam(maker.parameters(), lr=0.01), Adam(critic.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            wrong = F.softplus(-critic(y)).mean() + F.softplus(critic(maker(x).detach())).mean()
            second.zero_grad()
            wrong.backward()  # here
            fooled = F.softplus(-critic(maker(x))).mean()
            optimizer.zero_grad()
            fooled.backward()
            optimizer.step()
        """,
    ),
}


@pytest.mark.parametrize("case", NEVER_STEPPED)
def test_gradients_that_nothing_applies(case: str, workshop: Workshop) -> None:
    """Gradients that arrive at what an optimizer holds that never steps are shown at the backward."""
    tensors, program = NEVER_STEPPED[case]
    finding = judge(workshop, program).must_be("never-stepped", "warning", tensors)
    assert finding.help[0].message == "call `optimizer.step()` after backward"
    assert [label.message.partition(" holds")[0] for label in finding.labels] in (["this SGD"], ["this Adam"])


def test_run_that_was_cut_short_is_not_blamed(workshop: Workshop) -> None:
    """Where an exception ended the program, the step may have been still to come."""
    source = """
        import torch
        net = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            net(torch.rand(3, 2)).sum().backward()
        raise ValueError("no")
    """
    outcome = workshop.observe(source)
    assert isinstance(outcome.error, ValueError)
    assert [finding.rule for finding in Report.of(outcome.run).findings] == []


# --- programs in order ---------------------------------------------------------------------------------------------

TWO_HEADS = """
        trunk, heads = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        shared = SGD(trunk.parameters(), lr=0.01)
        first, second = (SGD(head.parameters(), lr=0.01) for head in heads)
"""
IN_ORDER = {
    "heads_step_before_the_trunk": TWO_HEADS
    + """
        for _ in range(8):
            x, y = data()
            F.mse_loss(heads[0](trunk(x)), y).backward()
            first.step()
            first.zero_grad()
            F.l1_loss(heads[1](trunk(x)), y).backward()
            second.step()
            second.zero_grad()
            shared.step()
            shared.zero_grad()
    """,
    "a_second_head_joins_later": TWO_HEADS
    + """
        for step in range(12):
            x, y = data()
            if step >= 4:
                F.l1_loss(heads[1](trunk(x)), y).backward()
                second.step()
                second.zero_grad()
            F.mse_loss(heads[0](trunk(x)), y).backward()
            first.step()
            first.zero_grad()
            shared.step()
            shared.zero_grad()
    """,
    "cleared_after_the_step": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            loss_of(net).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    """,
    "cleared_twice": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            net.zero_grad()
            loss_of(net).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            nn.utils.clip_grad_value_(net.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    """,
    "each_set_to_none": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            for p in net.parameters():
                p.grad = None
            loss_of(net).backward()
            optimizer.step()
    """,
    "cleared_by_foreach": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            loss_of(net).backward()
            optimizer.step()
            torch._foreach_zero_([p.grad for p in net.parameters()])
    """,
    "accumulation": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        optimizer.zero_grad()
        for i in range(12):
            (loss_of(net) / 4).backward()
            if (i + 1) % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
    """,
    "two_losses_one_step": """
        net, aux = Net(), nn.Linear(6, 1)
        optimizer = SGD([*net.parameters(), *aux.parameters()], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            x, y = data()
            F.mse_loss(net(x), y).backward()
            F.mse_loss(aux(net.body(x)), y).backward()
            optimizer.step()
    """,
    "adversaries": """
        maker, critic = Net(), nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1))
        optimizer, second = Adam(maker.parameters(), lr=0.01), Adam(critic.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            second.zero_grad()
            (F.softplus(-critic(y)).mean() + F.softplus(critic(maker(x).detach())).mean()).backward()
            second.step()
            optimizer.zero_grad()
            F.softplus(-critic(maker(x))).mean().backward()
            optimizer.step()
    """,
    "adversary_cleared_after_the_maker": """
        maker, critic = Net(), nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1))
        optimizer, second = Adam(maker.parameters(), lr=0.01), Adam(critic.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            optimizer.zero_grad()
            F.softplus(-critic(maker(x))).mean().backward()
            second.zero_grad()
            optimizer.step()
            (F.softplus(-critic(y)).mean() + F.softplus(critic(maker(x).detach())).mean()).backward()
            second.step()
    """,
    "critic_without_detach_five_to_one": """
        maker, critic = Net(), nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
        optimizer, second = Adam(maker.parameters(), lr=0.01), Adam(critic.parameters(), lr=0.01)
        for i in range(10):
            x, y = data()
            second.zero_grad()
            (critic(maker(x)).mean() - critic(y).mean()).backward()
            second.step()
            for p in critic.parameters():
                p.data.clamp_(-0.1, 0.1)
            if i % 5 == 4:
                optimizer.zero_grad()
                (-critic(maker(x)).mean()).backward()
                optimizer.step()
    """,
    "actor_and_critic": """
        actor, critic = Net(), nn.Linear(5, 1)
        optimizer, second = Adam(actor.parameters(), lr=0.01), Adam(critic.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            second.zero_grad()
            F.mse_loss(critic(torch.cat([x, actor(x).detach()], 1)), y).backward()
            second.step()
            optimizer.zero_grad()
            (-critic(torch.cat([x, actor(x)], 1)).mean()).backward()
            optimizer.step()
    """,
    "steps_skipped_for_large_gradients": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for i in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            if i % 2 or not torch.isfinite(norm):
                optimizer.zero_grad()
                continue
            optimizer.step()
    """,
    "scaler_that_skips": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scale = 2.0 ** 130
        for _ in range(8):
            optimizer.zero_grad()
            (loss_of(net) * scale).backward()
            gradients = [p.grad for p in net.parameters()]
            torch._foreach_mul_(gradients, 1 / scale)
            if all(bool(torch.isfinite(g).all()) for g in gradients):
                optimizer.step()
            else:
                scale /= 16
    """,
    "scaler_that_only_skips": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 120)
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(1e20 * loss_of(net)).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
    "grad_scaler": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    """,
    "grad_scaler_that_skips_the_first": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 127)
        for _ in range(12):
            optimizer.zero_grad()
            scaler.scale(loss_of(net) * 100).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
    "closure_that_clears": """
        net = Net()
        optimizer = LBFGS(net.parameters(), lr=0.1, max_iter=4)
        x, y = data()

        def closure():
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
    """,
    "closure_that_sets_to_none": """
        w = torch.zeros(4, 1, requires_grad=True)
        optimizer = LBFGS([w], lr=0.1, max_iter=4, line_search_fn="strong_wolfe")
        x, y = data()

        def closure():
            w.grad = None
            loss = F.mse_loss(x @ w, y)
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
    """,
    "closure_of_a_plain_optimizer": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            def closure():
                optimizer.zero_grad()
                loss = loss_of(net)
                loss.backward()
                return loss
            optimizer.step(closure)
    """,
    "closure_for_the_loss_only": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            optimizer.step(lambda: loss)
    """,
    "saliency_after_training": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        fit(net, optimizer, 4)
        for _ in range(5):
            x = torch.randn(1, 4, requires_grad=True)
            net.zero_grad()
            net(x).sum().backward()
            shown = x.grad.abs().sum().item()
    """,
    "adversarial_examples": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            x.requires_grad_()
            F.mse_loss(net(x), y).backward()
            worse = (x + 0.1 * x.grad.sign()).detach()
            optimizer.zero_grad()
            F.mse_loss(net(worse), y).backward()
            optimizer.step()
    """,
    "adversarial_weights": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            w = net.body[0].weight
            back = w.data.clone()
            w.data.add_(0.5 * w.grad / w.grad.norm())
            F.mse_loss(net(x), y).backward()
            w.data = back
            optimizer.step()
    """,
    "sharpness_aware": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            F.mse_loss(net(x), y).backward()
            with torch.no_grad():
                moved = [0.05 * p.grad / (p.grad.norm() + 1e-9) for p in net.parameters()]
                for p, e in zip(net.parameters(), moved):
                    p.add_(e)
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            with torch.no_grad():
                for p, e in zip(net.parameters(), moved):
                    p.sub_(e)
            optimizer.step()
            optimizer.zero_grad()
    """,
    "momentum_kept_in_grad": """
        w = torch.zeros(4, 1, requires_grad=True)
        for _ in range(8):
            x, y = data()
            F.mse_loss(x @ w, y).backward()
            with torch.no_grad():
                w -= 0.01 * w.grad
                w.grad *= 0.9
    """,
    "updates_under_no_grad": """
        w = torch.zeros(4, 1, requires_grad=True)
        for _ in range(6):
            x, y = data()
            F.mse_loss(x @ w, y).backward()
            with torch.no_grad():
                w -= 0.01 * w.grad
            w.grad = None
    """,
    "updates_through_data": """
        net = Net()
        for _ in range(6):
            net.zero_grad()
            loss_of(net).backward()
            for p in net.parameters():
                p.data.sub_(0.01 * p.grad.data)
                p.grad.data.zero_()
    """,
    "updates_that_rebind": """
        w = torch.zeros(4, 1, requires_grad=True)
        for _ in range(6):
            x, y = data()
            F.mse_loss(x @ w, y).backward()
            w = (w - 0.01 * w.grad).detach().requires_grad_()
    """,
    "evolution": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            for p in net.parameters():
                p.grad = torch.randn_like(p) * 0.1
            optimizer.step()
            optimizer.zero_grad()
    """,
    "gradients_asked_for_and_written": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            parameters = list(net.parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss_of(net), parameters)):
                p.grad = g
            optimizer.step()
    """,
    "gradients_summed_over_tasks": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            kept = []
            for task in range(2):
                optimizer.zero_grad()
                loss_of(net).backward()
                kept.append([p.grad.clone() for p in net.parameters()])
            optimizer.zero_grad()
            for p, a, b in zip(net.parameters(), *kept):
                p.grad = (a + b) / 2
            optimizer.step()
    """,
    "two_optimizers_by_turns": """
        net = Net()
        first, second = SGD(net.body.parameters(), lr=0.01), SGD(net.head.parameters(), lr=0.01)
        for i in range(10):
            net.zero_grad()
            loss_of(net).backward()
            (first if i % 2 else second).step()
    """,
    "two_optimizers_one_backward": """
        net = Net()
        first, second = SGD(net.body.parameters(), lr=0.01), Adam(net.head.parameters(), lr=0.01)
        for _ in range(6):
            first.zero_grad()
            second.zero_grad()
            loss_of(net).backward()
            first.step()
            second.step()
    """,
    "two_optimizers_on_a_shared_module": """
        shared, a, b = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        first = Adam([*shared.parameters(), *a.parameters()], lr=0.01)
        second = Adam([*shared.parameters(), *b.parameters()], lr=0.01)
        for _ in range(6):
            x, y = data()
            first.zero_grad()
            F.mse_loss(a(torch.tanh(shared(x))), y).backward()
            first.step()
            second.zero_grad()
            F.mse_loss(b(torch.tanh(shared(x))), y).backward()
            second.step()
    """,
    "optimizer_for_later": """
        net = Net()
        optimizer, later = SGD(net.parameters(), lr=0.01), Adam(net.parameters(), lr=0.01)
        fit(net, optimizer)
    """,
    "restarts": """
        for fold in range(3):
            net = Net()
            optimizer = Adam(net.parameters(), lr=0.01)
            fit(net, optimizer, 4)
    """,
    "validation_before_training": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(3):
            loss = loss_of(net)
        fit(net, optimizer)
        with torch.no_grad():
            loss = loss_of(net)
    """,
    "gradient_norm_is_logged": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            loss_of(net).backward()
            log = sum(p.grad.norm().item() ** 2 for p in net.parameters()) ** 0.5
            optimizer.step()
    """,
    "fisher_information": """
        net = Net()
        fit(net, SGD(net.parameters(), lr=0.01), 4)
        fisher = [torch.zeros_like(p) for p in net.parameters()]
        for _ in range(5):
            net.zero_grad()
            loss_of(net).backward()
            for total, p in zip(fisher, net.parameters()):
                total += p.grad ** 2
    """,
}


@pytest.mark.parametrize("case", IN_ORDER)
def test_programs_in_order_are_silent(case: str, workshop: Workshop) -> None:
    """Accumulation, alternating players, skipped steps and gradients written by hand draw nothing."""
    judge(workshop, IN_ORDER[case]).must_be_silent()


def test_scaler_that_finds_no_gradient(workshop: Workshop) -> None:
    """Where a GradScaler raises since nothing was differentiated, the step through it is told."""
    outcome = workshop.observe(
        """
        import torch
        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss)
            scaler.step(optimizer)
            scaler.update()
        """
    )
    (finding,) = Report.of(outcome.run).findings
    assert (finding.rule, finding.severity) == ("step-without-backward", "error")
    assert finding.tensors == ("net.weight", "net.bias")
    assert finding.span is not None
    assert finding.span.line == 9


HANDED_OVER = """
shared, worker = Net(), Net()
optimizer = Adam(shared.parameters(), lr=0.01)
for _ in range(12):
    worker.load_state_dict(shared.state_dict())
    optimizer.zero_grad()
    {clear}
    loss_of(worker).backward()  # here
    for ours, theirs in zip(shared.parameters(), worker.parameters()):
        ours.{grad} = theirs.grad
    nn.utils.clip_grad_norm_(shared.parameters(), 1.0)
    optimizer.step()
"""


@pytest.mark.parametrize("grad", ["grad", "_grad"])
def test_gradients_that_are_handed_over_are_cleared_where_they_arrive(grad: str, workshop: Workshop) -> None:
    """`zero_grad` of the one who steps lets go of a gradient that another tensor keeps."""
    judged = judge(workshop, HANDED_OVER.format(clear="pass", grad=grad))
    judged.must_be("missing-zero-grad", "warning", tuple(f"worker.{name}" for name in NET))
    judge(workshop, HANDED_OVER.format(clear="worker.zero_grad()", grad=grad)).must_be_silent()
