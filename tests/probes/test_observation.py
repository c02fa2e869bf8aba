"""Observed programs run as they would without us, and nothing of ours stays behind."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.probes.program import stacks
from tests.workshop import operations

Tensors = list[torch.Tensor]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor]) -> Tensors:
    """Three steps; gives the losses, the gradients of each step, and what the model holds in the end."""
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        seen += [loss.detach().clone(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
        optimizer.step()
    return seen + [value.clone() for value in net.state_dict().values()]


def mlp() -> Tensors:
    """A perceptron with SGD and momentum."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return train(net, optimizer, lambda: F.mse_loss(net(torch.rand(6, 4)), torch.rand(6, 1)))


def convolution() -> Tensors:
    """Convolution, batch norm and dropout with Adam."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 3))
    optimizer = torch.optim.Adam(net.parameters())
    return train(net, optimizer, lambda: F.cross_entropy(net(torch.rand(5, 1, 8, 8)), torch.randint(3, (5,))))


def recurrent() -> Tensors:
    """A GRU over packed sequences, with clipped gradients."""
    net = nn.GRU(3, 5, batch_first=True)
    optimizer = torch.optim.RMSprop(net.parameters())

    def loss() -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(torch.rand(4, 6, 3), torch.tensor([6, 5, 3, 1]), batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(net(packed)[0], batch_first=True)
        return out.pow(2).mean()

    seen = train(net, optimizer, loss)
    return [*seen, nn.utils.clip_grad_norm_(net.parameters(), 0.1)]


def evaluation() -> Tensors:
    """Training with evaluation under `no_grad` and `inference_mode` between."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scores = []

    def loss() -> torch.Tensor:
        net.eval()
        with torch.no_grad():
            scores.append(net(torch.rand(3, 4)))
        with torch.inference_mode():
            scores.append(net(torch.rand(3, 4)) + 1)
        net.train()
        return net(torch.rand(3, 4)).mean()

    return [*train(net, optimizer, loss), *(score.clone() for score in scores)]


def in_place() -> Tensors:
    """Writes in place: to slices, through views, with masks, and to parameters under `no_grad`."""
    w = torch.rand(4, requires_grad=True)
    seen = []
    for _ in range(3):
        x = torch.zeros(3, 4)
        x[1] = w
        x[:, 2].mul_(3).add_(w.sum())
        x.masked_fill_(x < 0.1, 0.5)
        x.t_().clamp_(max=2)
        x.sum().backward()
        assert w.grad is not None
        with torch.no_grad():
            w -= 0.1 * w.grad
            w.data.mul_(0.9)
        seen += [w.grad.clone(), w.detach().clone(), x.detach()]
        w.grad.zero_()
    return seen


class Cube(torch.autograd.Function):
    """x ** 3 with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """The cube."""
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x**3 * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Its gradient."""
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradients[0] * ctx.scale, None


def custom_function() -> Tensors:
    """A custom Function, also where nothing requires grad."""
    w = torch.rand(4, requires_grad=True)
    y = Cube.apply(w, 2.0)
    y.sum().backward()
    assert w.grad is not None
    return [w.grad, y.detach(), Cube.apply(torch.rand(3), 1.0)]


def checkpointed(reentrant: bool) -> Tensors:
    """Checkpointing of a block with dropout."""
    block = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh())
    head = nn.Linear(4, 1)
    net = nn.Sequential(block, head)

    def loss() -> torch.Tensor:
        x = torch.rand(3, 4, requires_grad=True)
        hidden: torch.Tensor = checkpoint(block, x, use_reentrant=reentrant)
        return head(hidden).mean()  # type: ignore[no-any-return]

    return train(net, torch.optim.SGD(net.parameters(), lr=0.1), loss)


def sparse() -> Tensors:
    """A sparse embedding with SparseAdam."""
    net = nn.Embedding(10, 3, sparse=True)
    seen = train(net, torch.optim.SparseAdam(net.parameters()), lambda: net(torch.randint(10, (4,))).pow(2).sum())
    return [tensor.to_dense() for tensor in seen]


def double_backward() -> Tensors:
    """A gradient penalty through `create_graph`, and a Hessian-vector product."""
    w = torch.rand(4, requires_grad=True)
    x = torch.rand(4, requires_grad=True)
    (gradient,) = torch.autograd.grad((w * x).sin().sum(), x, create_graph=True)
    gradient.pow(2).sum().backward()
    assert w.grad is not None
    product = torch.autograd.functional.hvp(lambda v: (v**3).sum(), torch.rand(3), torch.rand(3))
    return [w.grad, gradient.detach(), *product]


def transforms() -> Tensors:
    """`torch.func`: grad, vmap, jacrev, functional_call."""
    net = nn.Linear(3, 1)
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, parameters, (x,)).pow(2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, torch.rand(5, 3))
    jacobian = torch.func.jacrev(torch.sin)(torch.rand(3))
    return [*per_sample.values(), jacobian]


def attention() -> Tensors:
    """A transformer encoder with padded sequences: in evaluation torch takes its fused kernels and nested tensors."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    single = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    padding = torch.arange(9).expand(4, 9) >= torch.tensor([[9], [7], [4], [6]])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scores = []

    def loss() -> torch.Tensor:
        x = torch.rand(4, 9, 16)
        net.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            scores.extend([net(x, src_key_padding_mask=padding), net(x), single(x, x, x)[0]])
        net.train()
        return net(x, src_key_padding_mask=padding)[~padding].pow(2).mean()  # type: ignore[no-any-return]

    return [*train(net, optimizer, loss), *scores]


PROGRAMS: dict[str, Callable[[], Tensors]] = {
    "mlp": mlp,
    "convolution": convolution,
    "recurrent": recurrent,
    "evaluation": evaluation,
    "in place": in_place,
    "custom function": custom_function,
    "checkpoint": lambda: checkpointed(False),
    "reentrant checkpoint": lambda: checkpointed(True),
    "sparse": sparse,
    "double backward": double_backward,
    "transforms": transforms,
    "attention": attention,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_observed_runs_are_bit_identical(program: str) -> None:
    """Losses, gradients, parameters, buffers and the random state are those of the bare run, bit by bit."""
    torch.manual_seed(3)
    bare = [*PROGRAMS[program](), torch.get_rng_state()]
    torch.manual_seed(3)
    with gradscope.observe() as seen:
        observed = [*PROGRAMS[program](), torch.get_rng_state()]
    assert len(bare) == len(observed) > 2
    for mine, theirs in zip(observed, bare, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    run = seen.report().run
    assert list(run.failures) == []
    assert operations(run)


def test_a_report_in_the_middle_changes_nothing() -> None:
    """Asking for the report at any time leaves gradients, the random state and the numbers as they are."""
    torch.manual_seed(3)
    bare = [*mlp(), torch.get_rng_state()]
    torch.manual_seed(3)
    with gradscope.observe() as seen:
        original = torch.Tensor.backward

        def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            str(seen.report())
            original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", backward)
            observed = [*mlp(), torch.get_rng_state()]
    assert all(map(torch.equal, observed, bare))


def torch_state() -> dict[str, Any]:
    """Everything of torch's and Python's that probes replace or hook."""
    import torch.optim.optimizer as optimizers
    from torch.nn.modules import module as modules

    state = {
        "Module.__call__": vars(nn.Module)["__call__"],
        "_engine_run_backward": torch.autograd._engine_run_backward,  # type: ignore[attr-defined]
        "Function.apply": vars(torch.autograd.Function).get("apply"),
        "Parameter.__new__": vars(nn.Parameter)["__new__"],
        "Optimizer.__init__": vars(torch.optim.Optimizer)["__init__"],
        "swap_tensors": torch.utils.swap_tensors,
        "bootstrap": vars(threading.Thread)["_bootstrap_inner"],
        "showwarning": warnings.showwarning,
        "_showwarnmsg": warnings._showwarnmsg,  # type: ignore[attr-defined]
        "modes": stacks.modes(),
        "grad": torch.is_grad_enabled(),
    }
    for owner in (optimizers, modules):
        state |= {name: value and dict(value) for name, value in vars(owner).items() if name.startswith("_global_")}
    for owner in (torch.Tensor, torch.autograd, torch.nn.Module, torch.optim.Optimizer):
        state |= {f"{owner.__name__}.{name}": value for name, value in vars(owner).items() if callable(value)}
    return state


@contextmanager
def untouched() -> Iterator[None]:
    """What is done here must leave torch as it was."""
    before = torch_state()
    yield
    assert torch_state() == before


def test_probes_are_in_place_meanwhile() -> None:
    """The test of what stays behind looks at the right places: they do differ during an observation."""
    before = torch_state()
    with gradscope.observe():
        during = torch_state()
    assert {name for name in during if during[name] != before[name]} >= {
        "Module.__call__",
        "_engine_run_backward",
        "Function.apply",
        "Parameter.__new__",
        "Optimizer.__init__",
        "_showwarnmsg",
        "modes",
        "_global_optimizer_pre_hooks",
        "_global_optimizer_post_hooks",
    }


def test_nothing_is_left_behind() -> None:
    """After the block every patch and every hook is gone."""
    with untouched(), gradscope.observe():
        mlp()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind_by_an_exception(error: type[BaseException]) -> None:
    """Also after an exception in the middle of a module's forward, and the exception comes out."""

    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error("here")

    with untouched(), pytest.raises(error, match="here"), gradscope.observe():
        Failing()(torch.rand(2))


def test_nothing_is_left_behind_by_an_exception_in_backward() -> None:
    """Also after an exception in a custom Function's backward."""

    class Failing(Cube):
        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
            raise ZeroDivisionError("in backward")

    with untouched(), pytest.raises(ZeroDivisionError), gradscope.observe():
        Failing.apply(torch.rand(2, requires_grad=True)).sum().backward()


def test_a_failing_probe_never_reaches_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a part of ours fails, the run goes on with the same numbers, and the report says so in one line."""
    torch.manual_seed(3)
    bare = mlp()
    torch.manual_seed(3)

    def broken(*args: object, **kwargs: object) -> None:
        raise LookupError("nobody\nknows")

    with gradscope.observe() as seen:
        monkeypatch.setattr("gradscope.probes.tape.Tape.meet", broken)
        observed = mlp()
        monkeypatch.undo()
    assert all(map(torch.equal, observed, bare))
    failures = seen.report().document.failures
    assert "recorder failed: LookupError: nobody" in failures
    assert all("\n" not in failure for failure in failures)


def test_a_probe_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch of the future may lack what a probe replaces: the program runs on, and the others watch it."""
    monkeypatch.setattr(torch.nn.Parameter, "__new__", 1)  # whatever it is, it cannot be wrapped
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1)
    with gradscope.observe(optimizer=optimizer) as observation:
        for _ in range(2):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    document = observation.report().document
    (failure,) = document.failures
    assert failure.startswith(f"watching Function.apply with torch {torch.__version__} failed: AttributeError: ")
    ((name, gradients),) = [(tensor.name, tensor.received) for tensor in document.tensors if tensor.leaf]
    assert (name, gradients.steps) == ("weight", 2)


@pytest.mark.parametrize(
    "warn",
    [
        lambda: F.mse_loss(torch.rand(3, 1), torch.rand(3)),
        lambda: torch.tensor(torch.rand(3)),
        lambda: F.softmax(torch.rand(3, 2)),
        lambda: nn.Softmax()(torch.rand(3, 2)),
    ],
    ids=["mse_loss", "tensor", "softmax", "module"],
)
def test_warnings_name_the_same_place(warn: Callable[[], Any]) -> None:
    """A warning of torch's has the text, the category, the file and the line that it has without us."""

    def shown() -> list[tuple[str, type[Warning], str, int]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn()
        return [(str(w.message), w.category, w.filename, w.lineno) for w in caught]

    bare = shown()
    with gradscope.observe():
        observed = shown()
    assert observed == bare
    assert len(bare) == 1


@pytest.mark.parametrize("action", ["default", "once", "module", "always", "error", "ignore"])
def test_warnings_are_shown_as_often(action: str) -> None:
    """Under each of Python's filters, warnings of two lines in a loop are shown as often as without us."""

    def shown() -> list[Any]:
        seen: list[Any] = []
        warnings.onceregistry.clear()  # type: ignore[attr-defined]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)  # type: ignore[arg-type]
            for _ in range(3):
                try:
                    F.mse_loss(torch.ones(3, 1), torch.ones(3))
                    nn.L1Loss()(torch.ones(3, 1), torch.ones(3))
                    nn.L1Loss()(torch.ones(3, 1), torch.ones(3))
                    torch.tensor(torch.ones(1))
                except UserWarning as error:
                    seen.append(str(error))
        return seen + [(str(w.message), w.filename, w.lineno) for w in caught]

    bare = shown()
    with gradscope.observe():
        assert shown() == bare
    assert bool(bare) == (action != "ignore")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_programs_run_unchanged() -> None:
    """`torch.compile(fullgraph=True)` compiles under observation, also with custom Functions and parameters."""
    w = torch.rand(3, requires_grad=True)
    net = nn.Linear(3, 3)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return (net(Cube.apply(x, 1.0)) * w).sum()

    def run() -> Tensors:
        torch.compiler.reset()
        w.grad = None
        net.zero_grad()
        loss = torch.compile(forward, fullgraph=True, backend="eager")(torch.arange(3.0))
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in (w, *net.parameters()) if p.grad is not None)]

    bare = run()
    with gradscope.observe() as seen:
        observed = run()
    assert len(observed) == 4
    assert all(map(torch.equal, observed, bare))
    assert seen.report().run.backward_count == 1


def test_tensors_without_a_shape_are_met() -> None:
    """Lazy modules and nested tensors, which have no shape to tell, run as they would, and every probe goes on."""
    with gradscope.observe() as seen:
        net = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyBatchNorm1d())
        net(torch.rand(4, 2)).sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nested = torch.nested.nested_tensor([torch.rand(2), torch.rand(3)], requires_grad=True)
        (nested * 2).to_padded_tensor(0.0).sum().backward()
    run = seen.report().run
    assert list(run.failures) == []
    shapes = {tensor.name: tensor.shape for tensor in run.tensors}
    assert shapes["net.0.weight"] == (3, 2)


def test_frozen_scripts_are_called() -> None:
    """A module out of `torch.jit.freeze` has no mode of its own: it runs alone and as a part of one that trains."""

    def run() -> Tensors:
        torch.manual_seed(0)
        frozen = torch.jit.freeze(torch.jit.script(nn.Linear(3, 4).eval()))
        net = nn.Sequential(frozen, nn.Linear(4, 1))
        torch.optim.SGD(net.parameters(), lr=0.1)
        alone = frozen(torch.ones(1, 3))
        net.train()
        net(torch.ones(2, 3)).sum().backward()
        return [alone, *(p.grad for p in net.parameters() if p.grad is not None)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts are deprecated
        bare = run()
        with gradscope.observe() as seen:
            observed = run()
    assert len(observed) == 3
    assert all(map(torch.equal, observed, bare))
    assert list(seen.report().run.failures) == []


def test_copies_and_pickles_are_those_of_torch() -> None:
    """Modules, parameters and optimizers can be copied and pickled, and what comes back has nothing of ours."""
    with gradscope.observe():
        net = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.rand(2)).sum().backward()
        data = pickle.dumps([net, optimizer, nn.Parameter(torch.rand(2))])
        copied = copy.deepcopy(net)
    assert b"gradscope" not in data
    assert torch.equal(pickle.loads(data)[0].weight, net.weight)
    assert torch.equal(copied.weight, net.weight)


def test_swapping_tensors_is_allowed() -> None:
    """`torch.utils.swap_tensors`, which refuses tensors with weak references, works on observed ones."""
    with gradscope.observe():
        a, b = torch.rand(2), torch.rand(3)
        c = a + 1
        torch.utils.swap_tensors(a, b)
    assert (a.shape, b.shape, c.shape) == ((3,), (2,), (2,))


class Counting(torch.overrides.TorchFunctionMode):
    """Notes what torch asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note and pass on."""
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def small_step() -> None:
    """A module, a custom Function, a parameter made of a tensor, an optimizer."""
    net = nn.Linear(2, 2)
    scale = nn.Parameter(torch.rand(2))
    optimizer = torch.optim.SGD([*net.parameters(), scale], lr=0.1)
    Cube.apply(net(torch.rand(3, 2)) * scale, 1.0).sum().backward()
    optimizer.step()


def test_function_modes_inside_see_what_they_see_without_us() -> None:
    """A torch function mode of the program's own is asked for the program's calls and for none of ours."""
    with Counting() as bare:
        small_step()
    with gradscope.observe(), Counting() as observed:
        small_step()
    assert observed.names == bare.names
    assert "linear" in bare.names


def test_function_modes_outside_see_what_they_see_without_us() -> None:
    """So is a mode in which the observation takes place."""
    with Counting() as bare:
        small_step()
    with Counting() as observed, gradscope.observe():
        observed.names.clear()
        small_step()
        names = list(observed.names)
    assert names == bare.names


def test_tensor_subclasses_see_what_they_see_without_us() -> None:
    """A tensor subclass with a `__torch_function__` of its own is asked for the program's calls only."""
    asked: list[str] = []

    class Noting(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    def program() -> list[str]:
        asked.clear()
        w = torch.rand(3).as_subclass(Noting).requires_grad_()
        x = w * 2
        x.add_(1)
        nn.Tanh()(x[:2]).sum().backward()
        optimizer = torch.optim.SGD([w], lr=0.1)
        optimizer.step()
        return list(asked)

    bare = program()
    with gradscope.observe():
        assert program() == bare
    assert "tanh" in bare


def test_nothing_is_counted_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a value during the capture of a CUDA graph breaks it: such backwards and steps are left alone."""
    done: list[int] = []
    monkeypatch.setattr("gradscope.probes.tensors.quiet._cuda_is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: len(done) == 2)
    w = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    with gradscope.observe() as seen:
        for step in range(4):
            optimizer.zero_grad()
            (w * 2).sum().backward()
            optimizer.step()
            done.append(step)
    run = seen.report().run
    assert list(run.failures) == []
    assert (run.backward_count, run.step_count) == (3, 3)
