"""Where gradients are lost inside a region that `torch.compile` compiles, as the graph that Dynamo made of it tells.

Each node of the graph carries an example of its result, which knows whether it requires grad, and the place in the
program that it comes from. An argument whose data reaches a result of the region, and whose gradient comes back from
none, is lost inside: at the nodes that take something with its history and give something without any.
"""

from __future__ import annotations

import ast
import linecache
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gradscope.probes.forward.callsites import USER, CallSites, Site
from gradscope.probes.program.sources import tree_of

_MOST = 20_000  # nodes of a graph that is looked at
# After these an example no longer tells what its node gave.
_CHANGES = frozenset({"detach_", "requires_grad_", "set_", "set_data"})
_FRAME = re.compile(
    r'  File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)\n'
    r"(?:    .+\n(?:    (?P<carets>[ ~^]+)\n)?)?"
)


@dataclass(frozen=True, slots=True)
class InnerCut:
    """A call inside a region at which gradients are lost; `arguments` are the places of the region's that lose them."""

    function: Any
    site: Site
    grad_enabled: bool
    shape: tuple[int, ...]
    arguments: tuple[int, ...]


def cuts_in(graph: Any, sites: CallSites) -> tuple[InnerCut, ...]:
    """The calls of a graph at which the gradients of whole arguments are lost; none where that is not sure.

    Sets of arguments are bits of a number here.
    """
    nodes = list(graph.nodes)
    if len(nodes) > _MOST or any(_name(node.target) in _CHANGES for node in nodes):
        return ()
    touched: dict[Any, int] = {}
    alive: dict[Any, int] = {}
    lost: dict[Any, tuple[int, bool]] = {}
    places, grad_enabled, reached, carried = 0, True, 0, 0
    for node in nodes:
        before, living = _union(touched, node), _union(alive, node)
        if node.op == "placeholder":
            if _has_history(node):
                touched[node] = alive[node] = 1 << places
            places += 1
        elif node.op == "output":
            reached, carried = before, living
        elif node.target is torch._C._set_grad_enabled:
            grad_enabled = bool(node.args[0])
        elif before and _examples(node):
            touched[node], alive[node] = before, living if _has_history(node) else 0
            if living and not alive[node]:
                lost[node] = living, grad_enabled
    gone = reached & ~carried
    useful: set[Any] = set()
    for node in reversed(nodes):
        if node.op == "output" or node in useful:
            useful.update(node.all_input_nodes)
    cuts = []
    for node, (living, enabled) in lost.items():
        site = _site(node, sites)
        if node not in useful or not living & gone:
            continue
        if site is None or isinstance(node.target, torch._ops.HigherOrderOperator):
            return ()
        arguments = tuple(place for place in range(places) if living & gone & 1 << place)
        cuts.append(InnerCut(_function(node), site, enabled, _shape(node), arguments))
    return tuple(cuts)


def _union(found: dict[Any, int], node: Any) -> int:
    bits = 0
    for source in node.all_input_nodes:
        bits |= found.get(source, 0)
    return bits


def _examples(node: Any) -> list[torch.Tensor]:
    """The tensors among the results of a node: sizes and numbers are no way of a gradient."""
    value = node.meta.get("example_value")
    values: Iterable[Any] = value if isinstance(value, (tuple, list)) else (value,)
    return [one for one in values if isinstance(one, torch.Tensor)]


def _has_history(node: Any) -> bool:
    return any(example.requires_grad for example in _examples(node))


def _shape(node: Any) -> tuple[int, ...]:
    shape = tuple(_examples(node)[0].shape)
    return shape if all(type(size) is int for size in shape) else ()


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


def _function(node: Any) -> Any:
    """The torch function that a node calls; for an item of its results, the one that gave them."""
    if node.op == "call_method":
        return getattr(torch.Tensor, node.target, f"Tensor.{node.target}")
    if node.target is operator.getitem and isinstance(node.args[0], torch.fx.Node) and len(_examples(node.args[0])) > 1:
        return _function(node.args[0])
    return "Tensor.data" if _name(node.target) == "_get_data_attr" else node.target


def _site(node: Any, sites: CallSites) -> Site | None:
    """The user's innermost line that a node comes from, as the site of an expression there."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    frame = next((frame for frame in reversed(frames) if sites.kind(frame["file"]) == USER), None)
    if frame is None:
        return None
    file, line, carets = frame["file"], int(frame["line"]), frame["carets"]
    columns = _columns_of(_function(node), file, line)
    text = linecache.getline(file, line)
    if columns is None and carets is not None and text.isascii():
        # These may be those of a larger expression, in which Dynamo came to need the result.
        indent = len(text) - len(text.lstrip())
        columns = indent + len(carets) - len(carets.lstrip()), indent + len(carets.rstrip())
    return _expression(file, line, *(columns or (0, 0)), frame["name"])


def _columns_of(function: Any, file: str, line: int) -> tuple[int, int] | None:
    """Where a line names a function, if it does so once and ends there."""
    tree = tree_of(file)
    if tree is None:
        return None
    name = _name(function).rpartition(".")[2]
    found = []
    for node in ast.walk(tree):
        named = node.func if isinstance(node, ast.Call) else node if name == "data" else None
        called = named.attr if isinstance(named, ast.Attribute) else named.id if isinstance(named, ast.Name) else ""
        if called == name and isinstance(node, ast.expr) and node.lineno <= line <= (node.end_lineno or 0):
            found.append(node)
    if len(found) != 1 or not found[0].lineno == found[0].end_lineno == line:
        return None
    return found[0].col_offset, found[0].end_col_offset or 0


def _expression(file: str, line: int, start: int, end: int, function: str) -> Site:
    """A code object whose first expression lies at this place."""
    name = ast.Name("_", ast.Load(), lineno=line, end_lineno=line, col_offset=start, end_col_offset=end)
    code = compile(ast.Expression(name), file, "eval").replace(co_name=function, co_qualname=function)
    places = list(code.co_positions())
    wanted = (line, line, start, end)
    return code, 2 * next((place for place, found in enumerate(places) if found == wanted), 0)
