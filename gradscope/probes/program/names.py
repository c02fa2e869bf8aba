"""Names of plain tensors, read from the source of the lines that made or used them.

What cannot be matched for certain gets no name: an expression counts only where its operands and the tensors
that the operation took agree in number.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch.overrides import resolve_name

from gradscope.graph.naming import operands_of, plain_name
from gradscope.probes.forward.callsites import CallSites, Site
from gradscope.probes.program.scopes import is_a
from gradscope.probes.program.sources import tree_of
from gradscope.probes.records import OperationRecord, StepRecord, Subject
from gradscope.probes.tape import Tape

_Position: TypeAlias = tuple[int, int, int, int]
_ITEMS = 1_000


class _Source:
    """The expressions of one file by their exact position, and the parent of each."""

    def __init__(self, file: str) -> None:
        self.nodes: dict[_Position, ast.AST] = {}
        self.parents: dict[ast.AST, ast.AST] = {}
        tree = tree_of(file)
        if tree is None:
            return
        waiting: list[ast.AST] = [tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, (ast.expr, ast.AugAssign)):
                end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
                self.nodes.setdefault((node.lineno, node.col_offset, end_line, end_column), node)
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
                waiting.append(child)


class SourceNames:
    """Answers, for a site, what the results are assigned to and what the operands are called."""

    def __init__(self, sites: CallSites) -> None:
        self.sites = sites
        self._sources: dict[str, _Source] = {}
        self._found: dict[Site, tuple[_Source, ast.AST] | None] = {}
        # Steps come by the same lines again and again.
        self.targets = functools.cache(self._targets)
        self.operands = functools.cache(self._operands)
        self.is_call_of = functools.cache(self._is_call_of)

    def _node(self, site: Site) -> tuple[_Source, ast.AST] | None:
        if site not in self._found:
            file = site[0].co_filename
            source = self._sources.get(file)
            if source is None:
                source = self._sources[file] = _Source(file)
            position = self.sites.position(site)
            node = source.nodes.get(position) if position else None
            self._found[site] = (source, node) if node is not None else None
        return self._found[site]

    def _targets(self, site: Site, count: int) -> list[str | None]:
        """What the `count` results of the expression at a site are assigned to."""
        found = self._node(site)
        if found is None:
            return [None] * count
        source, node = found
        if isinstance(node, ast.AugAssign):
            return [plain_name(node.target)] * count
        parent = source.parents.get(node)
        target: ast.AST | None = None
        if isinstance(parent, ast.Assign) and parent.value is node:
            target = parent.targets[0]
        elif isinstance(parent, (ast.AnnAssign, ast.NamedExpr)) and parent.value is node:
            target = parent.target
        if isinstance(target, (ast.Tuple, ast.List)):
            names = [plain_name(element) for element in target.elts]
            return names if len(names) == count else [None] * count
        return [plain_name(target)] * count if count == 1 else [None] * count

    def _is_call_of(self, site: Site, function: str) -> bool:
        """Whether the expression at a site is no call at all, or one of this very function."""
        found = self._node(site)
        if found is None or not isinstance(found[1], ast.Call):
            return True
        called = found[1].func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        return name.strip("_") == function.rpartition(".")[2].strip("_")

    def _operands(self, site: Site) -> list[str | None]:
        """The operands of the expression at a site in their order; numbers and strings are left out."""
        found = self._node(site)
        if found is None:
            return []
        return [plain_name(operand) for operand in operands_of(found[1])]

    def receiver(self, site: Site) -> str | None:
        """What a call at a site is called on: `model` in `model(x)` and in `functional_call(model, ...)`."""
        found = self._node(site)
        if found is None or not isinstance(found[1], ast.Call):
            return None
        called = plain_name(found[1].func)
        if called is not None and called.rpartition(".")[2] == "functional_call" and found[1].args:
            return plain_name(found[1].args[0])
        return called

    def called_on(self, site: Site, method: str) -> str | None:
        """The source of what this method is called on; None where the line calls something else."""
        found = self._node(site)
        if found is None or not isinstance(found[1], ast.Call) or not isinstance(found[1].func, ast.Attribute):
            return None
        if found[1].func.attr != method:
            return None
        text = ast.unparse(found[1].func.value)
        return text if len(text) <= 40 else None

    def elements(self, site: Site) -> list[str | None]:
        """The names in the list or tuple that is the first argument of the call at a site."""
        found = self._node(site)
        if found is None or not isinstance(found[1], ast.Call):
            return []
        values = [*found[1].args, *(keyword.value for keyword in found[1].keywords)]
        first = values[0] if values else None
        return [plain_name(element) for element in first.elts] if isinstance(first, (ast.List, ast.Tuple)) else []


def names_in(namespace: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that the variables of a namespace hold, directly or in a plain list, tuple or dict."""
    for name, value in list(namespace.items()):
        if name.startswith("_") or is_a(value, ModuleType):
            continue
        if is_a(value, torch.Tensor):
            yield name, value
        elif type(value) in (list, tuple) and len(value) <= _ITEMS:
            yield from ((f"{name}[{place}]", item) for place, item in enumerate(value) if is_a(item, torch.Tensor))
        elif type(value) is dict and len(value) <= _ITEMS:
            yield from (
                (f"{name}[{key!r}]", item)
                for key, item in value.items()
                if is_a(item, torch.Tensor) and is_a(key, (str, int))
            )


def source_names(tape: Tape, steps: Sequence[StepRecord]) -> dict[int, str]:
    """Names by the subject's number, from assignments first and from uses after them."""
    source = SourceNames(tape.sites)
    assigned: dict[int, str] = {}
    used: dict[int, str] = {}
    for step in steps:
        for operation, following in zip_longest(step.operations, step.operations[1:]):
            if operation.site is not None:
                # Of the operations that one expression runs inside a library, the last makes its result.
                last = following is None or following.site != operation.site
                _from_operation(source, operation, last, assigned, used)
        for call in step.calls:
            _take(assigned, call.outputs, source.targets(call.site, len(call.outputs)))
            arguments = source.operands(call.site)
            if len(arguments) == len(call.inputs):
                _take(used, call.inputs, arguments)
        for backward in step.backwards:
            # What was made by the call itself is none of the user's: `accelerator.backward(loss)` divides the loss.
            if backward.site is not None and len(backward.roots) == 1 and backward.roots[0][1].site != backward.site:
                name = source.called_on(backward.site, "backward")
                if name is not None and name not in ("torch.autograd", "torch", "autograd"):
                    used.setdefault(backward.roots[0][1].serial, name.removeprefix("self."))
    for optimizer in tape.optimizers:
        if optimizer.site is not None:
            elements = source.elements(optimizer.site)
            if len(elements) == len(optimizer.subjects):
                _take(used, list(optimizer.subjects.values()), elements)
    return used | assigned


def _from_operation(
    source: SourceNames, operation: OperationRecord, last: bool, assigned: dict[int, str], used: dict[int, str]
) -> None:
    assert operation.site is not None
    if operation.outputs:
        own = [value[1] for value in operation.outputs]
        # A call like `self.fc = nn.Linear(4, 4)` makes leaves on the way that are not what is assigned.
        named = source.is_call_of(operation.site, function_name(operation.function))
        if named or (last and not own[0].leaf):
            _take(assigned, own, source.targets(operation.site, len(own)))
    else:
        named = source.is_call_of(operation.site, function_name(operation.function))
    operands = source.operands(operation.site)
    taken = [value[1] for value in operation.inputs]
    if operation.function == "nn.Parameter" and operation.failed:
        _take(used, taken, source.targets(operation.site, 1))
    elif operation.function is torch.Tensor.__setitem__:
        _take(used, taken[:1], operands)
    elif named and len(operands) == len(taken) and operation.module is None:
        _take(used, taken, operands)


def _take(
    names: dict[int, str], subjects: Sequence[Subject | dict[str, Subject] | None], found: Sequence[str | None]
) -> None:
    if not any(found):
        return
    for subject, name in zip(subjects, found, strict=False):
        if isinstance(subject, dict):
            _take(names, list(subject.values()), [f"{name}{index}" if name else None for index in subject])
        elif subject is not None and name is not None and not subject.wrapper:
            names.setdefault(subject.serial, name)


_PUBLIC: dict[Any, str] = {}
# torch changes the filters of warnings while it looks up a name, and Python then shows warnings once more.
_listed: Callable[[Any], str | None] = inspect.unwrap(resolve_name)
_listed(torch.sin)  # the list is made at the first look-up, with other filters again: better before the program


def function_name(function: Any) -> str:
    """The public name of a torch function without the leading `torch.`.

    The names that torch lists are kept: a look-up costs more than many an operation.
    """
    if isinstance(function, str):
        return function
    known = _PUBLIC.get(function)
    if known is not None:
        return known
    listed = _listed(function)
    name = _without_torch(function, listed)
    if listed is not None:
        _PUBLIC[function] = name
    return name


def _without_torch(function: Any, listed: str | None) -> str:
    if function is torch.mm:
        return "mm"  # torch also lists it as `spmm`, and finds that name first
    if isinstance(function, torch._ops.OpOverload):
        return str(function)
    if function is torch.autograd.grad:
        return "autograd.grad"
    name = str(listed or getattr(function, "__name__", repr(function)))
    name = name.removeprefix("torch.")
    for ending, kept in ((".__get__", ""), (".__set__", " =")):
        if name.endswith(ending):
            return name.removesuffix(ending) + kept
    return name
