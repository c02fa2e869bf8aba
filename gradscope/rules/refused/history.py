"""Calls that torch refuses over the history of a tensor, or over what a transform maps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Tensor
from gradscope.graph.naming import changed_name, short_name
from gradscope.graph.operands import makers, tensor_of
from gradscope.graph.refusals import Refusal, refused_operands
from gradscope.rules.claim import Claim, Story, Trouble, rule


@rule("error", [Trouble.REFUSED])
def non_differentiable_argument(ask: Ask) -> Iterator[Claim[Refusal]]:
    """An argument carries history, and torch knows no derivative with respect to it.

    Weights of classes in a loss, and sizes or places, are constants to torch. A tensor that requires grad, or was
    computed from one, is refused there, whether or not anybody waits for that gradient.

    Bad:

        import torch
        from torch import nn

        net, balance = nn.Linear(4, 2), nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([*net.parameters(), balance], lr=0.1)
        for _ in range(3):
            loss = nn.functional.cross_entropy(net(torch.rand(8, 4)), torch.randint(2, (8,)), weight=balance.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net, balance = nn.Linear(4, 2), nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([*net.parameters(), balance], lr=0.1)
        for _ in range(3):
            y = torch.randint(2, (8,))
            each = nn.functional.cross_entropy(net(torch.rand(8, 4)), y, reduction="none")
            loss = (each * balance.exp()[y]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_operands(ask, "argument without derivative")
    if refused is not None:
        yield Claim(refused.operation.id, refused)


@non_differentiable_argument.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    refused = told[0].evidence
    operation, message = refused.operation, refused.crash.message
    name = short_name(operation.name)
    argument = re.search(r"argument '(\w+)'", message)
    history = [value for value in operation.inputs if ask.run.history.get(value)]
    # The first operand is what the function is there to be differentiated by.
    value = history[-1] if history else None
    tensor = tensor_of(ask, value) if value is not None else None
    said = f"`{argument[1]}`" if argument is not None else "an argument"
    maker = ask(makers).get(value) if value is not None else None
    labels: tuple[Label, ...] = ()
    made = maker.span if maker is not None else tensor.made if tensor is not None else None
    if made is not None and made != operation.span:
        labels = (Label(made, "its history begins here"),)
    which = f": `{tensor.name}`" if tensor is not None and tensor.name else ""
    return Story(
        f"`{name}` has no derivative with respect to {said}, and what it is given there carries history{which}",
        operation.span,
        "refused here",
        (tensor.name,) if tensor is not None and tensor.name else (),
        labels,
        (f"torch says: {message}",),
        (Help("give its values only, by `.detach()`; to train it, write the formula with operations of its own"),),
        (operation.id,),
        raised=True,
    )


@rule("error", [Trouble.REFUSED])
def deepcopy_non_leaf(ask: Ask) -> Iterator[Claim[Refusal]]:
    """A tensor with history is to be copied deeply, be it alone or within a module that holds it.

    A copy of a result would need a copy of its graph, so torch copies leaves only. What `forward` leaves in an
    attribute of its module, or what a constructor computes from a parameter, is such a result.

    Bad:

        import copy
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(4, 4)

            def forward(self, x):
                self.hidden = self.first(x).relu()
                return self.hidden.sum()

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.rand(8, 4)).backward()
        optimizer.step()
        best = copy.deepcopy(net)

    Good:

        import copy
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(4, 4)

            def forward(self, x):
                hidden = self.first(x).relu()
                self.hidden = hidden.detach()
                return hidden.sum()

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.rand(8, 4)).backward()
        optimizer.step()
        best = copy.deepcopy(net)
    """
    refused = refused_operands(ask, "copy of a result")
    if refused is not None:
        yield Claim(refused.operation.id, refused)


@deepcopy_non_leaf.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    refused = told[0].evidence
    operation = refused.operation
    value = next(iter(operation.inputs), None)
    tensor: Tensor | None = tensor_of(ask, value) if value is not None else None
    maker = ask(makers).get(value) if value is not None else None
    made = maker.span if maker is not None else tensor.made if tensor is not None else None
    labels: tuple[Label, ...] = ()
    if made is not None and operation.span is not None and made != operation.span:
        labels = (Label(operation.span, "copied here, so torch raises"),)
    said = f"`{tensor.name}`" if tensor is not None and tensor.name else "a tensor"
    by = f" of `{short_name(maker.name)}`" if maker is not None else ""
    return Story(
        f"{said} is a result{by} with history: a deep copy would need a copy of its graph",
        made or operation.span,
        "made here, and kept",
        (tensor.name,) if tensor is not None and tensor.name else (),
        labels,
        (f"torch says: {refused.crash.message}",),
        (Help("keep its values only, by `.detach()`, or do not keep it at all"),),
        (operation.id,),
        raised=True,
    )


@rule("error", [Trouble.REFUSED])
def vmap_inplace(ask: Ask) -> Iterator[Claim[Refusal]]:
    """Inside `vmap`, a tensor that is not mapped is changed in place by one that is.

    `vmap` runs a function once for all samples. What the function makes by itself, as by `torch.zeros`, has no axis for
    them, so it cannot take what differs from sample to sample.

    Bad:

        import torch
        from torch.func import vmap

        def squares(x):
            out = torch.zeros(2)
            out[0] = x.square()
            out[1] = x
            return out

        w = torch.rand(4, requires_grad=True)
        vmap(squares)(w).sum().backward()

    Good:

        import torch
        from torch.func import vmap

        def squares(x):
            return torch.stack([x.square(), x])

        w = torch.rand(4, requires_grad=True)
        vmap(squares)(w).sum().backward()
    """
    refused = refused_operands(ask, "changed in place under vmap")
    if refused is not None:
        yield Claim(refused.operation.id, refused)


@vmap_inplace.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    refused = told[0].evidence
    operation = refused.operation
    tensor = tensor_of(ask, operation.inputs[0]) if operation.inputs else None
    there = changed_name(operation.span, ask.run.sources) if operation.span is not None else None
    name = there or (tensor.name if tensor is not None else None)
    labels: tuple[Label, ...] = ()
    if tensor is not None and tensor.made is not None and tensor.made != operation.span:
        labels = (Label(tensor.made, "made here, the same for all samples"),)
    said = f"`{name}`" if name else "a tensor"
    return Story(
        f"{said} is not mapped by `vmap`, so it cannot take what differs from sample to sample",
        operation.span,
        "changed in place here",
        (name,) if name else (),
        labels,
        (),
        (Help("gather the parts in a list and `torch.stack` them, or make it by `new_zeros` of a mapped tensor"),),
        (operation.id,),
        raised=True,
    )
