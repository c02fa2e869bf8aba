"""What the saved tensors of an autograd node tell about the values that it was computed from and gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gradscope.probes.tensors.quiet import detached
from gradscope.probes.tensors.shards import has_values, local, values_of


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one operation: whether its saved inputs, and its result, were finite; None where unknown.

    `spoilt` names the saved inputs that were not, `whole` those that were. `low` and `high` are the range of the
    operand `name`, in which the operation is singular.
    """

    inputs: bool
    result: bool | None
    name: str = ""
    low: float | None = None
    high: float | None = None
    spoilt: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


_RESULTS = frozenset(
    {"result", "result0", "output", "inverse", "eigenvalues", "S", "L", "LU", "logdet", "log_sumexp", "R", "Q"}
)
_AGAIN: dict[str, Callable[..., torch.Tensor]] = {
    "Log": torch.log,
    "Log2": torch.log2,
    "Log10": torch.log10,
    "Log1P": torch.log1p,
    "Acos": torch.acos,
    "Asin": torch.asin,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Lgamma": torch.lgamma,
    "Erfinv": torch.erfinv,
    "Digamma": torch.digamma,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Logit": torch.logit,
}


def evidence(node: Any) -> Evidence | None:
    """Read what a node saved; None where that tells nothing, or cannot be read any more."""
    try:
        kind = str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
        saved = _saved(node)
        inputs = {name: value for name, value in saved.items() if name not in _RESULTS}
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        spoilt = tuple(name for name, value in tensors.items() if not _finite(value))
        whole = tuple(name for name in tensors if name not in spoilt)
        finite = not spoilt
        results = [value for name, value in saved.items() if name in _RESULTS and isinstance(value, torch.Tensor)]
        if not tensors and any(_came_in(kind, result) for result in results):
            return Evidence(False, False, spoilt=("self",))
        if results:
            return Evidence(finite, all(map(_finite, results)), *_range(tensors), spoilt, whole)
        made = _again(kind, saved)
        if made is None:
            return Evidence(finite, None, spoilt=spoilt, whole=whole) if tensors else None
        return Evidence(finite, _finite(made), *_range(tensors), spoilt, whole)
    except (RuntimeError, TypeError):
        return None


def _saved(node: Any) -> dict[str, Any]:
    kind = type(node)
    found = {name.removeprefix("_saved_"): getattr(node, name) for name in dir(kind) if name.startswith("_saved_")}
    return {name: _read(value) if isinstance(value, torch.Tensor) else value for name, value in found.items()}


def _read(tensor: torch.Tensor) -> torch.Tensor | None:
    part = local(tensor)
    return part if has_values(part) else None


def _again(kind: str, saved: dict[str, Any]) -> torch.Tensor | None:
    """The result once more, or one that is as finite, of operations that save what they were computed from."""
    own, other = saved.get("self"), saved.get("other")
    if kind in _AGAIN and isinstance(own, torch.Tensor):
        return _AGAIN[kind](own)
    if kind == "Div" and isinstance(other, torch.Tensor):
        if isinstance(own, torch.Tensor):
            return own / other
        inverse = 1 / other
        return None if _finite(inverse) else inverse  # what was divided is not known, and may not be finite itself
    if kind == "Mul" and isinstance(own, torch.Tensor) and isinstance(other, torch.Tensor):
        return own * other
    if kind == "Pow" and isinstance(own, torch.Tensor) and isinstance(saved.get("exponent"), (int, float)):
        return own.pow(saved["exponent"])
    if kind in ("Xlogy", "Atan2", "Hypot") and isinstance(own, torch.Tensor) and isinstance(other, torch.Tensor):
        return {"Xlogy": torch.xlogy, "Atan2": torch.atan2, "Hypot": torch.hypot}[kind](own, other)
    if kind in ("Var", "Std") and isinstance(own, torch.Tensor):
        dim = saved.get("dim")
        return torch.var(own, dim=list(dim) if dim else None, correction=saved.get("correction"))
    if kind == "Mean" and saved.get("self_sym_numel") == 0:
        return torch.tensor(float("nan"), device="cpu")
    weight = saved.get("total_weight")
    if kind.startswith("NllLoss") and isinstance(weight, torch.Tensor) and saved.get("reduction") == 1 and not weight:
        return torch.tensor(float("nan"), device="cpu")
    if kind.startswith("NllLoss") and isinstance(own, torch.Tensor) and isinstance(weight, torch.Tensor):
        return torch.zeros((), device="cpu") if _finite(own) and _finite(weight) else None
    factor, target = saved.get("mat2"), saved.get("target")
    if kind in ("Mm", "Bmm") and isinstance(own, torch.Tensor) and isinstance(factor, torch.Tensor):
        return torch.matmul(own, factor)
    if kind == "MseLoss" and isinstance(own, torch.Tensor) and isinstance(target, torch.Tensor):
        return (own - target).square()
    return None


# Nodes of functions that can give infinity or NaN, and of which `gave` tells.
MAKERS = frozenset({*_AGAIN, "Div", "Pow", "Rsqrt", "Reciprocal", "Exp", "Exp2", "Expm1", "Tan"})


def factor(node: Any, name: str) -> list[torch.Tensor]:
    """A saved factor of a product or a quotient, `self` or `other`, if it is saved; its values are not looked at."""
    try:
        value = getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return []
    values = values_of(value) if isinstance(value, torch.Tensor) else None
    return [] if values is None else [values]


def gave(node: Any, kind: str) -> list[torch.Tensor]:
    """What the function of a node gave, or what is as finite, if that can be told; its values are not looked at."""
    own, other, result = (next(iter(factor(node, name)), None) for name in ("self", "other", "result"))
    try:
        if kind in _AGAIN and own is not None:
            return [_AGAIN[kind](own)]
        if kind == "Div" and other is not None:
            return [(1 if own is None else own) / other]
        if kind == "Pow" and own is not None and isinstance(node._saved_exponent, (int, float)):
            return [own.pow(node._saved_exponent)]
    except (AttributeError, RuntimeError, TypeError):
        return []
    return [] if result is None else [result]


def _came_in(kind: str, result: torch.Tensor) -> bool:
    """Whether a result tells that what came in was not finite: of finite numbers these functions make no other."""
    if kind == "Sqrt":
        return bool(torch.isinf(detached(result)).any())
    return kind in ("Relu", "Tanh", "Sigmoid") and not _finite(result)


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    return bool(torch.isfinite(detached(tensor)).all())


def _range(tensors: dict[str, torch.Tensor]) -> tuple[str, float | None, float | None]:
    """The range of what an operation is singular in: the divisor, or its one input."""
    name = "other" if "other" in tensors else "self"
    value = tensors.get(name)
    if value is None or value.is_complex() or not value.numel():
        return "", None, None
    low, high = torch.aminmax(detached(value))
    return name, float(low), float(high)
