"""Which module an operation runs in, and the names that modules give to their tensors."""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.compiler import is_compiling

from gradscope.probes.forward.callsites import Site
from gradscope.probes.forward.recorder import resume, tensors
from gradscope.probes.program.recursion import LEVELS
from gradscope.probes.program.scopes import (
    attributes,
    captured,
    is_a,
    is_constant,
    is_own_class,
    parameters_of,
    parts,
    registered,
)
from gradscope.probes.program.tracebacks import hide
from gradscope.probes.records import CallRecord, ModuleMark, Subject, in_training
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unasked
from gradscope.probes.tensors.shards import gathered

_CALLS = 1_000  # of root modules that are remembered in one step
_ITEMS = 1_000  # that are looked at in what a module holds besides its parameters


def watch_modules(tape: Tape) -> AbstractContextManager[None]:
    """Keep the stack of running modules of each thread.

    `Module.__call__` is wrapped rather than hooked: with a global forward hook torch takes another way through
    `_call_impl`, which shows in the user's traceback. Where the program's recursion leaves us no level, we step aside.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            try:
                aside = not tape.active or is_compiling()
            except RecursionError:
                aside = True
            if aside:
                return original(self, *args, **kwargs)
            spent = LEVELS.spend()
            local = tape.local.__dict__
            stack: list[ModuleMark] = local.setdefault("modules", [])
            try:
                mark = None if is_constant(self) else tape.mark(self)
                outermost = mark is not None and not stack
                if outermost:
                    local["root"] = tape.sites.here()
                    resume(tape)
            except RecursionError:
                mark, outermost = None, False
            if mark is not None:
                stack.append(mark)
            try:
                result = original(self, *args, **kwargs)
            except BaseException as error:
                try:
                    hide(error)
                except RecursionError:
                    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
                raise
            finally:
                if mark is not None:
                    stack.pop()
                if spent:
                    LEVELS.regain()
                if outermost:
                    tape.called()
                    site = local.pop("root", None)
            if outermost and mark is not None:
                _root_returned(tape, self, mark, args, kwargs, result, site)
            return result

        return call

    return patched(torch.nn.Module, "__call__", wrap)


def _root_returned(
    tape: Tape, module: torch.nn.Module, mark: ModuleMark, args: Any, kwargs: Any, result: Any, site: Site | None
) -> None:
    try:
        with unasked():
            unplaced = mark.root is mark and tape.roots.get(id(mark), (mark, site))[1] is None
            if mark.root is None and _is_held_unregistered(tape, module):
                pass  # it is a part of a module that is known, though not as torch knows parts
            elif (mark.root is None or unplaced) and peek_interpreter_stack() is None:
                add_root(tape, module, site)
            elif mark.root is None:
                # Inside a transform of torch.func a module holds what it was lent: its names are read later.
                tape.roots.setdefault(id(mark), (mark, site))
                mark.root = mark
            if site is not None and len(tape.step.calls) < _CALLS:
                inputs = tuple(_subjects(tape, (*args, *kwargs.values())))
                outputs = tuple(_subjects(tape, result if isinstance(result, (tuple, list)) else (result,)))
                given = tuple(tape.subject(tensor) for tensor in tensors((result,)))
                tape.step.calls.append(CallRecord(site, inputs, outputs, given))
        # A copy of FSDP's or DDP's would call the other ranks, which do not answer.
        if tape.check_calls is not None and torch.is_grad_enabled() and not hasattr(type(module), "_get_fsdp_state"):
            tape.check_calls(module.get_submodule("module") if is_replica(module) else module, args, kwargs)
    except Exception as error:
        tape.fail("module probe", error)


def _is_held_unregistered(tape: Tape, module: torch.nn.Module) -> bool:
    """Whether another module holds this one in a plain list, tuple or dict."""
    _, first = next(parameters_of(module), ("", None))
    subject = tape.seen(first) if first is not None else None
    return subject is not None and subject.registered == "attribute"


def _subjects(tape: Tape, values: Iterable[Any]) -> Iterator[Subject | dict[str, Subject] | None]:
    """One a value, so that places keep their meaning: None where it is no tensor and holds none."""
    for value in values:
        if is_a(value, torch.Tensor):
            yield tape.subject(value)
        elif type(value) in (list, tuple, dict):
            items = value.items() if type(value) is dict else enumerate(value)
            held = ((f"[{key!r}]", item) for key, item in items if is_a(item, torch.Tensor))
            yield {index: tape.subject(item) for index, item in itertools.islice(held, _ITEMS)} or None
        else:
            yield None


def add_root(tape: Tape, module: torch.nn.Module, site: Site | None, label: str | None = None) -> None:
    """Name everything below a module that no other known module contains."""
    mark = tape.mark(module)
    if label is not None:
        tape.labels[id(mark)] = label
    if mark.root is not None and mark.root is not mark:
        return
    known = tape.roots.get(id(mark))
    tape.roots[id(mark)] = mark, known[1] if known is not None and known[1] is not None else site
    name_module(tape, module, mark)


def name_roots(tape: Tape) -> None:
    """Read the names of all known roots again: modules may have changed since."""
    for mark, _ in list(tape.roots.values()):
        module = mark.ref()
        if module is not None and mark.root is mark:
            name_module(tape, module, mark)


def name_module(tape: Tape, root: torch.nn.Module, root_mark: ModuleMark) -> None:
    """Give every module below `root` its path, and every tensor that they hold its name and registration."""
    shards: dict[int, torch.Tensor] = {}
    for _, module in parts(root):
        for whole, shard in gathered(module):
            shards[id(whole)] = shard
            subject = tape.subject(whole)
            tape.gathered[subject.serial] = subject, tape.subject(shard)
    for path, module in _named_modules(root):
        if is_constant(module):
            continue
        mark = tape.mark(module)
        if mark is not root_mark and id(mark) in tape.roots:
            del tape.roots[id(mark)]  # a root that was called alone before is a part of this one
        path = ".".join(part for part in path.split(".") if part != _COMPILED)
        mark.path, mark.root, mark.training = path, root_mark, in_training(module)
        own = attributes(module)
        flag = own.get("requires_grad")
        mark.requires_grad = flag if isinstance(flag, bool) else None
        mark.awaits_all = is_replica(module) and not (module.find_unused_parameters or module.static_graph)
        mark.repeats = _repeats(module)
        prefix = path + "." if path else ""
        for name, parameter in registered(module, "_parameters"):
            if parameter is not None:
                _register(tape.keep(shards.get(id(parameter), parameter)), root_mark, prefix + name, "parameter")
        for name, buffer in registered(module, "_buffers"):
            if buffer is not None:
                _register(tape.keep(buffer), root_mark, prefix + name, "buffer")
        for name, value in own.items():
            if name not in _REGISTERS and type(value) not in _BARE:
                for place, tensor in _plain_tensors(tape, root, value, prefix + name):
                    if tape.subject(tensor).registered is None:
                        _register(tape.keep(tensor), root_mark, place, "attribute")
                        _place_in(type(module), tape.subject(tensor))


def _repeats(module: torch.nn.Module) -> int:
    """How often a container holds one module with parameters, where that is all it holds: `[layer] * n`."""
    if not is_a(module, (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)):
        return 0
    held = [part for _, part in registered(module, "_modules")]
    alike = len(held) > 1 and all(part is held[0] for part in held) and held[0] is not None
    return len(held) if alike and next(parameters_of(held[0]), None) is not None else 0


def _named_modules(root: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """`named_modules()` by the paths that the user wrote: what DDP wraps has the path of its wrapper."""
    written: dict[str, str] = {}  # of wrapped modules: path in torch, path as written
    for path, module in parts(root):
        inner = next((start for start in reversed(written) if f"{path}.".startswith(f"{start}.")), None)
        short = path if inner is None else (written[inner] + path[len(inner) :]).lstrip(".")
        if is_replica(module):
            written[f"{path}.module".lstrip(".")] = short
        yield short, module


def is_replica(module: torch.nn.Module) -> bool:
    """Whether a module is a DistributedDataParallel around the user's."""
    return is_a(module, torch.nn.parallel.DistributedDataParallel)


_COMPILED = "_orig_mod"  # where `torch.compile(module)` holds the module: its names stay those that the user gave
_REGISTERS = frozenset({"_parameters", "_buffers", "_modules"})
_BARE = frozenset({bool, int, float, str, type(None), OrderedDict})  # most attributes; modules keep hooks in the last


def _plain_tensors(tape: Tape, root: torch.nn.Module, value: Any, path: str) -> list[tuple[str, torch.Tensor]]:
    """Tensors that a module holds without having registered them, in plain lists, tuples, dicts and modules within.

    Of an object of the program's own class, as dataclasses are, and of what a function of its has captured, only what
    requires grad is told: most else is data.
    One that leads back to the root is no part of it but its owner, and a network in eval mode only measures.
    """
    found: list[tuple[str, torch.Tensor]] = []
    waiting: list[tuple[str, Any, bool]] = [(path, value, False)]
    seen, met = 0, set[int]()
    while waiting and seen < _ITEMS:
        path, value, own = waiting.pop()
        seen += 1
        inside: Iterable[tuple[str, Any]] = ()
        if is_a(value, torch.Tensor):
            if value.requires_grad or not own:
                found.append((path, value))
        elif is_a(value, torch.nn.Module):
            if own and value is root:
                return []
            if in_training(value) or not (own and in_training(root)):
                inside = [(f"{path}.{name}", parameter) for name, parameter in parameters_of(value)]
        elif type(value) in (list, tuple):
            inside = [(f"{path}[{place}]", item) for place, item in enumerate(value[:_ITEMS])]
        elif type(value) is dict and len(value) <= _ITEMS:
            inside = [(f"{path}[{key!r}]", item) for key, item in value.items() if is_a(key, (str, int))]
        elif is_a(value, (FunctionType, functools.partial)) and id(value) not in met:
            met.add(id(value))
            own, inside = True, [(f"{path}.{name}", held) for name, held in captured(value, tape.sites).items()]
        elif type(value) not in _BARE and id(value) not in met and is_own_class(type(value), tape.sites):
            met.add(id(value))
            own, inside = True, [(f"{path}.{name}", held) for name, held in attributes(value).items()]
        waiting += [(*item, own) for item in inside]
    return found


def _place_in(owner: type, subject: Subject) -> None:
    """What a module does not register was made where a constructor or a method of its owner made what holds it.

    Or where a function did that these called: the constructors of parts come only after it.
    """
    chain = subject.constructors
    methods = {name for kind in owner.__mro__ for name, member in vars(kind).items() if callable(member)}
    classes = {kind.__name__ for kind in owner.__mro__}
    for place, (code, _) in enumerate(chain):
        scope, _, name = f".{code.co_qualname}".rpartition(".")
        if scope.rpartition(".")[2] in classes and name in methods:
            makers = itertools.takewhile(lambda site: site[0].co_name != "__init__", chain[:place][::-1])
            subject.site = next(reversed([chain[place], *makers]))
            return


def _register(subject: Subject, root: ModuleMark, name: str, how: Any) -> None:
    # A tensor shared by two modules keeps the first name, as `named_parameters()` gives it.
    if subject.name is None or subject.name[0] is not root or subject.registered == "attribute":
        subject.name, subject.registered = (root, name), how
