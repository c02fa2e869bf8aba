"""Programs whose optimizer lacks tensors or holds old ones, and programs that only look so."""

from __future__ import annotations

import pytest

from gradscope.reports.report import Report
from tests.rules.training import BODY, NET, OUT, judge
from tests.workshop import Workshop

REPLACED = {
    "weight_norm": (
        tuple(f"{layer}.parametrizations.weight.original{i}" for layer in ("body.0", "head") for i in (0, 1)),
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.1)
        for layer in (net.body[0], net.head):
            nn.utils.parametrizations.weight_norm(layer)  # here
        fit(net, optimizer)
        """,
    ),
    "new_head_within_a_function": (
        OUT,
        """
        def main():
            net = Net()
            optimizer = Adam(net.parameters(), lr=0.01)
            net.head = nn.Linear(6, 1)  # here
            fit(net, optimizer)

        main()
        """,
    ),
    "new_head_by_a_method": (
        OUT,
        """
        class Trainer:
            def __init__(self):
                self.net = Net()
                self.optimizer = Adam(self.net.parameters(), lr=0.01)

            def adapt(self):
                self.net.head = nn.Linear(6, 1)  # here

        def main():
            trainer = Trainer()
            trainer.adapt()
            fit(trainer.net, trainer.optimizer)

        main()
        """,
    ),
    "made_again_by_the_same_function": (
        tuple(f"net#2.{name}" for name in NET),
        """
        def build():
            return Net()

        def resume(state):
            net = build()
            net.load_state_dict(state)
            return net

        net = build()
        optimizer = Adam(net.parameters(), lr=0.01)
        net = resume(net.state_dict())  # here
        fit(net, optimizer)
        """,
    ),
    "model_made_again": (
        tuple(f"net#2.{name}" for name in NET),
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        net = Net()  # here
        fit(net, optimizer)
        """,
    ),
    "new_head": (
        OUT,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        net.head = nn.Linear(6, 1)  # here
        fit(net, optimizer)
        """,
    ),
    "new_head_of_another_shape": (
        OUT,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        fit(net, optimizer, 3)
        net.head = nn.Linear(6, 2)  # here
        for _ in range(4):
            optimizer.zero_grad()
            net(data()[0]).square().mean().backward()
            optimizer.step()
        """,
    ),
    "new_head_in_the_middle": (
        OUT,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        fit(net, optimizer)
        net.head = nn.Linear(6, 1)  # here
        fit(net, optimizer)
        """,
    ),
    "new_parameter": (
        ("head.weight",),
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        net.head.weight = nn.Parameter(net.head.weight.detach().clone() * 2)  # here
        fit(net, optimizer)
        """,
    ),
    "layer_in_a_sequence": (
        BODY,
        """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        net.body[0] = nn.Linear(4, 6)  # here
        fit(net, optimizer)
        """,
    ),
    "method_that_resets": (
        OUT,
        """
        class Resettable(Net):
            def reset(self):
                self.head = nn.Linear(6, 1)  # here

        net = Resettable()
        optimizer = SGD(net.parameters(), lr=0.01)
        fit(net, optimizer, 3)
        net.reset()
        fit(net, optimizer, 4)
        """,
    ),
}


@pytest.mark.parametrize("case", REPLACED)
def test_tensors_replaced_after_the_optimizer(case: str, workshop: Workshop) -> None:
    """Tensors that took the place of those which the optimizer holds are shown where they were made."""
    tensors, program = REPLACED[case]
    found = judge(workshop, program)
    finding = found.must_be("stale-optimizer", "error", tensors)
    assert [label.message for label in finding.labels] == ["made before, it holds the old ones"]
    assert "optimizer = " in found.line(finding.labels[0].span)


def test_values_loaded_by_assignment(workshop: Workshop) -> None:
    """`load_state_dict(assign=True)` replaces the tensors as well."""
    found = judge(
        workshop,
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        net.load_state_dict({key: value.clone() for key, value in Net().state_dict().items()}, assign=True)
        fit(net, optimizer)
        """,
    )
    assert [(finding.rule, finding.tensors) for finding in found.findings] == [("stale-optimizer", NET)]


def test_replacement_in_the_middle_tells_the_last_gradient(workshop: Workshop) -> None:
    """A note says in which step what the optimizer holds got its last gradient."""
    finding = judge(workshop, REPLACED["new_head_in_the_middle"][1]).findings[0]
    assert any("got its last gradient in step 8" in fact for fact in finding.facts)
    finding = judge(workshop, REPLACED["model_made_again"][1]).findings[0]
    assert any("never got a gradient" in fact for fact in finding.facts)


NOT_HELD = {
    "weights_of_the_loss": (
        ("criterion.s",),
        """
        class Criterion(nn.Module):
            def __init__(self):
                super().__init__()
                self.s = nn.Parameter(torch.zeros(1))

            def forward(self, p, y):
                return (F.mse_loss(p, y) * torch.exp(-self.s) + self.s).sum()

        net, criterion = Net(), Criterion()
        optimizer = SGD(net.parameters(), lr=0.01)  # here
        for _ in range(4):
            x, y = data()
            optimizer.zero_grad()
            criterion(net(x), y).backward()
            optimizer.step()
        """,
    ),
    "second_module": (
        ("aux.weight", "aux.bias"),
        """
        net, aux = Net(), nn.Linear(4, 1)
        optimizer = SGD(net.parameters(), lr=0.01)  # here
        for _ in range(4):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(net(x) + aux(x), y).backward()
            optimizer.step()
        """,
    ),
    "weights_only": (
        ("body.0.bias", "head.bias"),
        """
        net = Net()
        weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
        optimizer = SGD([{"params": weights}], lr=0.01)  # here
        fit(net, optimizer, 4)
        """,
    ),
    "number_to_identify": (
        ("rate",),
        """
        net = Net()
        rate = torch.tensor(1.0, requires_grad=True)
        optimizer = SGD(net.parameters(), lr=0.01)  # here
        for _ in range(4):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(rate * net(x), y).backward()
            optimizer.step()
        """,
    ),
    "layer_added_later": (
        ("extra.weight", "extra.bias"),
        """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)  # here
        fit(net, optimizer, 3)
        net.extra = nn.Linear(1, 1)
        net.forward = lambda x: net.extra(net.head(net.body(x)))
        fit(net, optimizer, 4)
        """,
    ),
    "two_optimizers_and_a_gap": (
        ("mid.weight", "mid.bias"),
        """
        class Longer(Net):
            def __init__(self):
                super().__init__()
                self.mid = nn.Linear(6, 6)

            def forward(self, x):
                return self.head(torch.tanh(self.mid(self.body(x))))

        net = Longer()
        first = SGD(net.body.parameters(), lr=0.01)  # here
        second = SGD(net.head.parameters(), lr=0.01)
        for _ in range(4):
            net.zero_grad()
            loss_of(net).backward()
            first.step()
            second.step()
        """,
    ),
}


@pytest.mark.parametrize("case", NOT_HELD)
def test_tensors_that_no_optimizer_holds(case: str, workshop: Workshop) -> None:
    """Parameters that get gradients beside those that learn are shown where the optimizer was made."""
    tensors, program = NOT_HELD[case]
    judge(workshop, program).must_be("not-in-optimizer", "warning", tensors)


def test_missing_parameters_are_labelled_where_they_were_made(workshop: Workshop) -> None:
    """The headline counts the backwards, and a label shows where the module was made."""
    found = judge(workshop, NOT_HELD["second_module"][1])
    finding = found.must_be("not-in-optimizer", "warning", ("aux.weight", "aux.bias"))
    assert finding.message == "`aux` never learns: gradients arrived in 4 backwards, and no optimizer holds it"
    assert [(label.message, "nn.Linear(4, 1)" in found.line(label.span)) for label in finding.labels] == [
        ("made here", True)
    ]


def test_optimizer_of_a_copy(workshop: Workshop) -> None:
    """An optimizer that was given the parameters of a copy trains nothing of the model."""
    found = judge(
        workshop,
        """
        net = Net()
        optimizer = SGD(copy.deepcopy(net).parameters(), lr=0.01)  # here
        fit(net, optimizer)
        """,
    )
    found.must_be("not-in-optimizer", "warning", NET)


@pytest.mark.parametrize("start", ["target.load_state_dict(net.state_dict())", "target = copy.deepcopy(net)"])
def test_optimizer_of_a_target_network(start: str, workshop: Workshop) -> None:
    """Of a target network in the optimizer only that is told: that it gets no gradient is as it should be."""
    program = """
        net, target = Net(), Net()
        {start}
        optimizer = SGD(target.parameters(), lr=0.01)  # here
        for _ in range(6):
            x, _ = data()
            with torch.no_grad():
                goal = 0.9 * target(x) + 0.1
            loss = F.mse_loss(net(x), goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    finding = judge(workshop, program.replace("{start}", start)).must_be(
        "not-in-optimizer", "warning", tuple(f"net.{name}" for name in NET)
    )
    assert finding.facts[-1].startswith("note: SGD holds copies instead, which get no gradient: target.")


HELD_AS_MEANT = {
    "weight_norm_before": """
        net = Net()
        nn.utils.parametrizations.weight_norm(net.head)
        optimizer = SGD(net.parameters(), lr=0.1)
        fit(net, optimizer)
    """,
    "weight_norm_and_new_optimizer": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.1)
        fit(net, optimizer)
        nn.utils.parametrizations.weight_norm(net.head)
        optimizer = SGD(net.parameters(), lr=0.1)
        fit(net, optimizer)
    """,
    "group_added_later": """
        net, aux = Net(), nn.Linear(4, 1)
        optimizer = SGD(net.parameters(), lr=0.01)
        optimizer.add_param_group({"params": aux.parameters(), "lr": 0.001})
        for _ in range(5):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(net(x) + aux(x), y).backward()
            optimizer.step()
    """,
    "group_added_while_training": """
        net = Net()
        optimizer = Adam(net.head.parameters(), lr=0.01)
        net.body.requires_grad_(False)
        fit(net, optimizer, 4)
        net.body.requires_grad_(True)
        optimizer.add_param_group({"params": net.body.parameters(), "lr": 0.001})
        fit(net, optimizer, 4)
    """,
    "new_head_and_new_group": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        fit(net, optimizer, 4)
        net.head = nn.Linear(6, 1)
        optimizer.add_param_group({"params": net.head.parameters()})
        fit(net, optimizer, 4)
    """,
    "new_head_and_new_optimizer": """
        net = Net()
        fit(net, SGD(net.parameters(), lr=0.01), 4)
        net.head = nn.Linear(6, 1)
        fit(net, SGD(net.parameters(), lr=0.01), 4)
    """,
    "values_loaded": """
        net = Net()
        optimizer = Adam(net.parameters(), lr=0.01)
        net.load_state_dict(Net().state_dict())
        fit(net, optimizer)
    """,
    "moved_in_place": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        net.to(torch.float64).to(torch.float32)
        fit(net, optimizer)
    """,
    "head_frozen_out": """
        net, spare = Net(), nn.Linear(4, 1)
        spare.requires_grad_(False)
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(5):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(net(x) + spare(x), y).backward()
            optimizer.step()
    """,
    "network_that_measures": """
        measure, net = Net().eval(), nn.Sequential(nn.Linear(4, 4))
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            x, y = data()
            optimizer.zero_grad()
            F.mse_loss(measure(net(x)), measure(x).detach()).backward()
            optimizer.step()
    """,
    "latent_code": """
        net = Net()
        z = torch.randn(1, 4, requires_grad=True)
        optimizer = Adam([z], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (net(z) - 3).square().mean().backward()
            optimizer.step()
    """,
    "average_of_weights": """
        net = Net()
        average = copy.deepcopy(net)
        optimizer = SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            fit(net, optimizer, 1)
            with torch.no_grad():
                for a, p in zip(average.parameters(), net.parameters()):
                    a.lerp_(p, 0.1)
        score = loss_of(average).item()
    """,
    "average_swapped_in": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        shadow = {name: p.detach().clone() for name, p in net.named_parameters()}
        for _ in range(6):
            fit(net, optimizer, 1)
            for name, p in net.named_parameters():
                shadow[name] = 0.9 * shadow[name] + 0.1 * p.data
            kept = {name: p.data for name, p in net.named_parameters()}
            for name, p in net.named_parameters():
                p.data = shadow[name]
            with torch.no_grad():
                score = loss_of(net)
            for name, p in net.named_parameters():
                p.data = kept[name]
    """,
    "averaged_model": """
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.01)
        average = torch.optim.swa_utils.AveragedModel(net)
        for _ in range(6):
            fit(net, optimizer, 1)
            average.update_parameters(net)
        score = loss_of(average).item()
    """,
    "target_network": """
        net = Net()
        target = copy.deepcopy(net)
        optimizer = Adam(net.parameters(), lr=0.01)
        for i in range(8):
            x, y = data()
            with torch.no_grad():
                goal = y + 0.9 * target(x)
            optimizer.zero_grad()
            F.smooth_l1_loss(net(x), goal).backward()
            optimizer.step()
            if i % 4 == 0:
                target.load_state_dict(net.state_dict())
    """,
    "fast_weights": """
        net = Net()
        for _ in range(3):
            fast = copy.deepcopy(net)
            fit(fast, SGD(fast.parameters(), lr=0.01), 3)
            with torch.no_grad():
                for p, q in zip(net.parameters(), fast.parameters()):
                    p.add_(0.5 * (q - p))
    """,
    "part_updated_by_hand": """
        net = Net()
        optimizer = SGD(net.body.parameters(), lr=0.01)
        for _ in range(5):
            net.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            with torch.no_grad():
                for p in net.head.parameters():
                    p -= 0.01 * p.grad
    """,
    "folds": """
        for fold in range(3):
            net = Net()
            optimizer = Adam(net.parameters(), lr=0.01)
            fit(net, optimizer, 3)
    """,
    "shared_modules": """
        shared, a, b = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        first, second = SGD([*shared.parameters(), *a.parameters()], lr=0.01), SGD(b.parameters(), lr=0.01)
        for _ in range(5):
            x, y = data()
            hidden = torch.tanh(shared(x))
            first.zero_grad()
            second.zero_grad()
            (F.mse_loss(a(hidden), y) + F.mse_loss(b(hidden), -y)).backward()
            first.step()
            second.step()
    """,
}


@pytest.mark.parametrize("case", HELD_AS_MEANT)
def test_tensors_held_as_meant_are_silent(case: str, workshop: Workshop) -> None:
    """Groups added later, averages, targets, frozen parts and networks that only measure draw nothing."""
    judge(workshop, HELD_AS_MEANT[case]).must_be_silent()


def test_clients_that_are_copied_anew_in_each_round(workshop: Workshop) -> None:
    """Several models of one variable, replaced again and again, whose optimizers hold the first ones: one story."""
    program = """
        import copy
        import torch
        from torch import nn

        class Client:
            def __init__(self, server):
                self.model = copy.deepcopy(server)
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

            def train(self, server):
                self.model = copy.deepcopy(server)  # here
                for _ in range(3):
                    loss = self.model(torch.rand(8, 4)).square().mean()
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()

        server = nn.Linear(4, 1)
        clients = [Client(server) for _ in range(2)]
        for _ in range(3):
            for client in clients:
                client.train(server)
    """
    (finding,) = Report.of(workshop.run(program)).findings
    assert (finding.rule, len(finding.tensors)) == ("stale-optimizer", 4)
    assert {name.partition("#")[0] for name in finding.tensors} == {"model"}
    assert finding.span is not None
    assert "# here" in (workshop.folder / "script.py").read_text(encoding="utf-8").splitlines()[finding.span.line - 1]


def test_a_parameter_made_anew_in_every_step(workshop: Workshop) -> None:
    """Each gets one gradient, and then another takes its place: what the optimizer holds has long been given up."""
    found = judge(
        workshop,
        """
        net = Net()
        net.gain = nn.Parameter(torch.ones(1))
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            x, y = data()
            F.mse_loss(net.gain * net(x), y).backward()
            optimizer.step()
            net.gain = nn.Parameter(net.gain.data.clamp(0.5, 2.0))  # here
        """,
    )
    finding = found.must_be("stale-optimizer", "error", ("net.gain",))
    assert finding.help[0].message.startswith("keep the tensors")


def test_a_parameter_made_anew_with_its_optimizer(workshop: Workshop) -> None:
    """Who makes the optimizer anew as well loses nothing but its state."""
    found = judge(
        workshop,
        """
        net = Net()
        net.gain = nn.Parameter(torch.ones(1))
        for _ in range(8):
            optimizer = SGD(net.parameters(), lr=0.01)
            x, y = data()
            F.mse_loss(net.gain * net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            net.gain = nn.Parameter(net.gain.data.clamp(0.5, 2.0))
        """,
    )
    found.must_be_silent()


@pytest.mark.parametrize(("given", "said"), [("p.data", "data"), ("p.detach()", "detach")])
def test_an_optimizer_holds_detached_tensors(given: str, said: str, workshop: Workshop) -> None:
    """The reason is named: what `.data` gives is another tensor."""
    found = judge(
        workshop,
        f"""
        net = Net()
        optimizer = SGD([{given} for p in net.parameters()], lr=0.1)  # here
        fit(net, optimizer)
        """,
    )
    (finding,) = found.findings
    assert finding.rule == "not-in-optimizer"
    assert f"`{said}` gives another tensor" in finding.labels[-1].message
    assert finding.help[0].message.endswith(f"without `{said}`")


def test_only_whole_modules_stand_for_their_tensors(workshop: Workshop) -> None:
    """Of a model with two tensors of its own that are left out, it is these that never learn."""
    found = judge(
        workshop,
        """
        net = Net()
        net.shift, net.scale = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))
        optimizer = SGD([*net.body.parameters(), *net.head.parameters()], lr=0.1)  # here
        for _ in range(8):
            optimizer.zero_grad()
            x, y = data()
            F.mse_loss(net(x) * net.scale + net.shift, y).backward()
            optimizer.step()
        """,
    )
    (finding,) = found.findings
    assert finding.message.startswith("`net.shift` and `net.scale` never learn")


def test_each_phase_is_judged_with_its_own_optimizer(workshop: Workshop) -> None:
    """What the optimizer of a first phase lacks is told at that optimizer, though it is frozen in the second."""
    judged = judge(
        workshop,
        """
        def teach():
            net = Net()
            optimizer = Adam(list(net.parameters())[2:], lr=0.01)  # here
            fit(net, optimizer)
            return net.eval().requires_grad_(False)

        def distill(teacher):
            net = Net()
            optimizer = Adam(net.parameters(), lr=0.01)
            for _ in range(20):
                x, _ = data()
                optimizer.zero_grad()
                F.mse_loss(net(x), teacher(x)).backward()
                optimizer.step()

        distill(teach())
        """,
    )
    judged.must_be("not-in-optimizer", "warning", tuple(f"net.{name}" for name in BODY))


def test_of_several_optimizers_the_one_of_the_siblings_lacks_it(workshop: Workshop) -> None:
    """A second critic belongs to the optimizer of the first, though the loss of the generator reaches both."""
    judged = judge(
        workshop,
        """
        generator, first, second = Net(), Net(1), nn.Linear(1, 1)
        ours = Adam(generator.parameters(), lr=0.01)
        theirs = Adam(first.parameters(), lr=0.01)  # here
        for _ in range(6):
            x, y = data()
            made = generator(x)
            judge = lambda value: (first(value) + second(value)).mean()
            theirs.zero_grad()
            (judge(made.detach()) - judge(y)).backward()
            theirs.step()
            ours.zero_grad()
            judge(made).backward()
            ours.step()
        """,
    )
    found = judged.must_be("not-in-optimizer", "warning", ("second.weight", "second.bias"))
    assert found.labels
