"""Optimizers and schedulers: each sets up `opt`, or a scheduler and its call in the loop."""

from __future__ import annotations

from tests.fuzz.program import Ingredients, Program

optimizer = Ingredients("optimizer")
scheduler = Ingredients("scheduler")


def parameters(program: Program) -> str:
    """What an optimizer is given."""
    return program.pick(
        "model.parameters()",
        "model.parameters()",
        "list(model.parameters())",
        "model.named_parameters()",
        "(p for p in model.parameters() if p.requires_grad)",
        "[{'params': list(model.parameters())[:1], 'lr': 0.05}, {'params': list(model.parameters())[1:]}]",
    )


@optimizer(weight=8)
def usual(program: Program) -> None:
    """All kinds that take a step from gradients alone, with the flags that they know."""
    kind, options = program.pick(
        (
            "SGD",
            (
                "momentum=0.9",
                "momentum=0.9, nesterov=True",
                "weight_decay=0.01",
                "fused=True",
                "dampening=0.1, momentum=0.5",
            ),
        ),
        ("Adam", ("amsgrad=True", "fused=True", "weight_decay=0.1", "betas=(0.5, 0.9)", "eps=1e-3")),
        ("AdamW", ("amsgrad=True", "fused=True", "weight_decay=0.0")),
        ("Adagrad", ("lr_decay=0.1", "initial_accumulator_value=0.1", "fused=True")),
        ("Adadelta", ("rho=0.5", "weight_decay=0.1")),
        ("Adafactor", ("d=0.5", "weight_decay=0.1")),
        ("Adamax", ("weight_decay=0.1", "eps=1e-4")),
        ("ASGD", ("lambd=0.1", "t0=1")),
        ("NAdam", ("decoupled_weight_decay=True", "momentum_decay=0.1")),
        ("RAdam", ("decoupled_weight_decay=True", "weight_decay=0.1")),
        ("RMSprop", ("centered=True", "momentum=0.9", "alpha=0.5")),
        ("Rprop", ("etas=(0.4, 1.3)", "step_sizes=(1e-4, 1.0)")),
    )
    given = [f"lr={program.pick('0.1', '0.01', '1e-3', 'torch.tensor(0.01)')}"]
    if program.chance(0.5):
        given.append(program.pick(*options))
    if kind != "Adafactor":
        given += [program.pick("", "", "foreach=True", "foreach=False")] if "fused" not in given[-1] else []
        given += [program.pick("", "", "maximize=True", "differentiable=True", "capturable=True")]
    if kind in ("SGD", "Adagrad") and "capturable=True" in given:
        given.remove("capturable=True")
    text = ", ".join(one for one in given if one)
    program.setup.append(
        f"""
        try:
            opt = torch.optim.{kind}({parameters(program)}, {text})
        except Exception as error:
            show("optimizer", error)
            opt = torch.optim.SGD(model.parameters(), lr=0.1)
        """
    )
    program.update = """
        try:
            opt.step()
        except Exception as error:
            show("step", error)
    """


@optimizer
def lbfgs(program: Program) -> None:
    """LBFGS, which calls for loss and gradient as often as it likes."""
    search = program.pick("", ", line_search_fn='strong_wolfe'")
    program.setup.append(f"opt = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3{search})")
    program.update = """
        def closure():
            opt.zero_grad()
            again = F.mse_loss(model(x), y)
            again.backward()
            return again
        show("closure", opt.step(closure))
    """


@optimizer
def with_closure(program: Program) -> None:
    kind = program.pick("SGD", "Adam", "RMSprop")
    program.setup.append(f"opt = torch.optim.{kind}(model.parameters(), lr=0.01)")
    program.update = """
        @torch.enable_grad()
        def closure():
            opt.zero_grad(set_to_none=False)
            again = model(x).square().mean()
            again.backward()
            return again
        show("closure", opt.step(closure))
    """


@optimizer
def two(program: Program) -> None:
    """Two optimizers in turns, one of them made late."""
    program.setup.append(
        """
        first = torch.optim.SGD(model.parameters(), lr=0.05)
        second = None
        opt = first
        """
    )
    program.update = """
        opt.step()
        if second is None:
            second = torch.optim.Adam(model.parameters(), lr=1e-3)
        opt = second if opt is first else first
    """


@optimizer
def by_hand(program: Program) -> None:
    """No optimizer at all: gradient descent as a tutorial writes it."""
    program.setup.append("opt = torch.optim.SGD(model.parameters(), lr=0.1)" if program.chance(0.3) else "opt = None")
    program.clear = """
        for p in model.parameters():
            p.grad = None
    """
    program.update = program.pick(
        """
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
        """,
        """
        for p in model.parameters():
            if p.grad is not None:
                p.data.add_(p.grad, alpha=-0.1)
        """,
        """
        with torch.no_grad():
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            torch._foreach_add_([p for p in model.parameters() if p.grad is not None], grads, alpha=-0.1)
        """,
    )


@optimizer
def own(program: Program) -> None:
    """An optimizer of the user's own."""
    program.define(
        """
        class Signed(torch.optim.Optimizer):
            def __init__(self, params, lr=0.01):
                super().__init__(params, {"lr": lr})

            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            state = self.state[p]
                            state["seen"] = state.get("seen", 0) + 1
                            p.add_(p.grad.sign(), alpha=-group["lr"] / state["seen"])
        """
    )
    program.setup.append("opt = Signed(model.parameters())")


@optimizer
def muon(program: Program) -> None:
    """For matrices alone; the rest stays as it is."""
    program.setup.append(
        "opt = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2] or [nn.Parameter(torch.ones(2, 2))], lr=0.01)"
        " if hasattr(torch.optim, 'Muon') else torch.optim.SGD(model.parameters(), lr=0.1)"
    )


@optimizer
def in_hooks(program: Program) -> None:
    """A step for each parameter as soon as its gradient is there."""
    program.setup.append(
        """
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        small = {p: torch.optim.SGD([p], lr=0.01, foreach=False) for p in model.parameters()}

        def at_once(p):
            small[p].step()
            small[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(at_once)
        """
    )
    program.update = "pass"


@optimizer
def with_hooks(program: Program) -> None:
    """Hooks of the optimizer, for one or for all."""
    program.setup.append(
        program.pick(
            """
            opt = torch.optim.AdamW(model.parameters(), lr=0.01)
            opt.register_step_pre_hook(lambda o, args, kwargs: print("before step", len(args), kwargs))
            opt.register_step_post_hook(lambda o, args, kwargs: print("after step"))
            """,
            """
            opt = torch.optim.SGD(model.parameters(), lr=0.01)
            from torch.optim.optimizer import register_optimizer_step_post_hook
            handle = register_optimizer_step_post_hook(lambda o, args, kwargs: print("after any step", type(o).__name__))
            """,
            """
            opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            opt.register_state_dict_post_hook(lambda o, state: show("state", sorted(state)))
            opt.load_state_dict(opt.state_dict())
            """,
        )
    )


@scheduler
def simple(program: Program) -> None:
    text = program.pick(
        "StepLR(opt, 2, 0.5)",
        "MultiStepLR(opt, [1, 3])",
        "ExponentialLR(opt, 0.9)",
        "CosineAnnealingLR(opt, 4)",
        "LinearLR(opt, 0.1)",
        "ConstantLR(opt, 0.5, 2)",
        "LambdaLR(opt, lambda n: 1 / (n + 1))",
        "MultiplicativeLR(opt, lambda n: 0.9)",
        "PolynomialLR(opt, 4)",
        "CosineAnnealingWarmRestarts(opt, 2)",
        "OneCycleLR(opt, 0.1, total_steps=20)",
        "CyclicLR(opt, 0.01, 0.1, cycle_momentum=False)",
    )
    program.setup.append(f"schedule = torch.optim.lr_scheduler.{text} if opt is not None else None")
    program.after_update.append(
        """
        if schedule is not None:
            schedule.step()
            show("rate", schedule.get_last_lr())
        """
    )


@scheduler
def chained(program: Program) -> None:
    program.setup.append(
        """
        from torch.optim import lr_scheduler as rates
        schedule = rates.SequentialLR(opt, [rates.LinearLR(opt), rates.StepLR(opt, 1)], [2]) if opt is not None else None
        """
    )
    program.after_update.append("if schedule is not None: schedule.step()")


@scheduler
def plateau(program: Program) -> None:
    program.setup.append(
        "schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0) if opt is not None else None"
    )
    program.after_update.append("if schedule is not None: schedule.step(loss.detach())")


@scheduler
def before_step(program: Program) -> None:
    """The wrong order, of which torch warns."""
    program.setup.append("schedule = torch.optim.lr_scheduler.StepLR(opt, 1) if opt is not None else None")
    program.after_backward.append("if schedule is not None: schedule.step()")


@scheduler
def averaged(program: Program) -> None:
    """Averages of the weights instead of a schedule."""
    program.setup.append(
        program.pick(
            "average = torch.optim.swa_utils.AveragedModel(model)",
            "average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)",
        )
    )
    program.after_update.append("average.update_parameters(model)")
    program.ending.append("show('average', [p for p in average.parameters()])")
