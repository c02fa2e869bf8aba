"""Operands whose sizes do not go together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.calls import argument, constructor
from gradscope.graph.facts import Edit, Help, Label, Operation, Tensor
from gradscope.graph.fits import Fit, fit_of, fixed_at, mend_of_axes, name_in_code, number_of
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.operands import is_held, layer_behind, module_at, shapes_told, tensor_of, way
from gradscope.graph.refusals import Refusal, refused_operands
from gradscope.rules.claim import Claim, Story, Trouble, rule


@rule("error", [Trouble.REFUSED])
def shape_mismatch(ask: Ask) -> Iterator[Claim[Refusal]]:
    """An operation is given tensors whose sizes do not go together.

    A layer is made for a number of features or channels, a loss for a prediction and a target of one batch, a view for
    a number of elements. Where another size comes in, the number that was fixed in advance is wrong, an axis lies in
    another place, or an operation before has mixed the axes.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 15 * 15, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            images, digits = torch.rand(4, 1, 28, 28), torch.randint(10, (4,))
            loss = nn.functional.cross_entropy(net(images), digits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 13 * 13, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            images, digits = torch.rand(4, 1, 28, 28), torch.randint(10, (4,))
            loss = nn.functional.cross_entropy(net(images), digits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_operands(ask, "shapes differ")
    if refused is not None:
        yield Claim(refused.operation.id, refused)


@shape_mismatch.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    refused = told[0].evidence
    tellers = (_layer_of, _wrong_norm, _view, _loss, _state, _kept, _pair)
    story = next(story for teller in tellers if (story := teller(ask, refused)) is not None)
    values = [value for value in refused.operation.inputs if not is_held(tensor_of(ask, value))]
    ways = dict.fromkeys(way for value in values[:2] if (way := shapes_told(ask, refused, value)) is not None)
    facts = (*(f"shapes: {way}" for way in ways), f"torch says: {refused.crash.message}")
    return replace(story, facts=(*story.facts, *facts), operations=(refused.operation.id,), raised=True)


def _operands(ask: Ask, refused: Refusal) -> list[Tensor]:
    return [tensor for value in refused.operation.inputs if (tensor := tensor_of(ask, value)) is not None]


def _said(tensor: Tensor) -> str:
    shape = shape_text(tensor.shape)
    return f"`{tensor.name}` ({shape})" if tensor.name else f"a tensor of {shape}"


def _names(*tensors: Tensor) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors if tensor.name is not None)


def _layer_of(ask: Ask, refused: Refusal) -> Story | None:
    """What is to be told where a layer does not take what comes in; None where its size is not what is wrong."""
    fit = fit_of(ask, refused)
    if fit is None or "Expected hidden" in refused.crash.message:
        return None  # of a recurrent layer it is the state that does not fit
    moved = mend_of_axes(ask, refused, fit)
    if moved is not None:
        return _at_call(ask, refused, fit, moved)
    if fit.size == fit.wanted:
        return None
    return _wrong_number(ask, refused, fit)


def _layer(ask: Ask, operation: Operation, weight: Tensor) -> str:
    """What a layer is called."""
    if weight.name is not None and "." in weight.name:
        return f"`{weight.name.rpartition('.')[0]}`"
    if operation.module is not None and module_at(ask, operation.module) is not None:
        return f"`{operation.module}`"
    return f"`{short_name(operation.name)}`"


def _at_call(ask: Ask, refused: Refusal, fit: Fit, mend: str) -> Story:
    operation = refused.operation
    labels = (Label(fit.weight.made, f"made for {fit.wanted:,}"),) if fit.weight.made is not None else ()
    return Story(
        f"{_layer(ask, operation, fit.weight)} takes {fit.wanted:,} {_unit(operation)}, where {_said(fit.given)} has"
        f" {fit.size:,}: its axes do not lie as the layer expects them",
        operation.span,
        f"{shape_text(fit.given.shape)} comes in here",
        _names(fit.weight, fit.given),
        labels,
        (),
        (Help(mend),),
        (operation.id,),
        raised=True,
    )


def _wrong_number(ask: Ask, refused: Refusal, fit: Fit) -> Story:
    """Where the layer was made for another number."""
    operation, sources = refused.operation, ask.run.sources
    module = module_at(ask, operation.module)
    kind = module.type if module is not None else None
    made = constructor(fit.weight.made, kind, sources)
    number, size = number_of(ask, fit)
    place, keyword = ops.TAKES_SIZE.get(kind or "", (0, None))
    said = argument(made, sources, place, keyword) if kind in ops.TAKES_SIZE else None
    span, wrong, labels = fixed_at(ask, made, said, fit, operation.span)
    if span != operation.span and operation.span is not None:
        labels += (Label(operation.span, f"{shape_text(fit.given.shape)} comes in here, so torch raises"),)
    name = keyword or "its size"
    mend = f"make it for what comes in: `{name}` is {number}"
    fresh = size != fit.size
    if fresh:
        mend = f"flatten what comes in, `{name_in_code(fit.given)}.flatten(1)`, and let `{name}` be {number}"
    edit = wrong.becomes(number) if wrong is not None and not fresh else ()
    return Story(
        f"{_layer(ask, operation, fit.weight)} is made for {fit.wanted:,} {_unit(operation)}, and {size:,} come in",
        span,
        f"fixes {fit.wanted:,} here" if span != operation.span else f"{shape_text(fit.given.shape)} comes in here",
        _names(fit.weight, fit.given),
        labels,
        (),
        (Help(mend, edit),),
        (operation.id,),
        raised=True,
    )


def _unit(operation: Operation) -> str:
    return "channels" if ops.is_a(operation, ops.CONVOLVES, ops.NORMS_CHANNELS) else "features"


def _wrong_norm(ask: Ask, refused: Refusal) -> Story | None:
    """A batch norm for another number of axes, or with a single value to take the mean of."""
    operation, taken = refused.operation, _operands(ask, refused)
    module, message = module_at(ask, operation.module), refused.crash.message
    if not taken or not ops.is_a(operation, ops.NORMS_CHANNELS):
        return None
    given = taken[0]
    if "more than 1 value" in message:
        help_ = "leave out a batch of one sample (`drop_last=True` in the DataLoader), or call `eval()` to test"
        return Story(
            f"batch norm has one value a channel to take mean and variance of: {_said(given)}",
            operation.span, "a batch of one comes in here", _names(given), (), (), (Help(help_),),
        )  # fmt: skip
    if module is None or "D input)" not in message:
        return None
    made = constructor(taken[-1].made, module.type, ask.run.sources)
    axes = len(given.shape)
    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}.get(axes)
    if kind is None or kind == module.type:
        return None
    span = made or operation.span
    labels = (Label(operation.span, f"{shape_text(given.shape)} comes in here"),) if operation.span else ()
    return Story(
        f"`{module.path}` is a {module.type}, and what comes in has {axes} axes: {_said(given)}",
        span, f"for inputs of {axes} axes, `nn.{kind}` is made", _names(given),
        labels if made is not None else (), (), (Help(f"use `nn.{kind}`, or give the input the axes it expects"),),
    )  # fmt: skip


def _view(ask: Ask, refused: Refusal) -> Story | None:
    """A view that does not hold all the numbers, or whose numbers do not lie in order."""
    operation, taken, sources = refused.operation, _operands(ask, refused), ask.run.sources
    if not taken or not ops.is_a(operation, ops.CUTS_ANEW):
        return None
    given, sizes = taken[0], refused.crash.call.numbers if refused.crash.call is not None else ()
    if "not compatible" in refused.crash.message:
        moves = next(
            (s.operation for s in way(ask, operation.inputs[0]) if ops.is_a(s.operation, ops.MOVES_AXES)), None
        )
        labels: tuple[Label, ...] = ()
        if moves is not None and moves.span is not None and moves.span != operation.span:
            labels = (Label(moves.span, f"`{short_name(moves.name)}` changes the order without moving a number"),)
        return Story(
            f"{_said(given)} cannot be viewed otherwise: its numbers do not lie in this order",
            operation.span, "`view` moves nothing", _names(given), labels, (),
            (Help("use `reshape`, which copies where it must"),),
        )  # fmt: skip
    if not sizes or not given.shape or refused.crash.call is None:
        return None
    each, batch = math.prod(given.shape[1:]), given.shape[0]
    others = math.prod(size for size in sizes[1:] if size >= 0)
    wanted = shape_text(sizes).replace("-1", "?")
    help_ = Help(f"each of the {batch:,} samples has {each:,} numbers: `flatten(1)` gives {batch}x{each}")
    if others == each and sizes[0] not in (-1, batch):
        said = argument(operation.span, sources, 0)
        edit = said.becomes("-1") if said is not None and (said.literal or said.text.isidentifier()) else ()
        help_ = Help(f"{batch:,} samples come in here: take the number from the tensor, `x.shape[0]`, or -1", edit)
    elif len(sizes) == 2 and sizes[0] in (-1, batch):
        said = argument(operation.span, sources, 1)
        text = " * ".join(map(str, given.shape[1:]))
        edit = said.becomes(text) if said is not None and said.literal else ()
        help_ = Help(f"each of the {batch:,} samples has {each:,} numbers, {text}, and a layer takes as many", edit)
    return Story(
        f"{_said(given)} has {math.prod(given.shape):,} numbers: they cannot be viewed as {wanted}",
        operation.span, f"{shape_text(given.shape)} comes in here", _names(given), (), (), (help_,),
    )  # fmt: skip


def _loss(ask: Ask, refused: Refusal) -> Story | None:
    """A prediction and a target that are not of one batch, or not of one form."""
    operation, taken = refused.operation, _operands(ask, refused)
    if not ops.is_a(operation, ops.LOSSES) or len(taken) < 2 or not taken[0].shape:
        return None
    given, target = taken[:2]
    of_classes = ops.is_a(operation, ops.LOSSES_OF_CLASSES)
    name = target.name if target.name is not None and target.name.isidentifier() else "target"
    message = f"`{short_name(operation.name)}` compares {_said(given)} with {_said(target)}"
    names = _names(given, target)
    caret, mend = "these do not go together", "give both the same number of samples"
    if given.shape[:1] == target.shape[:1]:
        mend = "give both the same shape"
        if len(given.shape) == len(target.shape) > 2:
            mend = "bring both to one size: pad, crop or interpolate, or choose padding and strides that give it back"
    if not target.shape or given.shape[0] != target.shape[0]:
        if math.prod(target.shape) == given.shape[0] and of_classes:
            mend = f"flatten the target as well: `{name}.flatten()`"
        else:
            for value, wanted in ((operation.inputs[0], target.shape[:1]), (operation.inputs[1], given.shape[:1])):
                story = _batch_lost(ask, refused, value, wanted, message)
                if story is not None:
                    return story
    elif of_classes and given.shape[:-1] == target.shape and len(given.shape) > 2:
        mend = "classes come second: `.transpose(1, 2)` of the prediction, or flatten both to one row a place"
    elif target.shape[1:2] == (1,) and given.shape[:1] + given.shape[2:] == target.shape[:1] + target.shape[2:]:
        mend = f"give the class of each sample without an axis of its own: `{name}.squeeze(1)`"
    elif not of_classes and math.prod(given.shape) == math.prod(target.shape):
        fewer = len(given.shape) > len(target.shape)
        mend = f"give the target the shape of the prediction: `{name}.view_as(...)`"
        if len(given.shape) - 1 == len(target.shape) and given.shape[-1] == 1:
            mend = f"give the target that axis too, `{name}.unsqueeze(1)`, or `.squeeze(1)` the prediction"
        elif not fewer and target.shape[-1] == 1:
            mend = f"take the last axis from the target: `{name}.squeeze(-1)`"
    elif len(given.shape) == len(target.shape) == 2:
        story = _last_layer(ask, refused, given, target, message)
        if story is not None:
            return story
    return Story(message, operation.span, caret, names, (), (), (Help(mend),))


def _batch_lost(ask: Ask, refused: Refusal, value: int, batch: tuple[int, ...], message: str) -> Story | None:
    """The operation that changed the number of samples, on the way to one side of a loss."""
    for stage in way(ask, value):
        before, after = tensor_of(ask, stage.taken), tensor_of(ask, stage.given)
        if before is None or after is None or stage.operation.span is None:
            return None
        if before.shape[:1] == batch and after.shape[:1] != batch:
            operation, each = stage.operation, math.prod(before.shape[1:])
            name = short_name(operation.name)
            edit: tuple[Edit, ...] = ()
            mend = f"keep the first axis: {before.shape[0]:,} samples went in here"
            if ops.is_a(operation, ops.FLATTENS):
                mend = f"each of the {before.shape[0]:,} samples has {each:,} numbers: `.flatten(1)`"
                mend += f", and the layer behind takes {each:,} features"
                said = argument(operation.span, ask.run.sources, 1)
                text = " * ".join(map(str, before.shape[1:]))
                edit = said.becomes(text) if said is not None and said.literal and name != "flatten" else ()
            labels = (Label(refused.operation.span, "so these do not go together"),) if refused.operation.span else ()
            return Story(
                f"`{name}` makes {shape_text(after.shape)} of {shape_text(before.shape)}, which mixes the samples: "
                + message,
                operation.span, f"{shape_text(before.shape)} goes in here, {shape_text(after.shape)} comes out",
                _names(after), labels, (), (Help(mend, edit),),
            )  # fmt: skip
    return None


def _last_layer(ask: Ask, refused: Refusal, given: Tensor, target: Tensor, message: str) -> Story | None:
    """The layer that gives a prediction of another width than the target has."""
    found = layer_behind(ask, refused.operation.inputs[0], given.shape[-1])
    if found is None:
        return None
    layer, weight = found
    module = module_at(ask, layer.module)
    made = constructor(weight.made, module.type if module is not None else None, ask.run.sources)
    if made is None or module is None or module.type not in ops.GIVES_SIZE:
        return None
    place, keyword = ops.GIVES_SIZE[module.type]
    said = argument(made, ask.run.sources, place, keyword)
    edit = said.becomes(str(target.shape[-1])) if said is not None and said.literal else ()
    labels = (Label(refused.operation.span, "compared here"),) if refused.operation.span is not None else ()
    return Story(
        f"{message}: the last layer gives {given.shape[-1]:,} values a sample, the target has {target.shape[-1]:,}",
        made, f"gives {given.shape[-1]:,} values", _names(weight, given, target), labels, (),
        (Help(f"let `{keyword}` be {target.shape[-1]}", edit),),
    )  # fmt: skip


def _state(ask: Ask, refused: Refusal) -> Story | None:
    """A recurrent layer that gets a state of another size."""
    operation, taken = refused.operation, _operands(ask, refused)
    if not ops.is_a(operation, ops.RECURRENT_MODULES, ops.RECURRENT, ops.CELLS):
        return None
    # A module may keep its state from call to call.
    free = [tensor for tensor in taken if not is_held(tensor) or tensor.registered == "attribute"]
    if len(free) < 2:
        return None
    given, state, sources = free[0], free[1], ask.run.sources
    module = module_at(ask, operation.module)
    weight = next((tensor for tensor in taken if is_held(tensor)), None)
    made = constructor(weight.made, module.type if module else None, sources) if weight is not None else None
    if len(given.shape) == len(state.shape) == 3 and state.shape[1] == given.shape[0] != given.shape[1]:
        return Story(
            f"the state is made for a batch of {state.shape[1]:,}, and the layer takes the second axis of "
            f"{_said(given)} as the batch",
            made or operation.span, "without `batch_first=True`, the first axis is time", _names(state, given),
            (Label(operation.span, "called here"),) if made is not None and operation.span else (), (),
            (Help("say `batch_first=True`: then the first axis is the batch"),),
        )  # fmt: skip
    fixed = state.made if state.made is not None and state.made != operation.span else None
    labels = (Label(operation.span, f"{shape_text(given.shape)} comes in here"),) if operation.span and fixed else ()
    return Story(
        f"the state {_said(state)} does not go with {_said(given)}",
        fixed or operation.span, "made here with these sizes" if fixed else "called here", _names(state, given),
        labels, (), (Help("take the batch from what comes in, as in `x.shape[0]`, when the state is made"),),
    )  # fmt: skip


def _kept(ask: Ask, refused: Refusal) -> Story | None:
    """One operand that the model holds and that was made for another size."""
    operation, taken = refused.operation, _operands(ask, refused)
    held = [tensor for tensor in taken if is_held(tensor) and tensor.shape]
    others = [tensor for tensor in taken if not is_held(tensor)]
    if len(held) != 1 or not others or held[0].made is None or ops.is_a(operation, ops.CUTS_ANEW):
        return None
    (kept,) = held
    labels = (Label(operation.span, f"meets {shape_text(others[0].shape)} here"),) if operation.span is not None else ()
    return Story(
        f"{_said(kept)} is made for other sizes than {_said(others[0])} has",
        kept.made, f"made of {shape_text(kept.shape)}", _names(kept, *others), labels, (),
        (Help("make it of the size that comes in, or take from it as much as is needed"),),
    )  # fmt: skip


def _pair(ask: Ask, refused: Refusal) -> Story:
    """Whatever else: the operands side by side."""
    operation, taken = refused.operation, _operands(ask, refused)
    name = short_name(operation.name)
    shown = " and ".join(_said(tensor) for tensor in taken[:4]) or "what it is given"
    numbers = refused.crash.call.numbers if refused.crash.call is not None else ()
    message = f"`{name}` cannot take {shown}"
    if len(taken) == 1 and name == "expand" and numbers:
        message = f"`{name}` cannot make {shape_text(numbers)} of {shown}"
    return Story(
        message,
        operation.span, "their sizes do not go together", _names(*taken[:4]), (), (),
        (Help(_mend(refused, name, taken)),),
    )  # fmt: skip


def _mend(refused: Refusal, name: str, taken: Sequence[Tensor]) -> str:
    shapes = [tensor.shape for tensor in taken]
    if ops.is_a(refused.operation, ops.JOINS):
        if len({len(shape) for shape in shapes}) > 1:
            least = min(taken, key=lambda tensor: len(tensor.shape))
            example = f"`{least.name}.unsqueeze(1)`" if least.name and least.name.isidentifier() else "`unsqueeze`"
            return f"give all of them the same number of axes, as by {example}"
        return "bring all of them to one size first: pad, crop or interpolate, or join along the axis that differs"
    if len(shapes) >= 2 and ops.is_a(refused.operation, ops.MULTIPLIES_MATRICES) and min(map(len, shapes[:2])) >= 2:
        first, second = shapes[:2]
        if first[-1] == second[-1]:
            return "turn the second one round: `.transpose(-2, -1)`"
        if first[-2] == second[-2]:
            return "turn the first one round: `.transpose(-2, -1)`"
        return "the last axis of the first must be as long as the last but one of the second"
    if name == "expand":
        return (
            "only axes of size 1 can be expanded: make it as long as what comes in, or give inputs no longer than it is"
        )
    if ops.is_a(refused.operation, ops.TAKES_PLACES):
        return "give the index as many axes as the tensor has: `.unsqueeze(...)` where one lacks"
    if len(shapes) == 2 and abs(len(shapes[0]) - len(shapes[1])) == 1:
        shorter, longer = sorted(shapes, key=len)
        if longer[: len(shorter)] == shorter:
            return "axes are matched from the last one on: `.unsqueeze(-1)` of the shorter one"
    if refused.operation.name.endswith("pool") or ops.is_a(refused.operation, ops.POOLS, ops.CONVOLVES):
        return "what comes in is smaller than the kernel: pool less often, pad, or give larger inputs"
    return "give them the same sizes, or sizes of 1 where they are to be repeated"
