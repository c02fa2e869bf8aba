"""The line that keeps results alive: where the program puts them into a list or a dict that stays."""

from __future__ import annotations

import ast
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch

from gradscope.graph.facts import Span
from gradscope.graph.naming import ADDING
from gradscope.probes.forward.callsites import USER, CallSites
from gradscope.probes.program.scopes import attributes, is_own_class, variables_of
from gradscope.probes.program.sources import definition_of, tree_of

_CONTAINERS = (list, dict, deque, set, defaultdict, OrderedDict)
_ITEMS = 10_000  # of a container that is looked into
_DEPTH = 3  # of containers and objects in one another


class _Holder(NamedTuple):
    """A container by the name of the variable or attribute that leads to it; `key` where that holds it by a key."""

    name: str
    key: str | None
    in_attribute: bool


def keeper(kept: Collection[torch.Tensor], sites: CallSites) -> Span | None:
    """The one line that adds to what holds several of these tensors; None where that is not sure."""
    wanted = {id(tensor) for tensor in kept}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if sites.kind(frame.f_code.co_filename) == USER:
            holder = _holder(variables_of(frame), wanted, sites)
            if holder is not None:
                return _line_that_adds(holder, frame.f_code, sites)
        frame = frame.f_back
    return None


def _holder(variables: Mapping[str, Any], wanted: set[int], sites: CallSites) -> _Holder | None:
    """The container among variables, and within what they hold, that holds several wanted tensors."""
    waiting = [(_Holder(name, None, False), value, _DEPTH) for name, value in variables.items()]
    seen: set[int] = set()
    while waiting:
        holder, value, depth = waiting.pop()
        if id(value) in seen or not depth:
            continue
        if type(value) in _CONTAINERS and len(value) <= _ITEMS:
            seen.add(id(value))
            items = list(value.items() if isinstance(value, dict) else ((None, item) for item in value))
            flat = [part for _, item in items for part in _parts(item, sites)]
            if len(wanted.intersection(map(id, flat))) >= 2:
                return holder
            waiting += [
                (holder._replace(key=key if isinstance(key, str) else None), item, depth - 1)
                for key, item in items
                if type(item) in _CONTAINERS
            ]
        elif is_own_class(type(value), sites):
            seen.add(id(value))
            waiting += [(_Holder(key, None, True), item, depth - 1) for key, item in attributes(value).items()]
    return None


def _parts(item: Any, sites: CallSites) -> Collection[Any]:
    """What an entry of a container consists of: of a record (a tuple, a dict, a dataclass), its fields."""
    if isinstance(item, tuple):
        return tuple(tuple.__iter__(item))
    if type(item) is dict:
        return tuple(item.values())
    return tuple(attributes(item).values()) if is_own_class(type(item), sites) else (item,)


def _line_that_adds(holder: _Holder, code: CodeType, sites: CallSites) -> Span | None:
    """The only place that adds to a container: within a function, or anywhere where it is an attribute's."""
    own = [file for file, kind in sites.kinds.items() if kind == USER]
    found = []
    for file in own if holder.in_attribute else [code.co_filename]:
        tree = tree_of(file)
        if tree is not None:
            within = tree if holder.in_attribute else definition_of(code) or tree
            found += [(file, node) for node in _additions(within, holder)]
    if len({(file, node.lineno) for file, node in found}) != 1:
        return None
    file, node = found[0]
    return sites.span_of(file, node)


def _additions(tree: ast.AST, holder: _Holder) -> Iterator[ast.expr | ast.stmt]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=receiver, attr=method)) if method in ADDING:
                pass
            case ast.Assign(targets=[ast.Subscript(value=receiver)]) | ast.AugAssign(target=receiver):
                pass
            case _:
                continue
        if _leads_to(receiver, holder):
            yield node


def _leads_to(node: ast.expr, holder: _Holder) -> bool:
    while isinstance(node, ast.Subscript):
        if (
            isinstance(node.slice, ast.Constant)
            and isinstance(node.slice.value, str)
            and node.slice.value != holder.key
        ):
            return False
        node = node.value
    if holder.in_attribute:
        return isinstance(node, ast.Attribute) and node.attr == holder.name
    return isinstance(node, ast.Name) and node.id == holder.name
