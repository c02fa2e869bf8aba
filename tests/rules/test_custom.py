"""Custom autograd Functions: backwards that give too little, and those that are right as they are."""

from __future__ import annotations

import pytest

from tests.rules.crashes import findings, must_be
from tests.workshop import Workshop

WRONG = {
    "count": """
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, s):
                ctx.save_for_backward(x, s)
                return x * s

            @staticmethod
            def backward(ctx, g):
                x, s = ctx.saved_tensors
                return g * s  # here


        class L(nn.Module):
            def __init__(self):
                super().__init__()
                self.l = nn.Linear(3, 3)
                self.s = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return Fn.apply(self.l(x), self.s)


        net = L()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            loss = net(torch.randn(4, 3)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "shape": """
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, s):
                ctx.save_for_backward(x, s)
                return x * s

            @staticmethod
            def backward(ctx, g):
                x, s = ctx.saved_tensors
                return g * s, (g * x).sum(1)  # here


        class L(nn.Module):
            def __init__(self):
                super().__init__()
                self.l = nn.Linear(3, 3)
                self.s = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return Fn.apply(self.l(x), self.s)


        net = L()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            loss = net(torch.randn(4, 3)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "none_x": """
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, s):
                ctx.save_for_backward(x, s)
                return x * s

            @staticmethod
            def backward(ctx, g):
                x, s = ctx.saved_tensors
                return None, (g * x).sum(0)  # here


        class L(nn.Module):
            def __init__(self):
                super().__init__()
                self.l = nn.Linear(3, 3)
                self.s = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return Fn.apply(self.l(x), self.s)


        net = L()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            loss = net(torch.randn(4, 3)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "none_s": """
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, s):
                ctx.save_for_backward(x, s)
                return x * s

            @staticmethod
            def backward(ctx, g):
                x, s = ctx.saved_tensors
                if ctx.needs_input_grad[0]:
                    return g * s, None  # here
                return None, (g * x).sum(0)


        class L(nn.Module):
            def __init__(self):
                super().__init__()
                self.l = nn.Linear(3, 3)
                self.s = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return Fn.apply(self.l(x), self.s)


        net = L()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            loss = net(torch.randn(4, 3)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "float": """
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, s):
                ctx.save_for_backward(x, s)
                return x * s

            @staticmethod
            def backward(ctx, g):
                x, s = ctx.saved_tensors
                return 1.0, (g * x).sum(0)  # here


        class L(nn.Module):
            def __init__(self):
                super().__init__()
                self.l = nn.Linear(3, 3)
                self.s = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return Fn.apply(self.l(x), self.s)


        net = L()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            loss = net(torch.randn(4, 3)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "argcount": """
        class Two(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2, x * 3

            @staticmethod
            def backward(ctx, g):  # here
                return g * 2


        x = torch.ones(3, requires_grad=True)
        a, b = Two.apply(x)
        (a + b).sum().backward()
    """,
    "nobackward": """
        class Two(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):  # here
                return x * 2


        x = torch.ones(3, requires_grad=True)
        Two.apply(x).sum().backward()
    """,
    "noneone": """
        class Sq(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, g):  # here
                (x,) = ctx.saved_tensors
                gx = 2 * x * g


        net = nn.Linear(3, 3)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            l = Sq.apply(net(torch.randn(4, 3))).sum()
            opt.zero_grad()
            l.backward()
            opt.step()
    """,
}
IGNORES = {
    "ones_like": """
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, s):
                ctx.save_for_backward(x, s)
                return x * s

            @staticmethod
            def backward(ctx, g):
                x, s = ctx.saved_tensors
                out = torch.ones_like(g) * s
                return out, x.sum(0)  # here


        class L(nn.Module):
            def __init__(self):
                super().__init__()
                self.l = nn.Linear(3, 3)
                self.s = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return Fn.apply(self.l(x), self.s)


        net = L()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            loss = net(torch.randn(4, 3)).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "setup_context": """
        class Sq(torch.autograd.Function):
            @staticmethod
            def forward(x, p):
                return x**p

            @staticmethod
            def setup_context(ctx, inputs, output):
                x, p = inputs
                ctx.save_for_backward(x)
                ctx.p = p

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                return ctx.p * x, None  # here


        net = nn.Linear(3, 3)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            l = Sq.apply(net(torch.randn(4, 3)), 2).mean()
            opt.zero_grad()
            l.backward()
            opt.step()
    """,
}
RIGHT = {
    "ste": """
        class STE(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, k):
                return torch.round(x * k) / k

            @staticmethod
            def backward(ctx, g):
                return g, None


        class Rev(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, l):
                ctx.l = l
                return x.view_as(x)

            @staticmethod
            def backward(ctx, g):
                return -ctx.l * g, None


        class Stop(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.view_as(x)

            @staticmethod
            def backward(ctx, g):
                return None


        class ZeroG(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.view_as(x)

            @staticmethod
            def backward(ctx, g):
                return torch.zeros_like(g)


        class LossF(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, y):
                ctx.save_for_backward((x - y) * 2 / x.numel())
                return (x - y).square().mean()

            @staticmethod
            def backward(ctx, g):
                return ctx.saved_tensors[0], None


        net = nn.Linear(3, 3)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        emb = nn.Embedding(5, 3)
        for i in range(5):
            h = STE.apply(net(torch.randn(4, 3)), 8)
            h = Rev.apply(h, 0.5)
            loss = LossF.apply(h + 0 * Stop.apply(h) + ZeroG.apply(h), torch.ones(4, 3))
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "vq": """
        class Q(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, cb):
                i = torch.cdist(x, cb).argmin(1)
                ctx.mark_non_differentiable(i)
                ctx.save_for_backward(i, cb)
                return cb[i], i

            @staticmethod
            def backward(ctx, g, gi):
                i, cb = ctx.saved_tensors
                return g, None


        net = nn.Linear(3, 3)
        cb = nn.Parameter(torch.randn(5, 3))
        opt = torch.optim.SGD([*net.parameters(), cb], lr=0.1)
        for _ in range(4):
            z = net(torch.randn(8, 3))
            q, i = Q.apply(z, cb)
            loss = q.square().mean() + (cb[i] - z.detach()).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_gradients(case: str, workshop: Workshop) -> None:
    """A missing, a wrong or no gradient at all is told at the backward that gives it, whether torch raises or not."""
    must_be(workshop, "custom-function", WRONG[case])


@pytest.mark.parametrize("case", IGNORES)
def test_upstream_gradient_is_ignored(case: str, workshop: Workshop) -> None:
    """A derivative that is returned without the upstream gradient is a warning."""
    must_be(workshop, "custom-function", IGNORES[case], "warning")


@pytest.mark.parametrize("case", RIGHT)
def test_functions_that_are_right(case: str, workshop: Workshop) -> None:
    """Straight-through, reversed, stopped and precomputed gradients are meant as they are."""
    assert findings(workshop, RIGHT[case]) == ()


@pytest.mark.parametrize(("gradient", "help_"), [("x.t() @ g", "transpose"), ("x.repeat(2, 1)", "sum")])
def test_help_for_a_gradient_of_another_shape(gradient: str, help_: str, workshop: Workshop) -> None:
    """A gradient that is turned round is to be transposed: reshaped, it would be silently wrong."""
    (finding,) = findings(
        workshop,
        f"""
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):
                ctx.save_for_backward(x, w)
                return x @ w.t()

            @staticmethod
            def backward(ctx, g):
                x, w = ctx.saved_tensors
                return g @ w, {gradient}


        w = nn.Parameter(torch.randn(2, 3))
        Fn.apply(torch.randn(4, 3), w).sum().backward()
        """,
    )
    assert finding.rule == "custom-function"
    assert finding.help[0].message.startswith(help_)


def test_a_gradient_of_another_shape_is_of_one_argument(workshop: Workshop) -> None:
    """Torch counts the tensors among the arguments; those whose gradients it takes are not told of."""
    (finding,) = findings(
        workshop,
        """
        class Fn(torch.autograd.Function):
            @staticmethod
            def forward(ctx, power, x, w, b):
                ctx.save_for_backward(x, w)
                return x @ w.t() + b

            @staticmethod
            def backward(ctx, g):
                x, w = ctx.saved_tensors
                return None, g @ w, x.t() @ g, g.sum(0)


        w, b = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.zeros(2))
        Fn.apply(2, torch.randn(4, 3, requires_grad=True), w, b).sum().backward()
        """,
    )
    assert finding.tensors == ("w",)
    assert "no gradient of argument 3" in finding.message
    assert finding.allowed_at is None


RAISING = {
    "by autocast": """
        class Project(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, weight):
                ctx.save_for_backward(x, weight)
                return x @ weight

            @staticmethod
            def backward(ctx, grad):
                x, weight = ctx.saved_tensors
                return grad @ weight.t(), x.t() @ grad.float()  # here

        first, weight = nn.Linear(3, 4), nn.Parameter(torch.rand(4, 2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = Project.apply(first(torch.rand(5, 3)), weight).float().sum()
        loss.backward()
    """,
    "by its own code": """
        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, factor):
                ctx.factor = factor
                return x * factor

            @staticmethod
            def backward(ctx, grad):
                return grad * ctx.scale, None  # here

        weight = nn.Parameter(torch.rand(4, 2))
        Scale.apply(weight, 2.0).sum().backward()
    """,
}


@pytest.mark.parametrize("case", RAISING)
def test_backward_that_raises(workshop: Workshop, case: str) -> None:
    """The line of the backward that raised, and who waits for a gradient through it."""
    found = must_be(workshop, "custom-function", RAISING[case])
    assert "weight" in found.tensors
    assert ("custom_fwd" in found.help[0].message) == (case == "by autocast")


def test_backward_that_raised_and_was_left_alone(workshop: Workshop) -> None:
    """A program that catches it, and ends with another exception, is told nothing of it."""
    body = RAISING["by its own code"].replace("Scale.apply(weight, 2.0).sum().backward()", "pass").rstrip()
    body += """
        try:
            Scale.apply(weight, 2.0).sum().backward()
        except AttributeError:
            pass
        raise ValueError("enough")
    """
    assert findings(workshop, body) == ()
