"""Memory: graphs that grow from step to step because something keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Growth, Help, Label, Operation, Run, Span
from gradscope.graph.naming import changed_name, line_of, short_name, written_at
from gradscope.graph.rewriting import Edits
from gradscope.rules.claim import Claim, Story, rule
from gradscope.rules.mends.carried import (
    carried_without_graph,
    detached_as,
    detached_where_kept,
    targets_at,
    without_history,
)


@rule("warning")
def graph_growth(ask: Ask) -> Iterator[Claim[Growth]]:
    """The graph behind a kept tensor grows from step to step.

    A tensor with history keeps the whole graph that it was computed from. A loss that is summed up without `.item()`,
    a hidden state that is carried on without `.detach()`, or a list of outputs therefore holds the graphs of all
    steps so far; `backward(create_graph=True)` leaves leaves and their gradients holding each other.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        total = 0.0
        for _ in range(10):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        total = 0.0
        for _ in range(10):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
    """
    run = ask.run
    told: set[tuple[str, int]] = set()
    lines = {line_of(tensor.made) for tensor in run.tensors if tensor.differentiated}
    carried: set[str | None] = set()
    # Whoever merely reads a state that is carried on has one link more than the call that carries it.
    for growth in sorted(run.growths, key=_precedence):
        place = growth.span.file, growth.span.line
        # Where nobody is seen to keep it, what is kept may be the loss whose graph a result of its line is a part of.
        ended = growth.ended if growth.keeper is not None else place in lines
        if place in told or not _is_telling(growth, ended, bool(run.optimizers)):
            continue
        if growth.kind == "kept" and told:
            continue  # what a growing graph was computed from is kept by it
        name = run.tensor_by_id[growth.tensor].name
        if growth.kind == "calls" and name is not None and name in carried:
            continue
        carried.add(name)
        told.add(place)
        yield Claim(place, growth)


@graph_growth.words
def _(told: Sequence[Claim[Growth]], ask: Ask) -> Story:
    run, growth = ask.run, told[0].evidence
    tensor = run.tensor_by_id[growth.tensor]
    same = [other.name for other in run.tensors if other.made == tensor.made and other.name is not None]
    # `average = 0.9 * average + 0.1 * h`: the product has no name, the sum on its line has.
    same += [
        other.name for other in run.tensors if line_of(other.made) == line_of(growth.span) and other.name is not None
    ]
    keeper = changed_name(growth.keeper, run.sources) if growth.keeper is not None else None
    name = tensor.name or keeper or next(iter(same), None)
    quoted = f"`{name}`" if name is not None else "a tensor"
    span: Span = growth.span
    labels: tuple[Label, ...] = ()
    if growth.kind == "cycle":
        message = f"{quoted} is never freed: the gradients of {growth.count} steps hold the graphs that made them"
        caret = "leaves gradients with a graph in `.grad`, which leads back to the leaf"
        mend = "use `torch.autograd.grad(..., create_graph=True)`, which leaves nothing in `.grad`"
    elif growth.kind == "kept":
        message = f"{quoted} is kept with its graph: those of {growth.count} steps are alive at once"
        caret = "each result keeps its whole graph for as long as it is kept"
        if growth.keeper is not None and growth.keeper.line != span.line:
            labels = (Label(span, "made here"),)
        span = growth.keeper or span
        mend = "keep `.detach()` of it, or `.item()`, or compute it under `torch.no_grad()`"
    else:
        what = "steps" if growth.kind == "steps" else "calls"
        message = f"the graph behind {quoted} grows: it leads through {growth.count} {what} by now"
        caret = "computed from its own value of before, with the whole graph behind it"
        maker = _maker(run, growth) if growth.kind == "calls" else None
        if maker is not None and maker.span is not None and maker.span.line != span.line:
            labels = (Label(maker.span, f"`{short_name(maker.name)}` takes it here"),)
        mend = "carry `.detach()` of it on, or sum up `.item()`, or compute it under `torch.no_grad()`"
    until = min(growth.until, max(run.step_count, growth.since))  # what comes after the last step is no step
    return Story(
        message,
        span,
        caret,
        tuple(dict.fromkeys(_known_as(growth, name, span, run))),
        labels,
        (f"seen from step {growth.since} to step {until}; everything that these graphs saved stays in memory",),
        (Help(mend, _edits(ask, growth, name, span)),),
    )


def _edits(ask: Ask, growth: Growth, name: str | None, span: Span) -> Edits:
    if growth.kind == "kept":
        made = targets_at(ask, growth.span)
        kept = detached_where_kept(ask, growth.keeper, [*made, *([name] if name is not None else ())])
        return kept or detached_as(ask, growth.span, name)
    if growth.kind == "calls" and (alone := without_history(ask, span)):
        return alone
    return carried_without_graph(ask, span, name) if growth.kind in ("steps", "calls") else ()


def _known_as(growth: Growth, name: str | None, span: Span, run: Run) -> Iterator[str]:
    """The names of what is kept: its own, that of the container that it lies in, and what the line calls it."""
    if name is not None:
        yield name
        if "[" in name:
            yield name.partition("[")[0]
        if growth.kind == "cycle":
            yield f"{name}.grad"
    if growth.kind != "cycle":
        yield from written_at(span, run.sources)


_ORDER = ("cycle", "steps", "calls", "kept")


def _is_telling(growth: Growth, differentiated: bool, stepping: bool) -> bool:
    """Whether nobody can mean it: a graph as deep as one that a backward has led through is wanted as it is."""
    if growth.kind == "steps":
        return stepping or growth.count > limits.DEEPER * growth.trained + limits.CALLS_IN_A_CHAIN
    if growth.kind == "calls":
        return growth.count >= max(limits.CALLS_IN_A_CHAIN, limits.DEEPER * growth.trained)
    if growth.kind == "kept" and not stepping and growth.count <= growth.trained:
        return False
    return growth.kind == "cycle" or not differentiated


def _maker(run: Run, growth: Growth) -> Operation | None:
    """The operation that took the carried value last."""
    values = {value.id for value in run.values if value.tensor == growth.tensor}
    operations = [operation for step in run.steps for operation in step.operations]
    return next((found for found in reversed(operations) if values.intersection(found.inputs)), None)


def _precedence(growth: Growth) -> tuple[int, int]:
    """Of results that are kept, those go first whose keeper is known: others are alive since these were made of them.

    Of calls, fewer go first.
    """
    return _ORDER.index(growth.kind), growth.count if growth.kind == "calls" else growth.keeper is None
