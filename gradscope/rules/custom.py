"""Custom autograd Functions whose backward does not give what autograd relies on."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Crash, CustomBackward, Help, Label, Operation, Run, Span, Tensor
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import source_of
from gradscope.graph.refusals import refused_backward
from gradscope.graph.reliance import unmet
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.mends.calls import returning, times_upstream
from gradscope.rules.words import listed, raised_at, who


@rule("error")
def custom_function(ask: Ask) -> Iterator[Claim[_Evidence]]:
    """The backward of a custom autograd Function does not return the gradient of each input that needs one.

    For every argument of `forward`, `backward` returns one value, in the same order: the gradient, of the argument's
    shape and computed from the upstream gradient, or None for what needs none. A missing `return`, a forgotten argument
    or a derivative without the upstream gradient trains the layers below on nothing, or on something else than the
    loss.

    Bad:

        import torch
        from torch import nn

        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, grad_output):
                x, = ctx.saved_tensors
                return 2 * x

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = (Square.apply(net(torch.rand(8, 4))) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, grad_output):
                x, = ctx.saved_tensors
                return 2 * x * grad_output

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = (Square.apply(net(torch.rand(8, 4))) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_backward(ask, "custom backward")
    crash = ask.run.crash
    for function in ask.run.functions:
        if function.raised and crash is not None:
            yield Claim(function.name, _Raised(function, crash), explains=((Trouble.REFUSED, None),))
        elif function.complained and refused is not None:
            yield Claim(function.name, _Refused(function, refused.crash), explains=((Trouble.REFUSED, None),))
        elif not function.reads_upstream and not function.upstream_is_one and not function.zero:
            yield Claim(function.name, _IgnoresUpstream(function), explains=(), severity="warning")
        elif function.wrong:
            yield Claim(function.name, _IsWrong(function), explains=())
    yield from _gives_none(ask)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A backward that torch did not take."""

    function: CustomBackward
    crash: Crash


@dataclass(frozen=True, slots=True)
class _Raised:
    """A backward that raised by itself."""

    function: CustomBackward
    crash: Crash


@dataclass(frozen=True, slots=True)
class _IgnoresUpstream:
    """A backward whose result does not depend on what it is given."""

    function: CustomBackward


@dataclass(frozen=True, slots=True)
class _GivesNone:
    """A backward that gives None for these arguments, and a call of it."""

    function: CustomBackward
    places: frozenset[int]
    call: Operation


@dataclass(frozen=True, slots=True)
class _IsWrong:
    """A backward that gives another gradient than its forward has."""

    function: CustomBackward


_Evidence: TypeAlias = _Raised | _Refused | _IgnoresUpstream | _IsWrong | _GivesNone


@custom_function.words
def _(told: Sequence[Claim[_Evidence]], ask: Ask) -> Story:
    match told[0].evidence:
        case _Raised(function, crash):
            return _raised(ask, function, crash)
        case _Refused(function, crash):
            return _refused(ask, function, crash)
        case _IgnoresUpstream(function):
            return _ignores_upstream(ask, function)
        case _IsWrong(function):
            return _is_wrong(ask, function)
        case _GivesNone() as blocked:
            return _none_for(blocked, [claim.tensor for claim in told if claim.tensor is not None], ask.run)


def _raised(ask: Ask, function: CustomBackward, crash: Crash) -> Story:
    """An exception comes out of the code of a backward: its line, and what lies behind waits in vain."""
    span, caret = crash.span or function.span, f"{crash.type} is raised here"
    help_ = "let `backward` compute with what `forward` has saved, in the shapes and types that it has there"
    facts = [f"it says: {crash.message}"]
    halves = "BFloat16" in crash.message or "Half" in crash.message
    if crash.symptom == "types differ" and halves:
        facts.append("note: autocast converts in `forward`, and `backward` runs outside of it")
        help_ = "decorate `forward` with `torch.amp.custom_fwd` and `backward` with `torch.amp.custom_bwd`"
    labels: tuple[Label, ...] = ()
    if function.span is not None and function.span != span:
        labels = (Label(function.span, "autograd calls this with the upstream gradient"),)
    return Story(
        f"`{function.name}.backward` raises {crash.type}",
        span,
        caret,
        _waiting(ask, function),
        labels,
        tuple(facts),
        (Help(help_),),
        raised=True,
    )


def _waiting(ask: Ask, function: CustomBackward) -> tuple[str, ...]:
    """Whose gradient comes through a Function: what it was given, by name, and the leaves behind that."""
    return tuple(dict.fromkeys(tensor.name or "" for tensor in _waiting_tensors(ask, function)))


def _waiting_tensors(ask: Ask, function: CustomBackward) -> list[Tensor]:
    needed = [place for place, count in enumerate(function.needed) if count]
    return [*_arguments(ask, function, needed), *_behind(ask, function)]


def _refused(ask: Ask, function: CustomBackward, crash: Crash) -> Story:
    run = ask.run
    needed = [place for place, count in enumerate(function.needed) if count]
    expected, name = len(function.needed), f"`{function.name}.backward`"
    span, help_ = function.span, "return one gradient for each argument of `forward`, in their order"
    caret = "this is what autograd calls"
    if not expected:
        message = f"{name} cannot be called as autograd calls it: with `ctx` and one gradient an output"
        if function.span is not None and (function.span.function or "").endswith("forward"):
            message = f"`{function.name}` has no backward"
        help_ = "write `backward(ctx, grad_output)`, with one argument for each output of `forward`"
    elif function.returned is None:
        message = f"{name} returns nothing, where {_count(expected)} expected"
        caret = "ends without a `return`, so with None" if function.returns else "has no `return`, so it gives None"
    elif function.returned != expected:
        message = f"{name} returns {_values(function.returned)}, where {_count(expected)} expected"
        span, caret = _return(run, function, function.returned), "one value is expected for each argument of `forward`"
    else:
        place = _refused_place(function, crash.message)
        needed = needed if place is None else [place]
        which = "an input" if place is None else f"argument {place + 1}"
        message = f"{name} returns what is no gradient of {which}"
        span, caret = _return(run, function, expected), "a gradient has the shape of the argument it belongs to"
        help_ = _fitting(crash.message)
    names = tuple(tensor.name or "" for tensor in _arguments(ask, function, needed)) or _waiting(ask, function)
    return Story(
        message,
        span,
        caret,
        names,
        raised_at(ask, span),
        (f"torch says: {crash.message}",),
        (Help(help_, returning(ask, function) if expected else ()),),
        raised=True,
    )


def _refused_place(function: CustomBackward, message: str) -> int | None:
    """The argument whose gradient torch refused: its message counts those that are tensors."""
    told = re.search(r"invalid gradient at index (\d+)", message)
    places = sorted(function.arguments) or range(len(function.needed))
    return places[int(told[1])] if told is not None and int(told[1]) < len(places) else None


def _fitting(message: str) -> str:
    """What gives a gradient the shape of its argument, as far as torch's message tells both shapes."""
    told = re.search(r"got \[([\d, ]*)\].*compatible with \[([\d, ]*)\]", message)
    got, wanted = (
        ([int(size) for size in part.split(",") if size.strip()] for part in told.groups()) if told else ([], [])
    )
    if got != wanted and got[-2:] == wanted[-2:][::-1] and got[:-2] == wanted[:-2]:
        return "transpose the gradient: a product with matrices in the other order gives it so"
    if math.prod(got) > math.prod(wanted):
        return "sum the gradient over the dimensions that were broadcast"
    return "sum the gradient over the dimensions that were broadcast, or reshape it to the argument's shape"


def _count(number: int) -> str:
    return "1 gradient is" if number == 1 else f"{number} gradients are"


def _values(number: int) -> str:
    return "1 value" if number == 1 else f"{number} values"


def _return(run: Run, function: CustomBackward, values: int, none_at: int | None = None) -> Span | None:
    """The return statement that gives so many values, or None at a place; of several that fit, the last."""
    fitting = []
    for span in function.returns:
        parts = _parts(run, span)
        if parts is None:
            continue
        if (none_at is not None and none_at < len(parts) and _is_none(parts[none_at])) or (
            none_at is None and len(parts) == values
        ):
            fitting.append(span)
    last = (fitting or function.returns)[-1:]
    return last[0] if last else function.span


def _parts(run: Run, span: Span) -> list[ast.expr] | None:
    text = source_of(span, run.sources)
    try:
        node = ast.parse(text or "").body[0]
    except (SyntaxError, IndexError):
        try:
            node = ast.parse("\n".join(line.strip() for line in (text or "").splitlines())).body[0]
        except (SyntaxError, IndexError):
            return None
    if not isinstance(node, ast.Return):
        return None
    return list(node.value.elts) if isinstance(node.value, ast.Tuple) else [node.value] if node.value else []


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _ignores_upstream(ask: Ask, function: CustomBackward) -> Story:
    run = ask.run
    places = [place for place, count in enumerate(function.given) if count]
    trained = [tensor for tensor in _behind(ask, function) if tensor.optimizer is not None]
    names = tuple(dict.fromkeys(tensor.name or "" for tensor in trained))
    span = _return(run, function, len(function.needed))
    those = f", so {who(names, run).subject} is not trained on the loss" if names else ""
    return Story(
        f"`{function.name}.backward` ignores its upstream gradient{those}",
        span,
        "returned without the upstream gradient",
        names,
        (Label(function.span, "given here, and its values are never used"),) if function.span is not None else (),
        (
            f"behind it: {listed(names)}",
            "note: the upstream gradient was not 1, and a gradient that is not zero was returned",
        )
        if names and places
        else (),
        (Help("multiply the derivative of `forward` by the upstream gradient", times_upstream(ask, function)),),
    )


def _is_wrong(ask: Ask, function: CustomBackward) -> Story:
    first = function.wrong[0]
    trained = [tensor for tensor in _behind(ask, function) if tensor.optimizer is not None]
    names = tuple(dict.fromkeys(tensor.name or "" for tensor in trained or _waiting_tensors(ask, function)))
    places = " and ".join(str(wrong.place + 1) for wrong in function.wrong)
    facts = (
        f"at an element of argument {first.place + 1}, with another upstream gradient: it gives {first.given:.4g}, and"
        f" small changes of the element say {first.slope:.4g}",
    )
    return Story(
        f"`{function.name}.backward` gives another gradient of argument {places} than `forward` has",
        _return(ask.run, function, len(function.needed)),
        "not the derivative of `forward`",
        names,
        (),
        facts,
        (Help("return the derivative of what `forward` computes, multiplied by the upstream gradient"),),
    )


def _gives_none(ask: Ask) -> Iterator[Claim[_Evidence]]:
    """A backward that raises nothing and gives None for an input whose gradient a tensor in training waits for."""
    never = {
        function.name: (function, places)
        for function in ask.run.functions
        if not function.complained and (places := _never_given(function))
    }
    if not never:
        return
    waiting = _relied_on(ask)
    calls = [(flow, call) for flow in ask(flows) for call in flow.operations if call.name in never]
    latest = {call.name: call for _, call in calls}
    blocked: set[tuple[str, int]] = set()
    for flow, call in calls:
        function, places = never[call.name]
        for tensor in waiting:
            if (call.name, tensor.id) not in blocked and _only_way(flow, tensor, call, places, function):
                blocked.add((call.name, tensor.id))
                evidence = _GivesNone(function, places, latest[call.name])
                yield Claim(call.name, evidence, tensor, explains=((Trouble.NEVER_LEARNS, tensor.id),))


def _never_given(function: CustomBackward) -> frozenset[int]:
    """The arguments whose gradient was needed and never given."""
    return frozenset(place for place, needed in enumerate(function.needed) if needed and not function.given[place])


def _none_for(blocked: _GivesNone, tensors: Sequence[Tensor], run: Run) -> Story:
    function, place = blocked.function, min(blocked.places)
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    span = _return(run, function, len(function.needed), place) if function.returned is not None else function.span
    return Story(
        f"{those.subject} {those.learns}: `{function.name}.backward` returns None for an input that needs a gradient",
        span,
        "None here means that no gradient goes on",
        names,
        (Label(blocked.call.span, "called here"),) if blocked.call.span is not None else (),
        (f"in {function.needed[place]} passes a gradient was needed for argument {place + 1} and None was given",),
        (Help("return the gradient of this argument"),),
    )


def _relied_on(ask: Ask) -> list[Tensor]:
    run, found = ask.run, [*ask(unmet)]
    if run.crash is not None and run.crash.symptom == "gradient is None":
        known = {tensor.id for tensor in found}
        found += [
            tensor
            for tensor in run.tensors
            if tensor.id not in known
            and tensor.leaf
            and tensor.requires_grad
            and tensor.name is not None
            and tensor.used
            and not (tensor.received and tensor.received.steps)
        ]
    return found


def _only_way(
    flow: StepFlow, tensor: Tensor, operation: Operation, places: frozenset[int], function: CustomBackward
) -> bool:
    """Whether the gradient of a tensor would come through an argument of this call for which None is given."""
    starts = [value for value in flow.values_of.get(tensor.id, []) if flow.history[value]]
    if not starts or not flow.roots:
        return False
    reach = flow.reach(starts, flow.behind(flow.roots))
    if reach.alive.isdisjoint(flow.roots):
        return False  # cut elsewhere
    positions = function.arguments or tuple(range(len(operation.inputs)))
    blocked = [value for value, position in zip(operation.inputs, positions, strict=False) if position in places]
    return not reach.alive.isdisjoint(blocked)


def _arguments(ask: Ask, function: CustomBackward, places: list[int]) -> list[Tensor]:
    """The named tensors that the Function was given at these places, in the latest call that is on record."""
    for flow in reversed(ask(flows)):
        for operation in reversed(flow.operations):
            if operation.name == function.name:
                positions = function.arguments or tuple(range(len(operation.inputs)))
                taken = [
                    v for v, place in zip(operation.inputs, positions, strict=False) if place in places or not places
                ]
                return [tensor for value in taken if (tensor := flow.tensor(value)) is not None and tensor.name]
    return []


def _behind(ask: Ask, function: CustomBackward) -> list[Tensor]:
    """The leaves that get their gradient through the Function."""
    found: dict[int, Tensor] = {}
    for flow in ask(flows):
        for operation in flow.operations:
            if operation.name == function.name:
                for value in flow.behind(value for value in operation.inputs if flow.history[value]):
                    tensor = flow.tensor(value)
                    if tensor is not None and tensor.leaf and tensor.requires_grad and tensor.name is not None:
                        found[tensor.id] = tensor
    return [found[number] for number in sorted(found)]
