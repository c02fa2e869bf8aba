"""Unregistered: a tensor of a module that no `parameters()` knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Run, Span, Tensor
from gradscope.graph.naming import line_of
from gradscope.rules.claim import Claim, Story, names_of, rule
from gradscope.rules.mends.leaves import registered
from gradscope.rules.words import listed, who


@rule("error")
def unregistered_parameter(ask: Ask) -> Iterator[Claim[_Unregistered]]:
    """A tensor of a module takes part in the forward and gets a gradient, and no `parameters()` knows it.

    Modules register what is assigned to them as `nn.Parameter`, `nn.Module`, `nn.ParameterList`, `nn.ModuleList` and so
    on. What sits in a plain list, dict or tensor attribute, in a dataclass or another object that is no module, or is
    made anew in every forward, is not registered: no optimizer gets it, `.to()` and `state_dict()` pass it by.

    Bad:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                for layer in self.layers:
                    x = torch.tanh(layer(x))
                return self.out(x)

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                for layer in self.layers:
                    x = torch.tanh(layer(x))
                return self.out(x)

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    if not any(optimizer.steps for optimizer in run.optimizers):
        return
    wanted = _gradient_wanted(run)
    first: dict[object, Tensor] = {}
    for tensor in run.tensors:
        # An input that the module keeps is another tensor in each step: it gets one gradient.
        got = tensor.received is not None and tensor.received.steps >= min(2, run.step_count)
        kept = tensor.registered == "attribute" and tensor.leaf and tensor.id not in wanted
        if kept and tensor.optimizer is None and got and not tensor.change:
            container = (tensor.name or "").partition("[")[0]
            place = container if container != tensor.name else line_of(tensor.made)
            yield Claim(place, _Unregistered(first.setdefault(place, tensor).made, *_NOT_REGISTERED), tensor)
    for span, tensors in _made_in_forward(run).items():
        for tensor in tensors:
            yield Claim(("forward", span), _Unregistered(span, *_MADE_ANEW), tensor)


@dataclass(frozen=True, slots=True)
class _Unregistered:
    """Where a tensor is made, what is wrong with that, and how to mend it."""

    span: Span | None
    caret: str
    mend: str


_NOT_REGISTERED = (
    "not registered: `parameters()` does not give it",
    "keep it in `nn.Parameter`, `nn.ParameterList`, `nn.ParameterDict`, `nn.ModuleList` or `nn.ModuleDict`",
)
_MADE_ANEW = (
    "made anew in every forward, after the optimizer was built",
    "make it once in `__init__`, where the optimizer finds it",
)


@unregistered_parameter.words
def _(told: Sequence[Claim[_Unregistered]], ask: Ask) -> Story:
    names, evidence = names_of(told), told[0].evidence
    span = evidence.span
    if names:
        those = who(names, ask.run)
        message = f"{those.subject} {those.learns}: {those.counted} got gradients, and no optimizer holds {those.them}"
    else:
        made = f" that `{span.function}` makes" if span is not None and span.function else ""
        message = f"the parameter{made} never learns: it got gradients, and no optimizer holds it"
    return Story(
        message,
        span,
        evidence.caret,
        names,
        facts=(f"not registered: {listed(names)}",) if names else (),
        help=(Help(evidence.mend, registered(ask, span, names) if evidence.mend == _NOT_REGISTERED[1] else ()),),
    )


def _gradient_wanted(run: Run) -> set[int]:
    """Plain tensors whose gradient the program asks for, so that it is no slip that nobody moves them.

    These are inputs: an image whose saliency is read, the points at which a penalty or a differential equation is
    evaluated. Who reads `.grad` of what a constructor made may do so to find out why it does not learn.
    """
    tensors = {tensor.id: tensor for tensor in run.tensors if not tensor.nn_parameter}
    holder = run.holder
    found = set()
    for step in run.steps:
        for operation in step.operations:
            if operation.name not in ("Tensor.grad", "autograd.grad"):
                continue
            for tensor in [tensors[holder[value]] for value in operation.inputs if holder[value] in tensors]:
                own = tensor.made is not None and (tensor.made.function or "").endswith("__init__")
                if operation.name == "autograd.grad" or not own:
                    found.add(tensor.id)
    return found


def _made_in_forward(run: Run) -> dict[Span | None, list[Tensor]]:
    """Parameters that a forward makes again and again, by the line that does.

    One that is made of what has a history is a copy of that: the cut is told, and it has no use of its own.
    """
    tensors = run.tensor_by_id
    holder = run.holder
    steps: dict[Span | None, set[int]] = defaultdict(set)
    made: dict[Span | None, dict[int, Tensor]] = defaultdict(dict)
    for step in run.steps:
        for operation in step.operations:
            forward = operation.module is not None and operation.grad_enabled
            if (
                operation.name == "nn.Parameter"
                and forward
                and not any(run.history[value] for value in operation.inputs)
            ):
                for value in operation.outputs:
                    tensor = tensors[holder[value]]
                    if tensor.optimizer is None and tensor.requires_grad and tensor.consumed:
                        steps[operation.span].add(step.index)
                        made[operation.span][tensor.id] = tensor
    latest = {span: max(numbers) for span, numbers in steps.items() if len(numbers) > 1}
    return {
        span: [tensor for tensor in made[span].values() if tensor.name] or list(made[span].values()) for span in latest
    }
