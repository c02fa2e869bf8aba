"""The backward of custom autograd Functions: what the user's code is given and what it returns."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.compiler import is_compiling

from gradscope.graph.facts import CustomBackward, Span, WrongValue
from gradscope.probes.backward.failing import identity
from gradscope.probes.backward.symptoms import symptom_of
from gradscope.probes.forward.callsites import USER, CallSites
from gradscope.probes.program.sources import Definition, definition_of
from gradscope.probes.program.tracebacks import hidden
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.tensors.shards import values_of

_LOOKS = 16  # passes of a backward that ignores its upstream gradient in which values are read
# What these tell of a tensor does not depend on its values.
_SHAPES = frozenset(
    {
        "shape", "dtype", "device", "layout", "size", "dim", "ndim", "numel", "nelement", "stride", "is_cuda",
        "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "requires_grad", "is_contiguous", "type",
    }
)  # fmt: skip
_ASKING = frozenset({"len", "isinstance", "type"})


@dataclass(slots=True)
class CustomRecord:
    """What was seen of the backward of one Function, by its code: its class may be made anew in each call."""

    name: str
    code: CodeType
    reads_upstream: bool
    needed: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    returned: int | None = None
    passes: int = 0
    upstream_is_one: bool = True
    zero: bool = True
    complained: bool = False
    raised: tuple[int, type, str] | None = None  # the latest exception that came out of it


def watch_custom_backwards(tape: Tape) -> AbstractContextManager[None]:
    """See what the engine hands to a custom backward and what comes out.

    The engine enters each custom node through `BackwardCFunction.apply`, which looks the user's function up.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def apply(self: Any, *gradients: Any) -> Any:
            if not tape.active or is_compiling():
                return original(self, *gradients)
            record = _entered(tape, self, gradients)
            try:
                with hidden:
                    result = original(self, *gradients)
            except Exception as error:
                if record is not None:
                    _raised(record, self, error)
                raise
            if record is not None:
                _returned(tape, record, self, result)
            return result

        return apply

    return patched(BackwardCFunction, "apply", wrap, always=True)


def complained(tape: Tape) -> None:
    """The engine has refused a backward over what a custom one returned: the latest, for it checks at once."""
    if tape.custom_entered is not None:
        tape.custom_entered.complained = True


def backward_code(tape: Tape, function: Any) -> CodeType | None:
    """The code of a Function's backward where that is the user's; of its forward where it has none."""
    base = torch.autograd.Function
    user = inspect.unwrap(function.vjp if function.vjp is not base.vjp else function.backward)
    if user is base.backward:
        user = inspect.unwrap(function.forward)  # there is none: torch is about to say so
    code: CodeType | None = getattr(user, "__code__", None)
    return code if code is not None and tape.sites.kind(code.co_filename) == USER else None


def _entered(tape: Tape, node: Any, gradients: tuple[Any, ...]) -> CustomRecord | None:
    try:
        function = node._forward_cls
        code = None if tape.local.__dict__.get("checking") else backward_code(tape, function)
        if code is None:
            return None
        record = tape.customs.get(code)
        if record is None:
            record = tape.customs[code] = CustomRecord(function.__name__, code, _reads_upstream(code))
        tape.custom_entered = record
        record.passes += 1
        if not record.reads_upstream and record.passes <= _LOOKS:
            with unobserved():
                for gradient in gradients:
                    if isinstance(gradient, torch.Tensor) and record.upstream_is_one:
                        values = values_of(gradient)
                        record.upstream_is_one = values is not None and bool((values == 1).all())
        return record
    except Exception as error:
        tape.fail("custom function probe", error)
        return None


def _raised(record: CustomRecord, node: Any, error: Exception) -> None:
    """An exception leaves it, and is compared at the end with the one that ends the program.

    One that says how the backward cannot even be called is no doing of its code.
    """
    if symptom_of(error) != "custom backward":
        record.raised = identity(error)
        _count_needs(record, node.needs_input_grad)


def _count_needs(record: CustomRecord, needs: Sequence[bool]) -> None:
    missing = len(needs) - len(record.needed)
    record.needed += [0] * missing
    record.given += [0] * missing
    for place, need in enumerate(needs):
        record.needed[place] += need


def _returned(tape: Tape, record: CustomRecord, node: Any, result: Any) -> None:
    try:
        results = result if isinstance(result, tuple) else (result,)
        record.returned = None if result is None else len(results)
        needs = node.needs_input_grad
        _count_needs(record, needs)
        for place, need in enumerate(needs):
            if need:
                record.given[place] += place < len(results) and results[place] is not None
        if not record.reads_upstream and record.passes <= _LOOKS and record.zero:
            with unobserved():
                record.zero = not any(isinstance(value, torch.Tensor) and _may_be_some(value) for value in results)
    except Exception as error:
        tape.fail("custom function probe", error)


def _may_be_some(gradient: torch.Tensor) -> bool:
    """Whether a gradient is not known to be zero."""
    values = values_of(gradient)
    return values is None or bool(values.any())


# --- what the code of a backward does, read from its source -------------------------------------------------------


def _reads_upstream(code: CodeType) -> bool:
    """Whether a backward makes any use of the values of its upstream gradients; true where that cannot be told."""
    definition = definition_of(code)
    if definition is None:
        return True
    arguments = definition.args
    names = {argument.arg for argument in [*arguments.posonlyargs, *arguments.args][1:]}
    names.update(argument.arg for argument in (arguments.vararg, arguments.kwarg) if argument is not None)
    if not names:
        return True
    parents = {child: node for node in ast.walk(definition) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(definition):
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        if node.id in ("locals", "vars", "super"):
            return True
        if node.id in names and not _asks_for_no_values(node, parents[node]):
            return True
    return False


def _asks_for_no_values(name: ast.Name, parent: ast.AST) -> bool:
    """Whether a use of a tensor asks for its shape, type or presence only."""
    if isinstance(parent, ast.Attribute):
        return parent.attr in _SHAPES
    if isinstance(parent, ast.Call) and name in parent.args[:1]:
        function = parent.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        return called.endswith("_like") or called in _ASKING
    return isinstance(parent, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in parent.ops)


def custom_backwards(tape: Tape) -> Iterator[CustomBackward]:
    """The facts on all custom backwards that the engine has entered."""
    for record in tape.customs.values():
        definition = definition_of(record.code)
        yield CustomBackward(
            record.name,
            _span(tape.sites, record.code, definition),
            tuple(_returns(tape.sites, record.code, definition)),
            tape.places.get(record.name, ()),
            tuple(record.needed),
            tuple(record.given),
            record.returned,
            record.reads_upstream,
            record.upstream_is_one,
            record.zero,
            record.complained,
            record.raised is not None and record.raised == tape.ended_by,
            tuple(WrongValue(w.place, w.given, w.slope) for w in tape.wrong_backwards.get(record.code, ())),
        )


def _span(sites: CallSites, code: CodeType, definition: Definition | None) -> Span:
    """The head of a definition: `def backward`."""
    file = sites.name(code.co_filename)
    if definition is None:
        return Span(file, code.co_firstlineno, function=code.co_qualname)
    line, column = definition.lineno, definition.col_offset + 1
    return Span(file, line, column, line, column + len("def ") + len(definition.name), code.co_qualname)


def _returns(sites: CallSites, code: CodeType, definition: Definition | None) -> Iterator[Span]:
    """The return statements of a definition itself, not of functions within."""
    waiting: list[ast.AST] = list(definition.body) if definition is not None else []
    found: list[ast.Return] = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return):
            found.append(node)
        elif not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)
    for node in sorted(found, key=lambda node: node.lineno):
        yield replace(sites.span_of(code.co_filename, node), function=code.co_qualname)
