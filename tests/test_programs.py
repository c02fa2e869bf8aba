"""Whole programs of many kinds: each runs as by bare Python, and its tensors are judged truly.

Each is correct: it draws no finding, and its table counts what torch itself has put into `.grad`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from gradscope.graph.storage import load
from tests.workshop import Workshop


class Row(NamedTuple):
    """What the report says of a tensor."""

    steps: int
    of: int
    zero: int
    moved: bool


def judged(workshop: Workshop, source: str) -> dict[str, Row]:
    """Run a correct program bare and observed, see that both went the same way, and give its counted tensors."""
    workshop.write(source)
    bare, seen = workshop.pair("script.py", options=["-o", "report.json", "--save", "run.json"])
    assert bare.status == 0, bare.err
    assert bare.out
    assert seen == bare
    report: dict[str, Any] = json.loads((workshop.folder / "report.json").read_text(encoding="utf-8"))
    assert report["findings"] == []
    run = load(workshop.folder / "run.json")
    assert list(run.failures) == []
    changes = {tensor.name: tensor.change for tensor in run.tensors}
    return {
        row["name"]: Row(
            row["received"]["steps"], row["received"]["of"], row["received"]["zero"], bool(changes[row["name"]])
        )
        for row in report["tensors"]
        if row["received"] is not None
    }


def learns(steps: int) -> Row:
    """The row of a tensor that gets a gradient in each of so many steps, and moves."""
    return Row(steps, steps, 0, True)


def test_parametrizations(workshop: Workshop) -> None:
    """The tensors behind a parametrized weight are those that learn, under torch's names."""
    rows = judged(
        workshop,
        """
        import torch
        from torch import nn
        from torch.nn.utils import parametrizations, parametrize

        class Symmetric(nn.Module):
            def forward(self, x):
                return x.triu() + x.triu(1).mT

        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.gain = nn.Parameter(torch.ones(1))

            def forward(self, x):
                return x * self.gain

        torch.manual_seed(0)
        net = nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 6)),
            nn.Tanh(),
            parametrizations.spectral_norm(nn.Linear(6, 6)),
            parametrizations.orthogonal(nn.Linear(6, 6)),
            nn.Linear(6, 6),
            nn.Linear(6, 1),
        )
        parametrize.register_parametrization(net[4], "weight", Symmetric())
        parametrize.register_parametrization(net[4], "weight", Scaled())
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for step in range(4):
            with parametrize.cached():
                loss = net(torch.randn(8, 4)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(loss.item())
        parametrize.remove_parametrizations(net[4], "weight")
        print(net.state_dict())
        """,
    )
    assert rows == dict.fromkeys(
        (
            "net.0.bias",
            "net.0.parametrizations.weight.original0",
            "net.0.parametrizations.weight.original1",
            "net.2.bias",
            "net.2.parametrizations.weight.original",
            "net.3.bias",
            "net.3.parametrizations.weight.original",
            "net.4.bias",
            "net.4.parametrizations.weight.original",
            "net.4.parametrizations.weight.1.gain",
            "net.5.weight",
            "net.5.bias",
        ),
        learns(4),
    )


def test_complex_parameters(workshop: Workshop) -> None:
    """Complex parameters get complex gradients."""
    rows = judged(
        workshop,
        """
        import torch
        from torch import nn

        class Filter(nn.Module):
            def __init__(self):
                super().__init__()
                self.response = nn.Parameter(torch.randn(9, dtype=torch.cfloat))
                self.mix = nn.Linear(9, 9, dtype=torch.cfloat)

            def forward(self, x):
                spectrum = self.mix(torch.fft.rfft(x) * self.response)
                return torch.fft.irfft(spectrum, n=16), spectrum.abs(), torch.view_as_real(spectrum)

        torch.manual_seed(0)
        net = Filter()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for step in range(3):
            signal, size, pairs = net(torch.randn(5, 16))
            loss = signal.square().mean() + size.mean() + pairs[..., 1].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(loss.item(), net.response.grad.norm().item())
        print(net.state_dict())
        """,
    )
    assert rows == dict.fromkeys(("net.response", "mix.weight", "mix.bias"), learns(3))


def test_autocast_with_a_scaler(workshop: Workshop) -> None:
    """Autocast on the CPU, with a scaler that scales and one that is off."""
    rows = judged(
        workshop,
        """
        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for dtype, scaler in (
            (torch.bfloat16, torch.amp.GradScaler("cpu", enabled=False)),
            (torch.float16, torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=2)),
        ):
            for step in range(4):
                x = torch.randn(8, 4)
                with torch.autocast("cpu", dtype=dtype):
                    out = net(x)
                    loss = nn.functional.mse_loss(out.float(), x.sum(1, keepdim=True))
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                print(loss.item(), norm.item(), scaler.get_scale(), out.dtype)
        print(net.state_dict())
        """,
    )
    # The scaler skips two of the eight steps.
    assert rows == dict.fromkeys(
        [f"net.{place}.{kind}" for place in (0, 1, 3) for kind in ("weight", "bias")], learns(6)
    )


def test_sparse_gradients(workshop: Workshop) -> None:
    """Gradients of embeddings may be sparse; each optimizer counts its own tensors."""
    rows = judged(
        workshop,
        """
        import torch
        from torch import nn

        torch.manual_seed(0)
        words = nn.Embedding(50, 4, sparse=True, padding_idx=0)
        bags = nn.EmbeddingBag(50, 4, sparse=True, mode="sum")
        head = nn.Linear(8, 1)
        sparse = torch.optim.SparseAdam([*words.parameters(), *bags.parameters()], lr=0.1)
        dense = torch.optim.Adam(head.parameters(), lr=0.1)
        for step in range(4):
            tokens = torch.randint(0, 50, (3, 5))
            loss = head(torch.cat([words(tokens).mean(1), bags(tokens)], 1)).square().mean()
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            print(loss.item(), words.weight.grad.layout, words.weight.grad._nnz(), words.weight.grad.is_coalesced())
            sparse.step()
            dense.step()
        print(words.weight.sum().item(), bags.weight.sum().item(), head.weight)
        """,
    )
    assert rows == dict.fromkeys(("words.weight", "bags.weight", "head.weight", "head.bias"), learns(4))


def test_gradient_penalty(workshop: Workshop) -> None:
    """A critic whose penalty is differentiated twice, with `grad` and with `backward` that create graphs."""
    rows = judged(
        workshop,
        """
        import warnings
        import torch
        from torch import nn

        warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
        for step in range(4):
            real, fake = torch.randn(8, 4), torch.randn(8, 4) + 1
            mixed = torch.lerp(real, fake, torch.rand(8, 1)).requires_grad_()
            slope, = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
            loss = critic(fake).mean() - critic(real).mean() + 10 * (slope.norm(2, dim=1) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(loss.item())

        w = torch.tensor([1.0, 2.0], requires_grad=True)
        (w ** 3).sum().backward(create_graph=True)
        first = w.grad
        w.grad = None
        (first ** 2).sum().backward()
        print(first, w.grad, critic.state_dict())
        """,
    )
    assert rows["critic.0.weight"] == rows["critic.2.weight"] == rows["critic.0.bias"] == learns(4)
    assert rows["critic.2.bias"].steps == 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_load_data(method: str, workshop: Workshop) -> None:
    """Workers of a DataLoader compute with torch in their own processes, however these begin."""
    rows = judged(
        workshop,
        f"""
        import torch
        from torch import nn
        from torch.utils.data import DataLoader, Dataset

        class Noise(Dataset):
            def __len__(self):
                return 12

            def __getitem__(self, index):
                x = torch.full((4,), float(index)) + torch.rand(4)
                slope = torch.func.grad(lambda v: v.square().sum())(x)
                w = x.clone().requires_grad_()
                w.sin().sum().backward()
                return torch.cat([slope, w.grad])

        if __name__ == "__main__":
            torch.manual_seed(0)
            net = nn.Linear(8, 1)
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
            data = DataLoader(Noise(), batch_size=4, shuffle=True, num_workers=2, multiprocessing_context="{method}")
            for batch in data:
                loss = net(batch).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                print(loss.item())
        """,
    )
    assert rows == dict.fromkeys(("net.weight", "net.bias"), learns(3))


def test_models_in_threads(workshop: Workshop) -> None:
    """Several models train at once, each in a thread of its own."""
    rows = judged(
        workshop,
        """
        import threading
        import torch
        from torch import nn

        losses, models = {}, [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(3)]

        def train(number, net):
            numbers = torch.Generator().manual_seed(number)
            for p in net.parameters():
                nn.init.uniform_(p, -0.5, 0.5, generator=numbers)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            losses[number] = []
            for step in range(20):
                loss = net(torch.rand(8, 4, generator=numbers)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[number].append(loss.item())

        threads = [threading.Thread(target=train, args=pair) for pair in enumerate(models)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(sorted(losses.items()), [net.state_dict() for net in models])
        """,
    )
    assert len(rows) == 12
    assert all(row.zero == 0 and row.moved for row in rows.values())
    assert all(row.steps == row.of == 20 for row in rows.values()), rows


def test_two_players(workshop: Workshop) -> None:
    """A generator and a critic by turns: detached samples and frozen critics are meant."""
    rows = judged(
        workshop,
        """
        import torch
        from torch import nn

        torch.manual_seed(0)
        maker = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        judge = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
        for_maker = torch.optim.Adam(maker.parameters(), lr=1e-3)
        for_judge = torch.optim.Adam(judge.parameters(), lr=1e-3)
        score = nn.BCEWithLogitsLoss()
        for step in range(4):
            real, noise = torch.randn(8, 2) + 3, torch.randn(8, 2)
            for_judge.zero_grad()
            loss = score(judge(real), torch.ones(8, 1)) + score(judge(maker(noise).detach()), torch.zeros(8, 1))
            loss.backward()
            for_judge.step()
            judge.requires_grad_(False)
            for_maker.zero_grad()
            fooled = score(judge(maker(noise)), torch.ones(8, 1))
            fooled.backward()
            for_maker.step()
            judge.requires_grad_(True)
            print(loss.item(), fooled.item())
        print(maker.state_dict(), judge.state_dict())
        """,
    )
    names = [f"{net}.{part}" for net in ("maker", "judge") for part in ("0.weight", "0.bias", "2.weight", "2.bias")]
    assert rows == dict.fromkeys(names, learns(4))


def test_teacher_and_student(workshop: Workshop) -> None:
    """A teacher that follows its student by a moving average, and one that is frozen."""
    rows = judged(
        workshop,
        """
        import copy
        import torch
        from torch import nn

        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        expert = nn.Linear(4, 3).eval()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for step in range(4):
            x = torch.randn(8, 4)
            with torch.no_grad():
                wisdom = expert(x).softmax(1)
            loss = nn.functional.kl_div(student(x).log_softmax(1), wisdom, reduction="batchmean")
            loss = loss + nn.functional.mse_loss(student(x), teacher(x + 0.1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters()):
                    slow.lerp_(fast, 0.1)
            print(loss.item())
        print(teacher.state_dict(), student.state_dict())
        """,
    )
    assert {name: row for name, row in rows.items() if name.startswith("student.")} == dict.fromkeys(
        [f"student.{place}.{kind}" for place in (0, 1, 3) for kind in ("weight", "bias")],
        learns(4),
    )
    assert not any(row.steps for name, row in rows.items() if not name.startswith("student."))


def test_functional_transforms(workshop: Workshop) -> None:
    """Gradients of `torch.func`: one a sample by vmap, of parameters that `functional_call` is given, and Hessians."""
    rows = judged(
        workshop,
        """
        import torch
        from torch import nn
        from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, stack_module_state, vmap

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        params = {name: p.detach().clone() for name, p in net.named_parameters()}

        def loss_of(params, x, y):
            return (functional_call(net, params, (x,)) - y).square().mean()

        for step in range(3):
            x, y = torch.randn(8, 4), torch.randn(8, 1)
            grads, loss = grad_and_value(loss_of)(params, x, y)
            each = vmap(grad(loss_of), in_dims=(None, 0, 0))(params, x, y)
            params = {name: p - 0.1 * grads[name] for name, p in params.items()}
            print(loss.item(), {name: g.shape for name, g in each.items()})

        several = [nn.Linear(4, 2) for _ in range(3)]
        stacked, buffers = stack_module_state(several)
        out = vmap(lambda p, b, x: functional_call(several[0], (p, b), (x,)), in_dims=(0, 0, None))(
            stacked, buffers, torch.randn(5, 4)
        )
        print(out.sum().item(), hessian(lambda v: (v ** 3).sum())(torch.ones(2)), jacrev(torch.sin)(torch.ones(2)))

        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(3):
            x, y = torch.randn(8, 4), torch.randn(8, 1)
            loss = vmap(loss_of, in_dims=(None, 0, 0))(dict(net.named_parameters()), x, y).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(loss.item())
        print(net.state_dict(), params)
        """,
    )
    learned = {name: row for name, row in rows.items() if row.steps}
    assert learned == dict.fromkeys(("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"), learns(3))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints(reentrant: bool, workshop: Workshop) -> None:
    """What is computed again in backward counts once, and random numbers are those of the bare run."""
    rows = judged(
        workshop,
        f"""
        import torch
        from torch import nn
        from torch.utils.checkpoint import checkpoint, checkpoint_sequential

        torch.manual_seed(0)
        first = nn.Linear(4, 8)
        middle = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, 8), nn.Tanh())
        last = nn.Linear(8, 1)
        optimizer = torch.optim.Adam([*first.parameters(), *middle.parameters(), *last.parameters()], lr=0.01)
        for step in range(4):
            h = first(torch.randn(8, 4))
            h = checkpoint(middle, h, use_reentrant={reentrant})
            h = checkpoint_sequential(middle, 2, h, use_reentrant={reentrant})
            loss = checkpoint(lambda h: last(h).square().mean(), h, use_reentrant={reentrant})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(loss.item())
        print(first.state_dict(), middle.state_dict(), last.state_dict())
        """,
    )
    parts = ("first", "middle.0", "middle.3", "last")
    assert rows == {f"{part}.{kind}": learns(4) for part in parts for kind in ("weight", "bias")}


def test_custom_functions(workshop: Workshop) -> None:
    """Functions of the program's own: old and new style, once differentiable, inside vmap, and with a straight path."""
    rows = judged(
        workshop,
        """
        import torch
        from torch import nn
        from torch.autograd import Function
        from torch.autograd.function import once_differentiable

        class Exp(Function):
            @staticmethod
            def forward(ctx, x, scale):
                ctx.scale = scale
                y = (x * scale).exp()
                ctx.save_for_backward(y)
                return y

            @staticmethod
            def backward(ctx, grad):
                y, = ctx.saved_tensors
                return grad * y * ctx.scale, None

        class Cube(Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(x):
                return x ** 3, x.sign()

            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(*inputs)
                ctx.mark_non_differentiable(output[1])
                ctx.set_materialize_grads(False)

            @staticmethod
            def backward(ctx, grad, _):
                x, = ctx.saved_tensors
                return None if grad is None else 3 * x ** 2 * grad

        class Round(Function):
            @staticmethod
            def forward(ctx, x):
                return x.round()

            @staticmethod
            @once_differentiable
            def backward(ctx, grad):
                return grad

        class Halve_(Function):
            @staticmethod
            def forward(ctx, x):
                ctx.mark_dirty(x)
                return x.mul_(0.5)

            @staticmethod
            def backward(ctx, grad):
                return 0.5 * grad

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        for step in range(4):
            h = Halve_.apply(Exp.apply(torch.tanh(net[0](torch.randn(8, 4))), 0.5).clone())
            cubed, sign = Cube.apply(Round.apply(4 * h) / 4)
            loss = net[1](cubed * sign).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(loss.item())
        print(torch.func.vmap(torch.func.grad(lambda v: Cube.apply(v)[0]))(torch.arange(3.0)), net.state_dict())
        """,
    )
    assert rows == dict.fromkeys([f"net.{place}.{kind}" for place in (0, 1) for kind in ("weight", "bias")], learns(4))


VALUELESS = {
    "meta": "torch.set_default_device('meta')",
    "fake": "__import__('torch._subclasses.fake_tensor')._subclasses.fake_tensor.FakeTensorMode().__enter__()",
}


@pytest.mark.parametrize("kind", VALUELESS)
def test_tensors_without_values(kind: str, workshop: Workshop) -> None:
    """Meta and fake tensors have gradients without numbers: they are counted, and nothing is measured."""
    rows = judged(
        workshop,
        f"""
        import torch
        from torch import nn

        {VALUELESS[kind]}
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(3):
            loss = net(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(type(loss).__name__, loss.shape)
        """,
    )
    assert rows == dict.fromkeys(
        ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"), Row(3, 3, 0, moved=False)
    )
