"""Freed graphs: a backward runs into what an earlier one has freed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Backward, Crash, Help, Label, Run, Span, Tensor
from gradscope.graph.naming import expression, within, written_at
from gradscope.graph.refusals import refused_backward
from gradscope.graph.rewriting import Edits
from gradscope.graph.ties import Tie, freed_by_gradient, is_trained_otherwise, optimizers_behind, tie_of
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.mends.carried import (
    between_windows,
    detached_for_a_pass,
    detached_where_kept,
    detached_where_named,
    retained,
)


@rule("error", [Trouble.REFUSED])
def freed_graph(ask: Ask) -> Iterator[Claim[_Freed]]:
    """Backward runs into a graph that an earlier backward has freed.

    Backward frees what the operations saved as it goes. A tensor that was computed before it, and that a later loss
    uses again, leads the second backward into the freed part: a state carried on from step to step, a result computed
    once outside of the loop, an output that two losses share. Where the old gradient is not wanted, `.detach()` the
    tensor; where it is, add the losses up or compute it again.

    Bad:

        import torch
        from torch import nn

        cell = nn.RNNCell(4, 4)
        optimizer = torch.optim.SGD(cell.parameters(), lr=0.1)
        h = torch.zeros(8, 4)
        for _ in range(3):
            h = cell(torch.rand(8, 4), h)
            loss = h.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        cell = nn.RNNCell(4, 4)
        optimizer = torch.optim.SGD(cell.parameters(), lr=0.1)
        h = torch.zeros(8, 4)
        for _ in range(3):
            h = cell(torch.rand(8, 4), h.detach())
            loss = h.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_backward(ask, "freed graph")
    if refused is not None and ask(freed_by_gradient) is None:
        yield Claim(refused.backward.span, _Freed(*refused, tie_of(ask.run, refused.backward)))


@freed_graph.words
def _(told: Sequence[Claim[_Freed]], ask: Ask) -> Story:
    run = ask.run
    backward, crash, tie = told[0].evidence
    carried = tie.carried[0] if tie.carried else None
    name = next((tensor.name for tensor in tie.carried if tensor.name), None)
    said = f"`{name}`" if name is not None else "a tensor"
    first = tie.first
    span, caret = _place(run, backward, tie)
    labels = []
    made = carried.made if carried is not None else None
    if made is not None and made.line != (span.line if span is not None else None):
        labels.append(Label(made, f"{said} is computed here, with its graph"))
    if first is not None and first.span is not None and first.span != span:
        labels.append(Label(first.span, "the first backward frees the graph behind it"))
    if tie.user is not None and tie.user.span is not None and tie.user.span.line not in _lines(span, labels):
        labels.append(Label(tie.user.span, f"{said} is used again here"))
    if backward.span is not None and backward.span not in [span, *(label.span for label in labels)]:
        labels.append(Label(backward.span, f"this backward comes to the freed graph: torch raises {crash.type}"))
    if carried is not None and carried.id in {run.holder.get(root) for root in backward.roots}:
        message = f"backward runs twice through the graph of {said}, which the first pass has freed"
    else:
        message = f"{said} leads this backward into a graph that an earlier backward has freed"
    return Story(
        message,
        span,
        caret,
        tuple(dict.fromkeys([*(tensor.name for tensor in tie.carried if tensor.name), *_kept_as(run, span, backward)])),
        tuple(labels),
        (),
        (
            Help("where its old gradient is not wanted, use it as `.detach()`", _apart(ask, told[0].evidence, span)),
            Help(_TOGETHER, _kept_for_both(ask, backward, first)),
        ),
        raised=True,
    )


_TOGETHER = "where it is, call backward once on the sum of the losses, or compute it again for each backward"


def _apart(ask: Ask, freed: _Freed, span: Span | None) -> Edits:
    """The edits that detach what ties the passes together, where that leaves nothing untrained."""
    run, (backward, _, _) = ask.run, freed
    tie = tie_of(run, backward, whole=True)
    first = tie.first
    if first is not None and first.span == span:
        step = next((step for step in run.steps if first in step.backwards), None)
        others = optimizers_behind(run, tie)
        if step is None or step.optimizer is None or not others or step.optimizer in others:
            return ()
        return detached_for_a_pass(ask, first.span, [tensor.name or "" for tensor in tie.carried])
    state = between_windows(ask, tie, backward)
    if state:
        return state
    if not is_trained_otherwise(run, backward, tie):
        return ()
    found = [_one_apart(ask, backward, tie, carried) for carried in tie.carried]
    return tuple(dict.fromkeys(edit for edits in found for edit in edits)) if all(found) else ()


def _one_apart(ask: Ask, backward: Backward, tie: Tie, carried: Tensor) -> Edits:
    """One of several carried tensors, detached at the line that keeps it.

    What another function makes is detached by who calls that: others may call it for what they train.
    """
    taker = tie.takers.get(carried.id, tie.user)
    kept = _kept_by(ask.run, replace(tie, user=taker, carried=(carried,)), carried)
    user = taker.span if taker is not None else None
    made = carried.made
    if kept is not None:
        return detached_where_kept(ask, kept)
    if made is not None and user is not None and (made.file, made.function) == (user.file, user.function):
        return detached_where_kept(ask, made)
    return detached_where_named(ask, backward.span, carried.name or "")


def _kept_for_both(ask: Ask, backward: Backward, first: Backward | None) -> Edits:
    """Of two passes that add up to one step, the first may keep the graph for the second."""
    if first is None or not any(first in s.backwards and backward in s.backwards for s in ask.run.steps):
        return ()
    return retained(ask, first.span)


def _kept_as(run: Run, span: Span | None, backward: Backward) -> tuple[str, ...]:
    """What the line that keeps the tensors calls them, or the container that they lie in."""
    passes = {other.span for step in run.steps for other in step.backwards} | {backward.span}
    return written_at(span, run.sources) if span not in passes else ()


def _lines(span: Span | None, labels: list[Label]) -> set[int]:
    return {place.line for place in (span, *(label.span for label in labels)) if place is not None}


class _Freed(NamedTuple):
    """A backward that came to a freed graph, the exception, and what led it there."""

    backward: Backward
    crash: Crash
    tie: Tie


# --- where the reader must look --------------------------------------------------------------------------------------


def _place(run: Run, backward: Backward, tie: Tie) -> tuple[Span | None, str]:
    """The line that ties the passes together.

    Two backwards that follow each other: the first, which frees. A pass that meets its own traces of the turn before:
    the line that carries the tensor over.
    """
    first, carried = tie.first, tie.carried[0] if tie.carried else None
    if first is not None and first.span != backward.span and not _ran_before(run, backward):
        return first.span, "this frees the graph that the second backward needs"
    if carried is None:
        return backward.span, "the graph behind it was freed by an earlier backward"
    kept = _kept_by(run, tie, carried)
    if kept is not None:
        return kept, "kept here with its graph, which the first backward frees"
    return carried.made or backward.span, "made here with its graph, which the first backward frees"


def _ran_before(run: Run, backward: Backward) -> bool:
    return any(b.span == backward.span and not b.failed for step in run.steps for b in step.backwards)


def _kept_by(run: Run, tie: Tie, carried: Tensor) -> Span | None:
    """The line that gives the tensor the name, or the place in a container, under which the second pass finds it."""
    made = carried.made
    user = tie.user.span if tie.user is not None else None
    came = next((call.span for step in run.steps for call in step.calls if carried.id in call.outputs), None)
    if made is None or user is None:
        return came
    named = {name for place in (made, came) if place is not None for name in _names_given(run, place)}
    wanted = _operands(run, user)
    assignments = [
        (target, node)
        for node in _statements(run, user.file)
        if isinstance(node, ast.Assign)
        for target in _targets(node)
    ]
    for node in _statements(run, user.file):
        if _keeps(node, wanted, named) and _is_same_variable(run, node, user):
            return _span_of(user.file, node)
    if any(target in wanted and within(made, _span_of(user.file, node)) for target, node in assignments):
        return came  # where it is made it gets its name
    nearest = came or made
    if (nearest.file, nearest.function) == (user.file, user.function) or (came is not None and came.file != user.file):
        return came
    # Made in another function: a line that only calls that function gives the name.
    busy = {(op.span.file, op.span.line) for step in run.steps for op in step.operations if op.span is not None}
    calls = [
        (target, _span_of(user.file, node))
        for target, node in assignments
        if target in wanted and _is_of_calls(node.value) and (user.file, node.lineno) not in busy
    ]
    called = {(tensor.name or "").partition("[")[0] for tensor in tie.carried}
    # Another operand of the user may have been given its name by the same function, after the first pass.
    own = [(target, span) for target, span in calls if target in called] or calls
    above = [span for _, span in own if span.line < user.line]
    return above[-1] if above else came


def _is_of_calls(value: ast.expr) -> bool:
    """Whether calls give a value, or what it is a part or a list of: `f(x)`, `f(x)[-1]`, `[f(x) for x in xs]`."""
    while isinstance(value, (ast.Subscript, ast.Attribute, ast.ListComp)):
        value = value.elt if isinstance(value, ast.ListComp) else value.value
    return isinstance(value, ast.Call)


def _is_same_variable(run: Run, node: ast.stmt, user: Span) -> bool:
    """Whether a statement puts something into what the user takes, and into no local variable of another function.

    A line belongs to the function of the nearest line above at which an operation ran.
    """
    target = node.targets[0] if isinstance(node, ast.Assign) else node.value if isinstance(node, ast.Expr) else None
    if isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute):
        target = target.func.value
    while isinstance(target, ast.Subscript):
        target = target.value
    if not isinstance(target, ast.Name):
        return True
    spans = (operation.span for step in run.steps for operation in step.operations)
    above = [span for span in spans if span is not None and span.file == user.file and span.line <= node.lineno]
    nearest = max(above, key=lambda span: span.line, default=None)
    return nearest is None or nearest.function == user.function or nearest.function == "<module>"


def _operands(run: Run, span: Span) -> set[str]:
    """The variables and attributes in an expression, without the functions that it calls."""
    node = expression(span, run.sources)
    if node is None:
        return set()
    called = {id(part.func) for part in ast.walk(node) if isinstance(part, ast.Call)}
    parts = (part for part in ast.walk(node) if isinstance(part, (ast.Name, ast.Attribute)))
    return {ast.unparse(part) for part in parts if id(part) not in called}


def _keeps(node: ast.stmt, wanted: set[str], named: set[str]) -> bool:
    """Whether a statement puts one of these names away: `self.h = h`, `memory[i] = h`, `states.append(h)`."""
    if isinstance(node, ast.Assign):
        places = [target.value if isinstance(target, ast.Subscript) else target for target in node.targets]
        return ast.unparse(node.value) in named and any(ast.unparse(place) in wanted for place in places)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        call = node.value
        into = call.func.value if isinstance(call.func, ast.Attribute) else None
        kept = any(ast.unparse(argument) in named for argument in call.args)
        return kept and into is not None and ast.unparse(into) in wanted
    return False


def _names_given(run: Run, span: Span) -> list[str]:
    """What the line at a span assigns to."""
    node = _statement(run.sources.get(span.file, {}).get(span.line, ""), span.line)
    return _targets(node) if isinstance(node, ast.Assign) else []


def _targets(node: ast.Assign) -> list[str]:
    found: list[str] = []
    for target in node.targets:
        parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
        found += [ast.unparse(part) for part in parts]
    return found


def _statements(run: Run, file: str) -> Iterator[ast.stmt]:
    for number, text in sorted(run.sources.get(file, {}).items()):
        node = _statement(text, number)
        if node is not None:
            yield node


def _statement(text: str, line: int) -> ast.stmt | None:
    """The simple statement that a line is; None for parts of a longer one."""
    try:
        parsed = ast.parse(text.strip()).body
    except SyntaxError:
        return None
    if len(parsed) != 1:
        return None
    node = parsed[0]
    indent = len(text) - len(text.lstrip())
    node.lineno, node.end_lineno = line, line
    node.col_offset += indent
    node.end_col_offset = (node.end_col_offset or 0) + indent
    return node


def _span_of(file: str, node: ast.stmt) -> Span:
    return Span(file, node.lineno, node.col_offset + 1, node.lineno, (node.end_col_offset or 0) + 1)
