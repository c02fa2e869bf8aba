"""The two modes of a dry run: above torch's fake mode one for what depends on values, and one for what leaves torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from gradscope.probes.dry.standins import StandIns
from gradscope.probes.dry.values import DOUBLED, computed, faked, follow, is_cheap, number, set_double, stand_in
from gradscope.probes.program.stacks import HiddenMode

READ = "a value that was read"
_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense.default}
_DEPENDS_ON_VALUES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    NotImplementedError,
)
_ACCELERATORS = ("cuda", "xpu", "mps", "hpu", "xla")
_LARGEST = 1 << 24  # elements that are handed out of torch as an array of their own
_T = torch.Tensor
plain_deepcopy: Callable[[torch.Tensor, dict[int, Any]], torch.Tensor] = _T.__deepcopy__


_ONE_AT_A_TIME = threading.RLock()  # the fake mode, which threads share, is not made for several


class ValueMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what the fake mode below it cannot, since it depends on values, and keeps small integers real."""

    def __init__(self, fake: FakeTensorMode, noted: StandIns, tick: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = fake
        self.noted = noted
        self.tick = tick

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.tick()
        with _ONE_AT_A_TIME:
            return self._called(func, args, kwargs or {})

    def _called(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if is_elsewhere(kwargs.get("device")):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func in _READS:
            return self._read(args[0])
        if func is _aten.index.Tensor:
            args = (args[0], [_selected(index) for index in args[1]])
        try:
            result = func(*args, **kwargs)
        except _DEPENDS_ON_VALUES:
            if not is_cheap(args, kwargs):
                raise
            self.noted.note(_spelled(func), "its result for ones, since its shape depends on values")
            return faked(computed(func, args, kwargs), self._fake)
        follow(func, args, kwargs, result)
        return result

    def _fake(self, real: torch.Tensor) -> torch.Tensor:
        if real.layout is not torch.strided:
            return self.fake.from_tensor(real)
        with self.fake:
            return torch.empty(real.shape, dtype=real.dtype)

    def _read(self, tensor: torch.Tensor) -> Any:
        value, known = number(tensor)
        if not known:
            self.noted.note(READ, str(value))
        return value


def _spelled(func: Any) -> str:
    return str(func.overloadpacket).removeprefix("aten.").strip("_")


def _selected(index: Any) -> Any:
    """A mask among indices as the indices that it stands for."""
    if not isinstance(index, torch.Tensor) or index.dtype not in (torch.bool, torch.uint8) or index.dim() != 1:
        return index
    with _disable_current_modes():
        real = stand_in(index).nonzero().squeeze(1)
    places = torch.empty(real.shape, dtype=torch.long)
    if isinstance(places, FakeTensor) and real.numel() <= DOUBLED:
        set_double(places, real)
    return places


class LeavingMode(HiddenMode):
    """Answers what hands values out of torch, and takes devices that are not there for the CPU."""

    def __init__(self, noted: StandIns) -> None:
        super().__init__()
        self.noted = noted

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        answer = _ANSWERS.get(func)
        if answer is not None and args and isinstance(args[0], torch.Tensor):
            return answer(self, *args, **kwargs)
        if is_elsewhere(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if func in _OF_NUMBERS:
            args = tuple(self._numbers(value) for value in args)
        if func is _T.to and any(map(is_elsewhere, args[1:])):
            args = tuple(torch.device("cpu") if is_elsewhere(value) else value for value in args)
        return func(*args, **kwargs)

    def cuda(self, tensor: torch.Tensor, *_: Any, **kwargs: Any) -> torch.Tensor:
        """`Tensor.cuda()`."""
        return tensor.to("cpu")

    def pin_memory(self, tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        """`Tensor.pin_memory()`."""
        return tensor

    def deepcopy(self, tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        """`copy.deepcopy(tensor)`: torch copies memory, of which there is none."""
        if id(tensor) in memo:
            return memo[id(tensor)]  # type: ignore[no-any-return]
        if not tensor.is_leaf:
            return plain_deepcopy(tensor, memo)  # refused
        with torch.no_grad():
            made = tensor.clone()
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made)
            made.requires_grad_(tensor.requires_grad)
            if tensor.grad is not None:
                made.grad = tensor.grad.clone()
        memo[id(tensor)] = made
        return made

    def tolist(self, tensor: torch.Tensor) -> Any:
        """`Tensor.tolist()`."""
        self._left(tensor, "tolist")
        with _disable_current_modes():
            return stand_in(tensor).tolist()

    def as_float(self, tensor: torch.Tensor) -> Any:
        """`float(tensor)`, also where torch asks for the numbers of a list."""
        return float(self._number(tensor))

    def as_int(self, tensor: torch.Tensor) -> Any:
        """`int(tensor)`."""
        return int(self._number(tensor))

    def as_index(self, tensor: torch.Tensor) -> Any:
        """A tensor as an index, which one of floats is not."""
        if tensor.numel() != 1 or tensor.is_floating_point() or tensor.is_complex():
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self._number(tensor))

    def _number(self, tensor: torch.Tensor) -> Any:
        if tensor.numel() != 1:
            return tensor.item()  # refused
        value, known = number(tensor)
        if not known:
            self.noted.note(READ, str(value))
        return value

    def numpy(self, tensor: torch.Tensor, *_: Any, **kwargs: Any) -> Any:
        """`Tensor.numpy()`: refused where torch refuses it."""
        if tensor.requires_grad and not kwargs.get("force"):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        self._left(tensor, "numpy")
        return _array(tensor)

    def array(self, tensor: torch.Tensor, dtype: Any = None, **_: Any) -> Any:
        """What numpy asks of a tensor."""
        array = self.numpy(tensor)
        return array if dtype is None else array.astype(dtype)

    def format(self, tensor: torch.Tensor, spec: str) -> str:
        """What is written of a tensor: as of a plain one, its number."""
        return format(tensor.item(), spec) if tensor.dim() == 0 else format(str(tensor), spec)

    def _numbers(self, data: Any) -> Any:
        """What a tensor is made of, with numbers in the place of tensors in lists: torch would read their memory."""
        if isinstance(data, (list, tuple)):
            return [self.tolist(value) if isinstance(value, FakeTensor) else self._numbers(value) for value in data]
        return data

    def _left(self, tensor: torch.Tensor, how: str) -> None:
        if not isinstance(tensor, FakeTensor) or tensor.dtype.is_floating_point or tensor.numel() > DOUBLED:
            self.noted.note(f"values that left by {how}()", "ones")


def _array(tensor: torch.Tensor) -> Any:
    with _disable_current_modes():
        values = stand_in(tensor)
        if values.dtype == torch.bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return (values.clone() if values.numel() <= _LARGEST else values).detach().numpy()


def is_elsewhere(device: Any) -> bool:
    """Whether this names an accelerator."""
    if isinstance(device, torch.device):
        return device.type in _ACCELERATORS
    if isinstance(device, str):
        return device.partition(":")[0] in _ACCELERATORS
    return False


_OF_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray, _T.new_tensor}
_ANSWERS: dict[Any, Callable[..., Any]] = {
    _T.cuda: LeavingMode.cuda,
    _T.pin_memory: LeavingMode.pin_memory,
    _T.tolist: LeavingMode.tolist,
    _T.numpy: LeavingMode.numpy,
    _T.__array__: LeavingMode.array,
    _T.__float__: LeavingMode.as_float,
    _T.__int__: LeavingMode.as_int,
    _T.__index__: LeavingMode.as_index,
    _T.__deepcopy__: LeavingMode.deepcopy,
    _T.__format__: LeavingMode.format,
}
