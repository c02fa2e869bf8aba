"""Calls that torch refuses, and exceptions that only sound like it."""

from __future__ import annotations

import pytest

from tests.rules.crashes import findings, must_be
from tests.workshop import Workshop

REFUSED = {
    "leaf-inplace index": """
        w = torch.zeros(3, 3, requires_grad=True)
        w[0, 0] = 1  # here
        (w * 2).sum().backward()
    """,
    "leaf-inplace iadd_param": """
        class N(nn.Module):
            def __init__(s):
                super().__init__()
                s.w = nn.Parameter(torch.ones(3))

            def forward(s, x):
                s.w *= 0.9  # here
                return (x * s.w).sum()


        n = N()
        opt = torch.optim.SGD(n.parameters(), lr=0.1)
        for _ in range(3):
            l = n(torch.randn(3))
            l.backward()
            opt.step()
    """,
    "leaf-inplace fill": """
        lin = nn.Linear(3, 3)
        lin.weight.view(-1).fill_(0.1)  # here
        lin(torch.ones(1, 3)).sum().backward()
    """,
    "leaf-inplace fgsm": """
        net = nn.Linear(3, 2)
        x = torch.randn(4, 3, requires_grad=True)
        for _ in range(3):
            loss = net(x).sum()
            loss.backward()
            x += 0.1 * x.grad.sign()  # here
            x.grad.zero_()
    """,
    "leaf-inplace relu": """
        x = torch.randn(4, 3, requires_grad=True)
        y = F.relu(x, inplace=True)  # here
        y.sum().backward()
    """,
    "leaf-inplace out": """
        x = torch.randn(3, requires_grad=True)
        torch.mul(x.detach(), 2, out=x)  # here
        x.sum().backward()
    """,
    "non-scalar-backward none": """
        net = nn.Linear(3, 2)
        opt = torch.optim.Adam(net.parameters())
        crit = nn.CrossEntropyLoss(reduction="none")
        for _ in range(3):
            loss = crit(net(torch.randn(4, 3)), torch.randint(0, 2, (4,)))
            loss.backward()  # here
            opt.step()
    """,
    "non-scalar-backward out": """
        net = nn.Linear(3, 2)
        y = net(torch.randn(4, 3))
        torch.autograd.backward(y)  # here
    """,
    "non-scalar-backward grad": """
        x = torch.randn(4, requires_grad=True)
        y = x**2
        (g,) = torch.autograd.grad(y, x)  # here
    """,
    "non-scalar-backward sumdim": """
        net = nn.Linear(3, 2)
        opt = torch.optim.Adam(net.parameters())
        for _ in range(3):
            loss = (net(torch.randn(4, 3)) - 1).square().sum(dim=1)
            opt.zero_grad()
            loss.backward()  # here
            opt.step()
    """,
    "non-scalar-backward ones": """
        y = nn.Linear(3, 2)(torch.randn(4, 3))
        y.backward(torch.ones(4))  # here
    """,
    "inference-tensor param": """
        with torch.inference_mode():  # here
            net = nn.Linear(3, 3)
        loss = net(torch.randn(2, 3)).sum()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for p in net.parameters():
            p.requires_grad_(True)
        loss.backward()
    """,
    "inference-tensor reqgrad": """
        with torch.inference_mode():  # here
            noise = torch.randn(3)
        noise.requires_grad_()
        (noise * 2).sum().backward()
    """,
    "inference-tensor class": """
        class Teacher(nn.Module):
            def __init__(s):
                super().__init__()
                s.l = nn.Linear(3, 3)

            @torch.inference_mode()  # here
            def forward(s, x):
                return s.l(x)


        t = Teacher()
        st = nn.Linear(3, 3)
        opt = torch.optim.SGD(st.parameters(), lr=0.1)
        for _ in range(2):
            x = torch.randn(4, 3)
            l = (st(x) * t(x)).mean()
            opt.zero_grad()
            l.backward()
            opt.step()
    """,
    "inference-tensor dataset": """
        @torch.inference_mode()  # here
        def make():
            fs = []
            for _ in range(3):
                fs.append(torch.randn(4, 3).tanh())
            return fs


        head = nn.Linear(3, 1)
        opt = torch.optim.SGD(head.parameters(), lr=0.1)
        for f in make():
            l = head(f.view(2, 2, 3)).mean()
            opt.zero_grad()
            l.backward()
            opt.step()
    """,
    "inference-tensor inplace": """
        with torch.inference_mode():  # here
            state = torch.zeros(3)
        net = nn.Linear(3, 3)
        state.add_(net(torch.ones(3)))
    """,
    "inference-tensor ctxvar": """
        net = nn.Linear(3, 3)
        head = nn.Linear(3, 1)
        opt = torch.optim.SGD(head.parameters(), lr=0.1)


        def feats(x, train=False):
            ctx = torch.inference_mode() if not train else torch.enable_grad()
            with ctx:  # here
                return net(x)


        for _ in range(30):
            l = head(feats(torch.randn(2, 3))).sum()
            opt.zero_grad()
            l.backward()
            opt.step()
    """,
    "integer-requires-grad tensor": """
        w = torch.tensor([1, 2, 3], requires_grad=True)  # here
        (w * 2).sum().backward()
    """,
    "integer-requires-grad reqgrad": """
        x = torch.randint(0, 255, (3, 4))
        x.requires_grad_()  # here
        (x * 2.0).sum().backward()
    """,
    "integer-requires-grad set": """
        x = torch.arange(3)
        y = x * 2
        y.requires_grad = True  # here
    """,
    "integer-requires-grad linear": """
        class Q(nn.Module):
            def __init__(s):
                super().__init__()
                s.mask = nn.Parameter(torch.ones(3, dtype=torch.bool))  # here


        Q()
    """,
}
INNOCENT = {
    "recover": """
        x = torch.ones(3, requires_grad=True)
        try:
            x.add_(1)
        except RuntimeError as e:
            print("x")
        y = torch.tanh(x)
        try:
            z = y + 0
            y.mul_(2)
            y.sum().backward()
        except RuntimeError as e:
            print("y")
        l = (x * 2).square().sum()
        l.backward()
        try:
            l.backward()
        except RuntimeError:
            print("again")
        try:
            (x * 2).backward()
        except RuntimeError:
            print("again")
        try:
            torch.arange(3).requires_grad_()
        except RuntimeError:
            print("i")
    """,
    "userraise": """
        x = torch.ones(3, requires_grad=True)
        (x * 2).sum().backward()
        raise RuntimeError(
            "a leaf Variable that requires grad"
        )
    """,
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_call(case: str, workshop: Workshop) -> None:
    """The finding is at the cause, under the rule of the refusal."""
    must_be(workshop, case.split()[0], REFUSED[case])


def test_leaf_that_is_filled_before_its_model_is_known(workshop: Workshop) -> None:
    """A weight that is written to while its module is made has the name that the writing line gives it."""
    found = must_be(
        workshop,
        "leaf-inplace",
        """
        def fill(weight):
            weight[:, 0] = torch.ones(4)  # here

        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(4, 2)
                fill(self.table.weight)

        Positions()
        """,
    )
    assert found.tensors == ("weight",)


def test_name_of_what_a_layer_refuses(workshop: Workshop) -> None:
    """A tensor that has no name is called as the line calls it that gives it to a layer."""
    body = """
        from types import SimpleNamespace

        def extract(x):
            with torch.inference_mode():  # here
                return SimpleNamespace(tokens=x * 2)

        class Head(nn.Module):
            def __init__(self):
                super().__init__()
                self.local = nn.Linear(4, 1)

            def forward(self, features):
                return self.local(features.tokens)

        Head()(extract(torch.rand(2, 4))).sum().backward()
        """
    found = must_be(workshop, "inference-tensor", body)
    assert found.tensors == ("features.tokens",)


def test_parameter_that_was_never_made(workshop: Workshop) -> None:
    """A tensor that torch refuses as a parameter is called as the parameter was to be called."""
    body = """
        class Basis(nn.Module):
            def __init__(self):
                super().__init__()
                self.centres = nn.Parameter(torch.arange(4))  # here

        Basis()
        """
    found = must_be(workshop, "integer-requires-grad", body)
    assert found.tensors == ("centres", "self.centres")
    assert found.message.startswith("`centres`, of int64, cannot require grad")


@pytest.mark.parametrize("case", INNOCENT)
def test_exceptions_that_are_no_news(case: str, workshop: Workshop) -> None:
    """What the program catches, or raises in words of its own, draws nothing."""
    assert findings(workshop, INNOCENT[case]) == ()


VIEWS = {
    "row of an input": (
        "w = torch.rand(3, 4, requires_grad=True)\nfor row in w:\n    row.mul_(2.0)  # here",
        ("w", "row"),
        2,
    ),
    "row of a result": (
        "w = torch.rand(3, 4, requires_grad=True)\nh = w * 2\nfor row in h:\n    row.sub_(row.mean())  # here",
        ("h", "row"),
        1,
    ),
    "chunk of a result": (
        "w = torch.rand(4, 4, requires_grad=True)\na, b = (torch.tanh(w) * 3).chunk(2)\na.add_(1)  # here",
        ("a",),
        1,
    ),
}


@pytest.mark.parametrize("case", VIEWS)
def test_one_of_several_views(case: str, workshop: Workshop) -> None:
    """A change of one view among several is no change of a leaf: new tensors are joined instead."""
    body, tensors, helps = VIEWS[case]
    found = must_be(workshop, "leaf-inplace", body)
    assert found.tensors == tensors
    assert "writes into one of several views" in found.message
    assert found.help[0].message.startswith("make new tensors in place of the views")
    assert len(found.help) == helps


def test_update_by_hand_of_parameters(workshop: Workshop) -> None:
    """An update from a gradient belongs into `no_grad`; nothing else is proposed."""
    body = """
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        net(torch.rand(2, 3)).sum().backward()
        for p in net.parameters():
            p.add_(p.grad, alpha=-0.1)  # here
        """
    found = must_be(workshop, "leaf-inplace", body)
    assert found.tensors == ("net.0.weight", "p")
    assert [help_.message for help_ in found.help] == [
        "to update its values, write this line inside `with torch.no_grad():`"
    ]
