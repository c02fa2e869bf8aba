"""Whom a handler shall call where the program has put something of its own in the place of a function of torch's.

torch hands its handlers a function by the name that it has in its module or class. Where that name has been set anew,
the handler is given the replacement, whose call of the original is what is being handled: it would run twice.
"""

from __future__ import annotations

import gc
import os
from inspect import CO_NESTED
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch._jit_internal import boolean_dispatch

OF_C = frozenset({BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType})
_TORCH = os.path.dirname(torch.__file__)
_HANDING = torch.overrides.handle_torch_function.__code__
# `unique` and its like choose one of two functions, which ask in its name.
_CHOOSING = next(part for part in boolean_dispatch.__code__.co_consts if isinstance(part, CodeType))
_originals: dict[CodeType, Any] = {}


def own(func: Any, frame: FrameType) -> Any:
    """The function of torch's that asked for `func` to be handled; `frame` is the one that called the handler."""
    code = func.__code__ if type(func) is FunctionType else None
    if frame.f_code is not _HANDING or frame.f_back is None:
        return _method(func)
    asking = frame.f_back.f_code
    if code is asking or code is _CHOOSING or not asking.co_filename.startswith(_TORCH):
        return func
    if asking.co_flags & CO_NESTED or _runs(func, asking):
        return func  # a closure and an operator are not asked for by a name that could be set anew
    if code is not None and code.co_filename == asking.co_filename and asking.co_name == f"_{code.co_name}":
        return func  # `_meshgrid` asks in the name of `meshgrid`
    return _of_code(asking, func)


def _runs(func: Any, code: CodeType) -> bool:
    """Whether this object asks for itself where it is called, as operators of higher order do."""
    return any(getattr(vars(kind).get("__call__"), "__code__", None) is code for kind in type(func).__mro__)


def _method(func: Any) -> Any:
    """What torch's C code asked for: it looks up the names of its methods in `torch.Tensor`, which inherits them."""
    for name, member in vars(torch.Tensor).items():
        if member is func:
            return getattr(torch._C.TensorBase, name, func)
    return func


def _of_code(asking: CodeType, otherwise: Any) -> Any:
    """The function that runs a code: looked for among all objects, once, for what was replaced has no name."""
    if asking not in _originals:
        found = [holder for holder in gc.get_referrers(asking) if type(holder) is FunctionType]
        _originals[asking] = found[0] if len(found) == 1 else None
    original = _originals[asking]
    return otherwise if original is None else original
