"""Non-leaves: a gradient is expected of the result of an operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Operation, Optimizer, Run, Span, Tensor
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import short_name
from gradscope.rules.claim import Claim, Story, Trouble, names_of, rule, subjects
from gradscope.rules.mends.leaves import converted_inside, leaf_again, updated_in_place
from gradscope.rules.words import listed, who


@rule("error")
def non_leaf(ask: Ask) -> Iterator[Claim[_NonLeaf]]:
    """A gradient is expected of a non-leaf: of the result of an operation.

    Backward fills `.grad` of leaves only. `.to()`, `* 0.01`, a slice or `w = w - lr * g` give a new tensor that is
    none: its `.grad` stays None, no optimizer takes it, and as a module's attribute it is not registered.

    Bad:

        import torch

        x = torch.rand(4, requires_grad=True).to(torch.float64)
        x.square().sum().backward()
        print(x.grad)

    Good:

        import torch

        x = torch.rand(4).to(torch.float64).requires_grad_()
        x.square().sum().backward()
        print(x.grad)
    """
    yield from _refused_by_optimizer(ask.run)
    yield from _read_in_vain(ask)
    for tensor, maker in kept_as_attribute(ask):
        yield Claim(tensor.id, _Kept(maker), tensor, explains=((Trouble.REFUSED, None),))


@dataclass(frozen=True, slots=True)
class _Offered:
    """An optimizer was offered what it cannot take."""

    optimizer: Optimizer


@dataclass(frozen=True, slots=True)
class _Read:
    """`.grad` was read at this place, and is None; `maker` is the operation that made the non-leaf."""

    place: Span | None
    maker: Operation | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A module keeps what this operation made."""

    maker: Operation


_NonLeaf: TypeAlias = _Offered | _Read | _Kept


@non_leaf.words
def _(told: Sequence[Claim[_NonLeaf]], ask: Ask) -> Story:
    tensors = subjects(told)
    match told[0].evidence:
        case _Offered(optimizer):
            return _refused(optimizer, tensors, ask)
        case _Read() as read:
            return _read(read, tensors[0], ask)
        case _Kept(maker):
            return Story(
                f"`{tensors[0].name}` never learns: it is a result of `{short_name(maker.name)}`, not the parameter",
                maker.span,
                "this gives a new tensor; the parameter inside is neither registered nor optimized",
                names_of(told),
                help=(Help(_INSIDE, converted_inside(ask, maker.span)),),
            )


_INSIDE = "convert the values first, and make the `nn.Parameter` of the result"


def _refused_by_optimizer(run: Run) -> Iterator[Claim[_NonLeaf]]:
    for optimizer in run.optimizers:
        for tensor in (run.tensor_by_id[number] for number in optimizer.tensors if optimizer.refused):
            if not tensor.leaf:
                yield Claim(optimizer.id, _Offered(optimizer), tensor)


def _refused(optimizer: Optimizer, offered: Sequence[Tensor], ask: Ask) -> Story:
    names = tuple(tensor.name or "unnamed" for tensor in offered)
    those = who(names, ask.run)
    return Story(
        f"{those.subject} cannot be optimized: not a leaf, but the result of an operation",
        offered[0].made or optimizer.made,
        "a non-leaf is made here" + (f", by `{offered[0].grad_fn}`" if offered[0].grad_fn else ""),
        names,
        (Label(optimizer.made, f"{optimizer.name} takes leaves only"),) if optimizer.made else (),
        (f"non-leaf: {listed(names)}",),
        (Help(_OWN, leaf_again(ask, offered[0].made)),),
        raised=True,
    )


_OWN = "make it a leaf of its own: `.detach().clone().requires_grad_()`, and use that in the loss"


def _read_in_vain(ask: Ask) -> Iterator[Claim[_NonLeaf]]:
    told: set[Span | None] = set()
    for flow, operation, value in _reads_of_nothing(ask):
        tensor = flow.tensor(value)
        if tensor is None or tensor.leaf:
            continue
        maker = flow.maker.get(value)
        cause = (maker.span if maker else None) or tensor.made
        if {cause, operation.span} & told:
            continue
        told |= {cause, operation.span} - {None}
        yield Claim(("read", operation.id), _Read(operation.span, maker), tensor)


def _reads_of_nothing(ask: Ask) -> Iterator[tuple[StepFlow, Operation, int]]:
    """Reads of `.grad` that gave nothing, of tensors of which no other read gave anything."""
    steps = ask(flows)
    reads = [(flow, read) for flow in steps for read in flow.operations if read.name == "Tensor.grad"]
    # A read has a result only where it met a new tensor: a second read of a retained gradient has none either.
    retained = {flow.holder[value] for flow, read in reads if read.outputs for value in read.inputs}
    for flow, read in reads:
        if not read.outputs and len(read.inputs) == 1 and flow.holder[read.inputs[0]] not in retained:
            yield flow, read, read.inputs[0]


def _read(read: _Read, tensor: Tensor, ask: Ask) -> Story:
    name, maker = tensor.name or "this tensor", read.maker
    way = f"read the gradient of the leaf, or call `{name}.retain_grad()` before backward"
    span = (maker.span if maker else None) or tensor.made
    edits = leaf_again(ask, span)
    if _has_taken_the_name(ask.run, tensor):
        edits = updated_in_place(ask, span) or edits
        way = f"change it in place under `torch.no_grad()`, or go on with `{name}.detach().requires_grad_()`"
    return Story(
        f"`{name}` is no leaf: its `.grad` stays None, the gradient goes to what it was made from",
        span,
        f"a new tensor is made here, by `{short_name(maker.name)}`" if maker else "a new tensor is made here",
        (name,),
        (Label(read.place, "`.grad` is None here"),) if read.place else (),
        help=(Help(way, edits),),
    )


def _has_taken_the_name(run: Run, tensor: Tensor) -> bool:
    """Whether a result was assigned to the variable of a leaf, as in `w = w - lr * w.grad`."""
    return tensor.name is not None and any(
        other.leaf and other.requires_grad and other.name == tensor.name for other in run.tensors
    )


def kept_as_attribute(ask: Ask) -> Iterator[tuple[Tensor, Operation]]:
    """A module keeps the result of an operation where a parameter was meant: the parameter is out of reach."""
    steps = ask(flows)
    makers = {value: operation for flow in steps for value, operation in flow.maker.items()}
    for flow in steps[1:2]:
        for tensor_id, values in flow.values_of.items():
            tensor = flow.tensors[tensor_id]
            maker = makers.get(values[0])
            if tensor.leaf or tensor.registered != "attribute" or maker is None or maker in flow.operations:
                continue
            sources = [source for value in maker.inputs if (source := flow.tensor(value)) is not None]
            if any(source.leaf and _is_out_of_reach(source) for source in sources):
                yield tensor, maker


def _is_out_of_reach(leaf: Tensor) -> bool:
    """Whether a leaf that was to learn is held by nobody: a parameter, or a nameless one that gradients come to."""
    if leaf.optimizer is not None or leaf.change:
        return False
    fed = leaf.requires_grad and leaf.name is None and leaf.received is not None and leaf.received.steps >= 2
    return leaf.nn_parameter or fed
