"""What a dry run takes for something plainer: compiled functions, workers, pinned memory, accelerators."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.grad_scaler import _refresh_per_optimizer_state
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from gradscope.probes.dry.checkpoints import checkpoints_in_memory
from gradscope.probes.dry.groups import fake_groups
from gradscope.probes.dry.modes import is_elsewhere
from gradscope.probes.dry.standins import StandIns
from gradscope.probes.tensors.patches import patched

# Which kernel an optimizer takes changes nothing in what gets a gradient, and some have no fake form.
_KERNELS = ("fused", "capturable", "foreach")


@contextmanager
def plain_surroundings(noted: StandIns) -> Iterator[None]:
    """Replace them while the program runs."""
    with ExitStack() as stack:
        for owner, name, wrap in (
            (torch, "compile", _uncompiled(noted)),
            (torch.nn.Module, "compile", _always(None)),
            (DataLoader, "__init__", _without_workers(noted)),
            (torch.distributions.Distribution, "_validate_args", lambda _: False),
            (torch.cuda.amp.common, "amp_definitely_not_available", _always(False)),
            (torch.cuda, "is_bf16_supported", _always(True)),
            (torch, "Generator", _generator),
            (torch.utils, "swap_tensors", _converting),
            (torch.autograd, "gradcheck", _unchecked(noted, "gradcheck")),
            (torch.autograd, "gradgradcheck", _unchecked(noted, "gradgradcheck")),
            (torch.optim.LBFGS, "step", lambda _: _iterated),
            (torch.amp.GradScaler, "_maybe_opt_step", lambda _: _stepped),
            (torch.amp.GradScaler, "update", lambda _: _updated),
            (FakeTensor, "tolist", lambda _: torch.Tensor.tolist),
            (FakeTensor, "data_ptr", lambda _: _address),
            *((torch.cuda, name, _always(None)) for name in ("set_device", "synchronize", "empty_cache", "init")),
            *((torch.cuda, name, _always(None)) for name in ("reset_peak_memory_stats", "_lazy_init")),
            *((torch.cuda, name, _always(0)) for name in ("memory_allocated", "max_memory_allocated")),
            *((torch.cuda, name, _always(0)) for name in ("memory_reserved", "max_memory_reserved", "current_device")),
        ):
            stack.enter_context(patched(owner, name, wrap, always=True))
        stack.enter_context(_plain_kernels())
        stack.enter_context(checkpoints_in_memory(noted))
        stack.enter_context(fake_groups(noted))
        yield


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda _: lambda *_args, **_options: value


def _uncompiled(noted: StandIns) -> Callable[[Any], Any]:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def compile(model: Any = None, **_: Any) -> Any:  # noqa: A001 - torch's name
            noted.note("torch.compile", "the plain function")
            return model if model is not None else lambda function: function

        return compile

    return wrap


def _without_workers(noted: StandIns) -> Callable[[Any], Any]:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
            workers = kwargs.get("num_workers") or 0
            if workers:
                noted.note(f"{workers} workers of a DataLoader", "the process itself")
            plain: dict[str, Any] = {"num_workers": 0, "pin_memory": False, "persistent_workers": False}
            plain |= {"prefetch_factor": None, "multiprocessing_context": None, "timeout": 0}
            kwargs.update({name: value for name, value in plain.items() if name in kwargs})
            original(self, *args, **kwargs)

        return initialise

    return wrap


def _address(tensor: torch.Tensor) -> int:
    """Memory that is not there has an address of its own all the same."""
    return int(tensor.untyped_storage()._cdata)


def _unchecked(noted: StandIns, name: str) -> Callable[[Any], Any]:
    def wrap(_: Any) -> Any:
        def check(*_: Any, **__: Any) -> bool:
            noted.note(f"torch.autograd.{name}, which compares values", "True")
            return True

        return check

    return wrap


def _converting(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """What a module does with a parameter that it converts: as for real tensors, where torch would swap fake ones."""

    def swap_tensors(tensor: torch.Tensor, converted: torch.Tensor) -> None:
        if tensor is converted:
            return
        if not (isinstance(tensor, FakeTensor) and isinstance(converted, FakeTensor)):
            original(tensor, converted)
            return
        tensor.fake_device = converted.fake_device  # as for the meta device: else torch refuses to set the data
        with torch.no_grad():
            tensor.data = converted

    return swap_tensors


def _stepped(_: Any, optimizer: Any, _state: Any, *args: Any, **kwargs: Any) -> Any:
    """A GradScaler finds nothing infinite where there are no values."""
    return optimizer.step(*args, **kwargs)


def _updated(scaler: Any, *_: Any) -> None:
    """The scale stays as it is; what was unscaled may be unscaled again."""
    scaler._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)


def _generator(original: Any) -> Any:
    class Generator(original):  # type: ignore[misc]
        """A source of random numbers, on the CPU wherever it was to be."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return original.__new__(original, "cpu" if is_elsewhere(device) else device)

    return Generator


_ITERATIONS = 3  # calls of a closure: how many a search takes depends on values


@torch.no_grad()
def _iterate(self: Any, closure: Callable[[], Any]) -> Any:
    """A step of L-BFGS: its closure is called again and again, and its parameters change in place."""
    loss = None
    for _ in range(min(self.param_groups[0]["max_iter"], _ITERATIONS)):
        with torch.enable_grad():
            result = closure()
        loss = result if loss is None else loss
        for tensor in self.param_groups[0]["params"]:
            tensor.mul_(1)
    return loss


_iterated: Any = torch.optim.Optimizer.profile_hook_step(_iterate)
_iterated.hooked = True  # else torch puts its hooks around it once more


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Step without fused kernels; the groups say afterwards what they said before."""
    chosen: dict[int, list[dict[str, Any]]] = {}

    def before(optimizer: Any, *_: Any) -> None:
        groups = optimizer.param_groups
        chosen[id(optimizer)] = [{name: group[name] for name in _KERNELS if name in group} for group in groups]
        if "grad_scale" in vars(optimizer):
            optimizer.grad_scale = optimizer.found_inf = None  # a GradScaler gives them to fused kernels alone
        for group in groups:
            group.update({name: False for name in _KERNELS if name in group})

    def after(optimizer: Any, *_: Any) -> None:
        for group, kernels in zip(optimizer.param_groups, chosen.pop(id(optimizer), ()), strict=False):
            group.update(kernels)

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
