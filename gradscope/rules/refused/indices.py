"""Indices and classes beyond what there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.calls import argument, constructor, literals_of
from gradscope.graph.facts import Edit, Help, Label, Span, Tensor
from gradscope.graph.limits import TARGETS_A_CLASS
from gradscope.graph.naming import short_name
from gradscope.graph.operands import is_held, layer_behind, module_at, tensor_of
from gradscope.graph.refusals import Refusal, refused_operands
from gradscope.rules.claim import Claim, Story, Trouble, rule


@rule("error", [Trouble.REFUSED])
def index_range(ask: Ask) -> Iterator[Claim[Refusal]]:
    """An index, or the number of a class, lies beyond what there is.

    Places count from 0, so a table of 10 rows has the rows 0 to 9. An embedding needs as many rows as there are tokens,
    padding and unknown ones included, and a classifier as many outputs as there are classes, whose numbers begin at 0.

    Bad:

        import torch
        from torch import nn

        words = torch.tensor([[3, 1, 10], [2, 10, 10]])
        table, head = nn.Embedding(10, 4), nn.Linear(4, 2)
        optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], lr=0.1)
        for _ in range(3):
            loss = nn.functional.cross_entropy(head(table(words).mean(1)), torch.tensor([0, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        words = torch.tensor([[3, 1, 10], [2, 10, 10]])
        table, head = nn.Embedding(11, 4), nn.Linear(4, 2)
        optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], lr=0.1)
        for _ in range(3):
            loss = nn.functional.cross_entropy(head(table(words).mean(1)), torch.tensor([0, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_operands(ask, "index out of range")
    if refused is not None:
        yield Claim(refused.operation.id, refused)


@index_range.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    refused = told[0].evidence
    story = _looked_up(ask, refused) or _class(ask, refused) or _place(ask, refused)
    facts = (*story.facts, f"torch says: {refused.crash.message}")
    return Story(
        story.message, story.span, story.caret, story.tensors, story.labels, facts, story.help,
        (refused.operation.id,), raised=True,
    )  # fmt: skip


def _range(refused: Refusal, value: int) -> tuple[int, int] | None:
    """The least and the largest place that an operand names."""
    ranges = refused.crash.call.ranges if refused.crash.call is not None else ()
    return next(((low, high) for number, low, high in ranges if number == value), None)


def _looked_up(ask: Ask, refused: Refusal) -> Story | None:
    """An embedding with too few rows."""
    operation = refused.operation
    if not ops.is_a(operation, ops.LOOKS_UP):
        return None
    operands = [(value, tensor) for value in operation.inputs if (tensor := tensor_of(ask, value)) is not None]
    tables = [tensor for _, tensor in operands if len(tensor.shape) == 2 and tensor.dtype.startswith(("float", "bf"))]
    places = [(value, tensor) for value, tensor in operands if tensor not in tables]
    if not tables or not places:
        return None
    table, (value, given) = tables[0], places[0]
    rows, found = table.shape[0], _range(refused, value)
    name, names = _called(table), _names(table, given)
    if found is not None and found[0] < 0:
        return Story(
            f"{name} is asked for row {found[0]}, and rows count from 0", operation.span,
            f"{_called(given)} holds {found[0]}", names, (), (),
            (Help("give padding and unknown tokens a row of their own, not a negative number"),),
        )  # fmt: skip
    asked = f"row {found[1]:,}" if found is not None else "a row beyond its last"
    module = module_at(ask, operation.module)
    made = constructor(table.made, module.type if module is not None else None, ask.run.sources)
    needed = found[1] + 1 if found is not None else None
    message = f"{name} has {rows:,} rows, 0 to {rows - 1:,}, and is asked for {asked}"
    return _fixed(ask, refused, table, made, (0, "num_embeddings"), rows, needed, message, names, "rows")


def _class(ask: Ask, refused: Refusal) -> Story | None:
    """The number of a class that the last layer has no output for."""
    operation = refused.operation
    if not ops.is_a(operation, ops.LOSSES_OF_CLASSES) or len(operation.inputs) < 2:
        return None
    given, target = (tensor_of(ask, value) for value in operation.inputs[:2])
    found = _range(refused, operation.inputs[1])
    if given is None or target is None or found is None or not given.shape:
        return None
    classes = given.shape[1] if len(given.shape) > 1 else given.shape[0]
    low, high = found
    name, names = _called(target), _names(target, given)
    text = target.name if target.name is not None and target.name.isidentifier() else "target"
    labels: tuple[Label, ...] = ()
    if target.made is not None and operation.span is not None and target.made.line != operation.span.line:
        labels = (Label(target.made, f"holds {low} to {high}"),)
    if low < 0 and high < classes:
        return Story(
            f"{name} names class {low}, and classes count from 0", operation.span, f"{name} holds {low} to {high}",
            names, labels, (), (Help(f"to leave such places out of the loss, say `ignore_index={low}`"),),
        )  # fmt: skip
    shifted = Help(f"count the classes from 0: `{text} - {low}`")
    if low >= 1 and high <= classes:
        # Of so few targets, the classes from 0 on may be missing by chance.
        few = math.prod(target.shape) < TARGETS_A_CLASS * classes
        more = (Help(f"or, if there are {high + 1} classes, give the prediction as many"),) if few else ()
        return Story(
            f"{name} names class {high:,}, and {classes:,} classes are 0 to {classes - 1:,}"
            if few
            else f"{name} counts its classes from {low} to {high}, and {classes} classes are 0 to {classes - 1}",
            operation.span, f"{name} holds {low} to {high}", names, labels, (), (shifted, *more),
        )  # fmt: skip
    message = f"{name} names class {high:,}, and the prediction has {classes:,}: 0 to {classes - 1:,}"
    layer = layer_behind(ask, operation.inputs[0], classes)
    if layer is None:
        return Story(
            message, operation.span, f"{name} holds {low} to {high}", names, labels, (),
            (Help(f"give the prediction {high + 1:,} classes along its second axis"),),
        )  # fmt: skip
    module = module_at(ask, layer[0].module)
    made = constructor(layer[1].made, module.type if module is not None else None, ask.run.sources)
    names = (*names, *_names(layer[1]))
    return _fixed(ask, refused, layer[1], made, (1, "out_features"), classes, high + 1, message, names, "classes")


def _fixed(
    ask: Ask, refused: Refusal, weight: Tensor, made: Span | None, where: tuple[int, str], number: int,
    needed: int | None, message: str, names: tuple[str, ...], unit: str,
) -> Story:  # fmt: skip
    """What is told of a module that was made for too few."""
    operation, sources = refused.operation, ask.run.sources
    said = argument(made, sources, *where)
    span = made or operation.span
    edit: tuple[Edit, ...] = ()
    labels = (Label(operation.span, "so torch raises here"),) if made is not None and operation.span is not None else ()
    if said is not None and said.literal and needed is not None:
        edit = said.becomes(str(needed))
    elif said is not None and said.text.isidentifier() and weight.built is not None:
        handed = literals_of(weight.built, number, sources)
        if len(handed) == 1 and made is not None:
            span, labels = weight.built, (Label(made, f"`{said.text}` is {number:,} here"), *labels)
            edit = handed[0].becomes(str(needed)) if needed is not None else ()
    mend = f"make it for all of them: `{where[1]}` is at least {needed:,}" if needed is not None else "make it larger"
    return Story(message, span, f"made for {number:,} {unit}", names, labels, (), (Help(mend, edit),))


def _place(ask: Ask, refused: Refusal) -> Story:
    """Any other place that there is not."""
    operation = refused.operation
    operands = [(value, tensor) for value in operation.inputs if (tensor := tensor_of(ask, value)) is not None]
    name = short_name(operation.name)
    shape = f", of {'x'.join(map(str, operands[0][1].shape))}" if operands and operands[0][1].shape else ""
    given = _called(operands[0][1]) if operands else "a tensor"
    chosen = [(tensor, found) for value, tensor in operands[1:] if (found := _range(refused, value)) is not None]
    holds = f": {_called(chosen[0][0])} holds {chosen[0][1][0]} to {chosen[0][1][1]}" if chosen else ""
    return Story(
        f"`{name}` takes a place beyond the end of {given}{shape}{holds}",
        operation.span, "there is no such place", _names(*(tensor for _, tensor in operands)), (), (),
        (Help("places count from 0: the last one is the size less one"),),
    )  # fmt: skip


def _called(tensor: Tensor) -> str:
    name = tensor.name
    if name is None:
        return "the table" if is_held(tensor) else "a tensor"
    return f"`{name.rpartition('.')[0] or name}`" if is_held(tensor) else f"`{name}`"


def _names(*tensors: Tensor) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tensor.name for tensor in tensors if tensor.name is not None))
