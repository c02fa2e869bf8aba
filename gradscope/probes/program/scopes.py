"""What the program's variables hold: its globals, and the locals of functions that are running."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FrameType, FunctionType
from typing import Any

import torch

from gradscope.probes.forward.callsites import USER, CallSites, Site

_ITEMS = 1_000  # of a list that is looked into
_DEPTH = 6  # of the user's functions, from the innermost outwards


def modules_in(variables: Mapping[str, Any], sites: CallSites) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules among variables and in plain lists, tuples and dicts of them, also of objects of own classes."""
    for name, value in list(variables.items()):
        yield from _held(name, value)
        if not is_a(value, torch.nn.Module) and is_own_class(type(value), sites):
            for attribute, held in attributes(value).items():
                yield from _held(f"{name}.{attribute}", held)


def _held(name: str, value: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    if is_a(value, torch.nn.Module):
        if not is_constant(value):
            yield name, value
    elif type(value) in (list, tuple, dict) and len(value) <= _ITEMS:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if is_a(item, torch.nn.Module) and is_a(key, (str, int)) and not is_constant(item):
                yield f"{name}[{key!r}]", item


def is_a(value: object, kind: type[Any] | tuple[type[Any], ...]) -> bool:
    """`isinstance` that runs no code of the value's: that asks for its `__class__` where its type is another."""
    return issubclass(type(value), kind)


def parts(root: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """What `named_modules` of `nn.Module` gives; those of the program may count, print or hide."""
    waiting: list[tuple[str, torch.nn.Module | None]] = [("", root)]
    seen = set[int]()
    while waiting:
        path, module = waiting.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        prefix = path + "." if path else ""
        waiting += [(prefix + name, part) for name, part in reversed(list(registered(module, "_modules")))]


def registered(module: torch.nn.Module, register: str) -> Iterable[tuple[str, Any]]:
    """What a module has registered in `_parameters`, `_buffers` or `_modules`; TorchScript keeps it out of Python."""
    if is_a(module, torch.jit.ScriptModule):
        return tuple(getattr(module, register).items()) if hasattr(module, register) else ()
    found: Mapping[str, Any] = object.__getattribute__(module, "__dict__").get(register) or {}
    return found.items()


def parameters_of(root: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What `named_parameters` of `nn.Module` gives."""
    seen = set[int]()
    for path, module in parts(root):
        for name, parameter in registered(module, "_parameters"):
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{name}" if path else name, parameter


def is_constant(module: torch.nn.Module) -> bool:
    """Whether `torch.jit.freeze` has made constants of all that a module was, its mode too: nothing in it can train."""
    return is_a(module, torch.jit.ScriptModule) and not hasattr(module, "training")


def modules_around(sites: CallSites) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules that the variables of the user's running functions hold."""
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None and depth < _DEPTH:
        if sites.kind(frame.f_code.co_filename) == USER:
            depth += 1
            yield from modules_in(variables_of(frame), sites)
        frame = frame.f_back


def maker_of(made: object, sites: CallSites) -> Site | None:
    """The user's line that makes an object whose constructor is at work: outside of the constructors of its class."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if sites.kind(code.co_filename) == USER:
            inside = code.co_name == "__init__" and _first_argument(frame) is made
            if not inside:
                return sites.find(frame)
        frame = frame.f_back
    return None


def _first_argument(frame: FrameType) -> object:
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return variables_of(frame).get(names[0]) if names else None


def variables_of(frame: FrameType) -> dict[str, Any]:
    """A copy of the variables of a frame.

    Before Python 3.13 the frame of a function keeps what it gives, and with it all tensors: they would live on.
    """
    given = frame.f_locals
    variables = dict(given)
    if isinstance(given, dict) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        given.clear()
    return variables


def is_own_class(kind: type, sites: CallSites) -> bool:
    """Whether a class is of the program itself."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__ == "__main__" or (file is not None and sites.kind(file) == USER)


def captured(function: FunctionType | partial[Any], sites: CallSites) -> dict[str, Any]:
    """What a function of the program holds: variables of the functions around it, defaults, bound arguments."""
    if isinstance(function, partial):
        places = {f"args[{place}]": value for place, value in enumerate(function.args)}
        return {"func": function.func, **places, **function.keywords}
    code = function.__code__
    if sites.kind(code.co_filename) != USER:
        return {}
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    held = dict(zip(names, defaults, strict=True)) | (function.__kwdefaults__ or {})
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # it is empty as yet
            continue
    return held


def attributes(value: object) -> dict[str, Any]:
    """The attributes of an object itself, read without running any code of its class."""
    try:
        return dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        return {}
