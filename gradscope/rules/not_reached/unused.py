"""Unused: parameters of an optimizer that no loss is computed from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gradscope.graph.ask import Ask
from gradscope.graph.dead_ends import dead_end
from gradscope.graph.facts import Help, Label, Operation, Optimizer, Run, Span, Tensor
from gradscope.graph.flow import StepFlow, flows, rounds
from gradscope.graph.naming import expression, line_of, loop_around, source_of
from gradscope.graph.reliance import unmet
from gradscope.graph.replicas import lies_in, refusal_label, replica_note, waited_for
from gradscope.rules.claim import Claim, Story, Trouble, names_of, rule, subjects
from gradscope.rules.words import listed, steps_text, times_text, who, whole_module


@rule("warning", [Trouble.NEVER_LEARNS])
def unused_parameter(ask: Ask) -> Iterator[Claim[_Unused]]:
    """An optimizer holds a parameter from which no loss is computed.

    The parameter is registered and updated, yet no line of the forward computes with it, so no gradient can reach
    it: often a layer was made in `__init__` and forgotten in `forward`. Or what is computed from it comes to a dead
    end: a loss that the next turn of a loop overwrites, a total of which only a part is returned.

    Bad:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden = nn.Linear(4, 4)
                self.norm = nn.LayerNorm(4)
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                return self.out(torch.relu(self.hidden(x)))

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(8, 4)).mean().backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden = nn.Linear(4, 4)
                self.norm = nn.LayerNorm(4)
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                return self.out(torch.relu(self.norm(self.hidden(x))))

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(8, 4)).mean().backward()
            optimizer.step()
    """
    run = ask.run
    optimizers = {optimizer.id: optimizer for optimizer in run.optimizers}
    waited = ask(waited_for)
    # Another tensor of this name that learns has taken its place since: then it is not unused but superseded.
    superseded = {tensor.name for tensor in run.tensors if tensor.received is not None and tensor.received.steps}
    turns = {number: [flow for flow in ask(rounds, number) if flow.roots] for number in optimizers}
    for tensor in ask(unmet):
        if tensor.id in waited:
            if not _leads_to_loss(waited[tensor.id], tensor):
                yield Claim(None, _Unused("replica", None), tensor, severity="error")
            continue
        if tensor.optimizer is None or not run.backward_count or tensor.name in superseded:
            continue
        optimizer = optimizers[tensor.optimizer]
        if not optimizer.steps or any(_leads_to_loss(flow, tensor) for flow in turns[tensor.optimizer]):
            continue
        if _is_one_of_turns(run, tensor):
            yield Claim(None, _Unused("turn", optimizer), tensor, severity="info")
        elif not (tensor.change and _are_scripted(run, [tensor])):  # else gradients came that nobody saw
            yield Claim(None, _Unused("step", optimizer), tensor)


@dataclass(frozen=True, slots=True)
class _Unused:
    """Who waits for the gradient in vain: a step, one whose turn it was not, or the replicas of a model."""

    by: Literal["step", "turn", "replica"]
    optimizer: Optimizer | None


@unused_parameter.groups
def _(claims: Sequence[Claim[_Unused]], ask: Ask) -> Iterator[Sequence[Claim[_Unused]]]:
    by_id = {claim.tensor.id: claim for claim in claims if claim.tensor is not None}
    ended: dict[object, list[Claim[_Unused]]] = {}
    for claim in claims:
        end = _end_of(claim, ask)
        if end is not None:
            ended.setdefault(line_of(end[1].span), []).append(claim)
    yield from ended.values()
    told = {id(claim) for group in ended.values() for claim in group}
    for by in ("replica", "turn", "step"):
        waiting = [claim for claim in claims if claim.evidence.by == by and id(claim) not in told]
        for tensors in _by_origin(subjects(waiting), ask.run):
            yield [by_id[tensor.id] for tensor in tensors]


@unused_parameter.words
def _(told: Sequence[Claim[_Unused]], ask: Ask) -> Story:
    run, tensors = ask.run, subjects(told)
    steps = [flow for flow in ask(flows) if flow.roots]
    optimizer = told[0].evidence.optimizer
    if optimizer is None:
        return _waited_for(run, steps, tensors)
    if told[0].evidence.by == "turn":
        return _not_chosen(run, optimizer, tensors)
    if _are_scripted(run, tensors):
        return _unreached_in_torchscript(run, optimizer, tensors)
    end = _end_of(told[0], ask)
    if end is not None:
        return _ended(run, optimizer, tensors, *end, _left_at(steps, tensors))
    span, names = tensors[0].made, names_of(told)
    used = [use for tensor in tensors for use in _uses(steps, tensor)]
    those = who(names, run)
    elsewhere = [] if used else _evaluated(ask, tensors)
    loop = _loop_that_ends_early(run, steps, names)
    place, caret = span or optimizer.made, "made here; no loss is computed from it"
    labels = _where_used(steps, tensors, used)
    labels += [Label(use.span, "used here, with grad mode off") for use in elsewhere[:1] if use.span]
    if loop is not None:
        place, caret = loop, f"this loop ends before it comes to {those.subject}"
        labels += [Label(span, "made here")] if span is not None else []
    mend = "add its result to the loss, or delete it" if used else "use it in `forward`, or delete it"
    return Story(
        f"{those.subject} {'is' if those.one else 'are'} never trained: "
        f"no loss was computed from {those.counted if those.counted != 'they' else 'them'} "
        f"in {steps_text(run, optimizer.steps)}",
        place,
        caret,
        names,
        tuple(labels),
        (
            f"{_UNUSED[bool(used), bool(elsewhere)]}: {listed(names)}",
            f"note: {optimizer.name}, which holds {'it' if len(names) == 1 else 'them'}, "
            f"stepped {times_text(optimizer.steps)}",
            *replica_note(run, tensors),
        ),
        (Help("compute a loss from it as well" if elsewhere else mend),),
    )


def _end_of(claim: Claim[_Unused], ask: Ask) -> tuple[StepFlow, Operation] | None:
    """Where the values that are computed from a tensor come to their end, in the latest step in which they do."""
    if claim.evidence.by != "step" or claim.tensor is None:
        return None
    for flow in reversed(ask(flows)):
        end = dead_end(flow, claim.tensor) if flow.roots else None
        if end is not None:
            return flow, end
    return None


def _ended(
    run: Run, optimizer: Optimizer, tensors: Sequence[Tensor], flow: StepFlow, end: Operation, left: Span | None
) -> Story:
    """What is computed from these comes to an end that nobody differentiates."""
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    held, made = flow.tensor(end.outputs[0]), tensors[0].made
    name = held.name if held is not None else None
    where, caret, mend = "nowhere", "its result is computed here, and goes nowhere", "add its result to the loss"
    if any((root := flow.tensor(value)) is not None and root.name == name is not None for value in flow.roots):
        where, caret = f"to a `{name}` that is overwritten", "overwritten before anything is differentiated"
        mend = f"add up what `{name}` holds each time, or call backward each time"
    elif flow.is_scalar(end.outputs[0]):
        result = f"`{name}`" if name else "this number"
        where, caret = f"to {result}, from which no backward starts", "no backward starts from this"
        mend = f"call backward on {result}, or add it to the loss"
    labels = [Label(made, "made here")] if made is not None else []
    if left is not None and end.span is not None and left.line != end.span.line:
        labels.append(Label(left, "and becomes a plain number here"))
    return Story(
        f"{those.subject} {'is' if those.one else 'are'} never trained: what is computed from {those.them} leads "
        f"{where}",
        end.span,
        caret,
        names,
        tuple(labels),
        (
            f"used, but leads to no loss: {listed(names)}",
            f"note: {optimizer.name}, which holds {'it' if len(names) == 1 else 'them'}, "
            f"stepped {times_text(optimizer.steps)}",
            *replica_note(run, tensors),
        ),
        (Help(mend),),
    )


_UNUSED = {
    (False, False): "never used",
    (True, False): "used, but leads to no loss",
    (False, True): "used with grad mode off, and in no loss",
}


def _by_origin(tensors: Sequence[Tensor], run: Run) -> Iterator[list[Tensor]]:
    """Those that one line made together, and with them the others of a module of which nothing is among the rest."""
    names = [tensor.name or "" for tensor in tensors]
    groups: dict[object, list[Tensor]] = {}
    for tensor, name in zip(tensors, names, strict=True):
        whole = whole_module(name, names, run)
        keys = [line_of(tensor.made) or name.rpartition(".")[0], *([whole] if whole is not None else ())]
        joined = list({id(groups[key]): groups[key] for key in keys if key in groups}.values())
        group = [*(member for part in joined for member in part), tensor]
        for key in [key for key, part in groups.items() if any(part is other for other in joined)] + keys:
            groups[key] = group
    yield from {id(group): group for group in groups.values()}.values()


def _evaluated(ask: Ask, tensors: Sequence[Tensor]) -> list[Operation]:
    """Operations of forwards that computed with one of these while grad mode was off, as in evaluation."""
    numbers = {tensor.id for tensor in tensors}
    return [
        operation
        for flow in ask(flows)
        for operation in flow.operations
        if operation.module is not None
        and not operation.grad_enabled
        and any(flow.holder[value] in numbers for value in operation.inputs)
        and any(flow.holder[value] not in numbers for value in operation.outputs)
    ]


def _waited_for(run: Run, steps: list[StepFlow], tensors: Sequence[Tensor]) -> Story:
    """DDP refused a forward since the backward before it did not reach these."""
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    used = [use for tensor in tensors for use in _uses(steps, tensor) if use.span is not None]
    ever = any(tensor.received is not None and tensor.received.steps for tensor in tensors)
    said = "used here, in other steps" if ever else "its result is computed here, and goes nowhere"
    labels = tuple(Label(use.span, said) for use in used[:1] if use.span is not None)
    when = "of the last step" if ever else "of any step" if run.step_count > 1 else "of the first step"
    return Story(
        message=f"no loss {when} was computed from {those.subject}, and DDP waits for "
        f"{'its gradient' if len(names) == 1 else 'their gradients' if those.them == 'them' else 'its gradients'}",
        span=tensors[0].made,
        caret="made here; no loss is computed from it" if not ever else "made here; not used in every step",
        tensors=names,
        labels=(*labels, *refusal_label(run)),
        facts=(f"without gradient in the last backward: {listed(names)}",),
        help=(
            Help("use it in every step or delete it; else `DistributedDataParallel(..., find_unused_parameters=True)`"),
        ),
        raised=True,
    )


def _loop_that_ends_early(run: Run, steps: list[StepFlow], names: Sequence[str]) -> Span | None:
    """The loop that runs over the numbered siblings of an unused module, and not as far as to it."""
    parts = [name.split(".") for name in names]
    place = next((i for i in range(len(parts[0]) - 1, -1, -1) if parts[0][i].isdigit()), None)
    if place is None or any(part[: place + 1] != parts[0][: place + 1] for part in parts):
        return None
    container, number = ".".join(parts[0][:place]), int(parts[0][place])
    siblings = [
        use
        for tensor in run.tensors
        if (tensor.name or "").startswith(f"{container}.") and tensor.received is not None and tensor.received.steps
        for use in _uses(steps, tensor)
    ]
    loops = {_loop_over_callee(use.span, run) for use in siblings if use.span is not None}
    found = next(iter(loops)) if len(loops) == 1 else None
    return found if number > 0 else None


def _loop_over_callee(span: Span, run: Run) -> Span | None:
    """The loop around a call whose variable says what is called: `layer(x)` for each `layer`, `layers[i](x)`."""
    loop = loop_around(span, run.sources)
    head = source_of(loop, run.sources) if loop is not None else None
    node = expression(span, run.sources)
    if head is None or not isinstance(node, ast.Call):
        return None
    called = {part.id for part in ast.walk(node.func) if isinstance(part, ast.Name)}
    variables = head.partition("for ")[2].partition(" in ")[0]
    return loop if called.intersection(re.findall(r"\w+", variables)) else None


def _leads_to_loss(flow: StepFlow, tensor: Tensor) -> bool:
    starts = flow.values_of.get(tensor.id)
    return bool(starts) and not flow.behind_roots_of(tensor.id).isdisjoint(starts or ())


def _where_used(steps: list[StepFlow], tensors: Sequence[Tensor], used: Sequence[Operation]) -> list[Label]:
    """Where what leads to no loss is computed, and where it is made a plain number, if it is."""
    if not used or used[0].span is None:
        return []
    left = _left_at(steps, tensors)
    if left is None:
        return [Label(used[0].span, "its result is computed here, and goes nowhere")]
    if left.line == used[0].span.line:
        return [Label(left, "its result becomes a plain number here")]
    return [Label(used[0].span, "its result is computed here"), Label(left, "and becomes a plain number here")]


def _left_at(steps: list[StepFlow], tensors: Sequence[Tensor]) -> Span | None:
    """Where what is computed from one of these becomes a plain number."""
    reaches = (flow.reach(flow.values_of.get(tensor.id, ()), frozenset()) for tensor in tensors for flow in steps)
    return next((exit_.span for reach in reaches for exit_ in reach.exits if exit_.span is not None), None)


def _uses(steps: list[StepFlow], tensor: Tensor) -> list[Operation]:
    """Operations that computed something differentiable with a tensor."""
    return [
        operation
        for flow in steps
        for operation in flow.operations
        if any(flow.holder[value] == tensor.id for value in operation.inputs)
        and any(flow.history[value] and flow.holder[value] != tensor.id for value in operation.outputs)
    ]


_SCRIPTED = frozenset({"ScriptModule", "RecursiveScriptModule", "TracedModule", "TopLevelTracedModule"})


def _are_scripted(run: Run, tensors: Sequence[Tensor]) -> bool:
    """Whether only TorchScript computes with these, whose operations are not recorded."""
    paths = [module.path for module in run.modules if module.type in _SCRIPTED]
    return all(any(lies_in(tensor, path) for path in paths) for tensor in tensors)


def _unreached_in_torchscript(run: Run, optimizer: Optimizer, tensors: Sequence[Tensor]) -> Story:
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    return Story(
        message=f"{those.subject} {those.learns}: {those.counted} got no gradient "
        f"in {steps_text(run, optimizer.steps)}, and only TorchScript computes with {those.them}",
        span=tensors[0].made or optimizer.made,
        caret="made here; no gradient comes back to it",
        tensors=names,
        facts=(f"without gradient: {listed(names)}", "note: what runs inside TorchScript is not recorded"),
        help=(Help("run it without `torch.jit` to be told where its gradient is lost, if it is used at all"),),
    )


def _is_one_of_turns(run: Run, tensor: Tensor) -> bool:
    """Whether a tensor has a twin at another place of its container that gets gradients in some steps, not in all.

    The program then chooses among them: experts by a router, heads by the task, layers by chance.
    """
    parts = (tensor.name or "").split(".")
    return any(
        other.received is not None
        and 0 < other.received.steps < other.received.of
        and other.optimizer == tensor.optimizer
        and _differ_in_one_place(parts, (other.name or "").split("."))
        for other in run.tensors
        if other.shape == tensor.shape and other.module == tensor.module and other.id != tensor.id
    )


def _differ_in_one_place(parts: list[str], others: list[str]) -> bool:
    """Whether two names differ in one part before the last: the place in a list, or the key in a dict."""
    return len(parts) == len(others) and parts[-1] == others[-1] and sum(map(str.__ne__, parts, others)) == 1


def _not_chosen(run: Run, optimizer: Optimizer, tensors: Sequence[Tensor]) -> Story:
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    return Story(
        message=f"{those.subject} {'was' if those.one else 'were'} not chosen in {steps_text(run, optimizer.steps)}, "
        "as others of the same kind were in some",
        span=tensors[0].made or optimizer.made,
        caret="made here; no loss was computed from it so far",
        tensors=names,
        facts=(f"not chosen: {listed(names)}",),
        help=(Help("nothing to mend if its turn comes later; else balance the choice, as a load-balancing loss does"),),
    )
