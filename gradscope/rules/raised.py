"""Errors that torch raises in forward or backward, explained by their cause and its place.

What the exception says is believed only where the record shows the call that torch refused, so that an exception of
the user's own words, or one that the program has caught, draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Crash, Help, Label, Operation, Span
from gradscope.graph.naming import argument_name, shape_text, short_name, written_at
from gradscope.graph.refusals import Refusal, refused_call
from gradscope.graph.written import Written, written
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.mends.calls import floating, reduced
from gradscope.rules.mends.places import into_a_new_tensor, without_grad_mode
from gradscope.rules.mends.switches import trainable
from gradscope.rules.words import raised_at


@rule("error", [Trouble.REFUSED])
def leaf_inplace(ask: Ask) -> Iterator[Claim[Refusal]]:
    """A leaf that requires grad, or a view of one, is changed in place while grad mode is on.

    A leaf is where gradients arrive. Were it overwritten by the result of an operation, it would be a leaf no more, so
    torch refuses. An update by hand belongs into `torch.no_grad()`; a result belongs into a new tensor.

    Bad:

        import torch

        w = torch.zeros(3, requires_grad=True)
        for _ in range(3):
            loss = (w - 1).square().sum()
            loss.backward()
            w -= 0.1 * w.grad
            w.grad = None

    Good:

        import torch

        w = torch.zeros(3, requires_grad=True)
        for _ in range(3):
            loss = (w - 1).square().sum()
            loss.backward()
            with torch.no_grad():
                w -= 0.1 * w.grad
            w.grad = None
    """
    refused = refused_call(ask, "leaf changed in place")
    if refused is not None:
        yield Claim(refused.operation.id, refused)


@leaf_inplace.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    flow, operation, _ = told[0].evidence
    target = written(flow, operation)
    tensor, splitter = target.base, target.splitter
    span = operation.span
    name = tensor.name if tensor is not None and tensor.name else None
    here = written_at(span, ask.run.sources)
    said = f"`{name}`" if name else f"`{here[0]}`" if here else "a tensor"
    change = short_name(operation.name)
    if tensor is None:
        message = f"`{change}` writes into a view that autograd cannot follow"
    elif splitter is not None:
        of = f"views of `{name}`" if name else f"views that `{short_name(splitter.name)}` gave"
        message = f"`{change}` writes into one of several {of}, which autograd cannot follow"
    elif tensor.leaf and tensor.requires_grad:
        what = "a view of a leaf" if target.view else "a leaf"
        message = f"{said} is {what} that requires grad: it cannot be changed in place with grad mode on"
    else:
        message = f"{said} is a non-leaf: what `{change}` writes here cannot be followed"
    labels = raised_at(ask, span)
    if splitter is not None and splitter.span is not None and splitter.span != span:
        labels += (Label(splitter.span, f"`{short_name(splitter.name)}` gives the views here"),)
    elif tensor is not None and tensor.made is not None and tensor.made != span:
        labels += (Label(tensor.made, "the leaf is made here" if tensor.leaf else "made here"),)
    return Story(
        message,
        span,
        "changed in place, so torch raises here",
        _each(name, *here),
        labels,
        (),
        _ways(ask, span, target),
        (operation.id,),
        raised=True,
    )


_NO_GRAD = "to update its values, write this line inside `with torch.no_grad():`"
_NEW = "to compute with what is written, write it to a new tensor: `x = x - mean`, or change a `.clone()`"
_STACK = "make new tensors in place of the views, and join them with `torch.stack` or `torch.cat`"


def _ways(ask: Ask, span: Span | None, target: Written) -> tuple[Help, ...]:
    """What to do instead. Without grad mode a change is no part of what is differentiated: right for updates only."""
    tensor = target.base
    several = target.splitter is not None
    if tensor is None or not tensor.leaf or not tensor.requires_grad:
        return (Help(_STACK) if several else Help("write to a new tensor instead", into_a_new_tensor(ask, span)),)
    if tensor.nn_parameter or tensor.optimizer is not None or target.by_gradient:
        return (Help(_NO_GRAD, without_grad_mode(ask, span)),)
    return (Help(_STACK) if several else Help(_NEW, into_a_new_tensor(ask, span)), Help(_NO_GRAD))


def _each(*names: str | None) -> tuple[str, ...]:
    """These names, each once."""
    return tuple(dict.fromkeys(name for name in names if name))


@rule("error", [Trouble.REFUSED])
def non_scalar_backward(ask: Ask) -> Iterator[Claim[Refusal]]:
    """Backward starts from a tensor of several elements, and no gradient for them is given.

    `backward()` begins with the gradient 1, which is defined for a single number only. Most often a reduction is
    missing in the loss: `.mean()`, `.sum()`, or `reduction="none"` that was left in.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.mse_loss(net(torch.rand(8, 4)), torch.rand(8, 1), reduction="none")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.mse_loss(net(torch.rand(8, 4)), torch.rand(8, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_call(ask, "no scalar", "gradient of another shape")
    if refused is not None:
        yield Claim(refused.operation.id, refused)


@non_scalar_backward.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    flow, operation, crash = told[0].evidence
    roots = [tensor for value in operation.inputs if (tensor := flow.tensor(value)) is not None]
    elements = [tensor for tensor in roots if any(size != 1 for size in tensor.shape)]
    root = next(iter(elements or roots), None)
    said = f"`{root.name}`" if root is not None and root.name else "this tensor"
    labels: tuple[Label, ...] = ()
    if root is not None and root.made is not None and root.made != operation.span:
        labels = (Label(root.made, f"{said} of shape {shape_text(root.shape)} is made here"),)
    if crash.symptom == "gradient of another shape":
        shapes = [shape_text(tensor.shape) for tensor in roots]
        message = f"backward of {said} is given a gradient of another shape than {shapes[0] if shapes else 'its own'}"
        help_ = Help("give a gradient of the very shape of the tensor, such as `torch.ones_like(...)`")
    elif root is not None and root.dtype.startswith("complex"):
        message = f"backward starts from {said}, which is complex: only a real scalar has a gradient of its own"
        help_ = Help("make a real loss of it, with `.abs()` or `.real`")
    else:
        shape = f", of shape {shape_text(root.shape)}" if root is not None else ""
        message = f"backward starts from {said}{shape}: only a scalar has a gradient of its own"
        help_ = Help("reduce the loss to one number first, with `.mean()` or `.sum()`", reduced(ask, operation.span))
    return Story(
        message,
        operation.span,
        "torch raises here",
        tuple(
            dict.fromkeys(
                [*(t.name for t in elements or roots if t.name), *written_at(operation.span, ask.run.sources)]
            )
        ),
        labels,
        (),
        (help_,),
        raised=True,
    )


@rule("error", [Trouble.REFUSED])
def inference_tensor(ask: Ask) -> Iterator[Claim[Refusal]]:
    """A tensor made in inference mode enters a computation that autograd records.

    Inference mode drops all that autograd needs to keep track of a tensor, so that it can never be saved for backward.
    `torch.no_grad()` turns gradients off as well, and what it gives may be used in training.

    Bad:

        import torch
        from torch import nn

        backbone, head = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        for _ in range(3):
            with torch.inference_mode():
                features = backbone(torch.rand(8, 4))
            loss = head(features).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        backbone, head = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        for _ in range(3):
            with torch.no_grad():
                features = backbone(torch.rand(8, 4))
            loss = head(features).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_call(ask, "inference tensor")
    if refused is not None and _inference_tensors(refused):
        yield Claim(refused.operation.id, refused)


@inference_tensor.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    run = ask.run
    refused = told[0].evidence
    _, met, crash = refused
    operations = [operation for step in run.steps for operation in step.operations]
    made_in = _made_in_inference_mode(operations)
    holder = run.holder
    tensors = run.tensor_by_id
    taken = _inference_tensors(refused)
    maker, switch = _origin(taken[0], operations, made_in)
    tensor = tensors[holder[taken[0]]]
    names = tuple(dict.fromkeys(name for value in taken if (name := tensors[holder[value]].name)))
    if not names and len(taken) == 1 and met.span is not None:
        names = tuple(filter(None, [argument_name(met.span, run.sources)]))
    said = f"`{names[0]}`" if names else "a tensor"
    labels: tuple[Label, ...] = ()
    span = _switch_span(ask, switch) if switch is not None else None
    made = (maker.span if maker is not None else None) or tensor.made
    if span is not None and made is not None and made.line != span.line:
        labels = (Label(made, "so an inference tensor is made here"),)
    span = span or made or crash.span
    where = "what is to require grad" if met.name == "nn.Parameter" else "a computation that autograd records"
    labels += raised_at(ask, span, "autograd meets it: torch raises")
    return Story(
        f"{said} was made in inference mode and enters {where}",
        span,
        "inference mode begins here" if switch is not None else "made here, in inference mode",
        names,
        labels,
        (),
        (Help(_NO_INFERENCE, trainable(ask, span) if switch is not None and span is not None else ()),),
        raised=True,
    )


_NO_INFERENCE = "use `torch.no_grad()` here: it keeps no history either, and its results may be trained on"


def _inference_tensors(refused: Refusal) -> list[int]:
    """The values that a refused call took and that were made in inference mode."""
    held = ((value, refused.flow.tensor(value)) for value in refused.operation.inputs)
    return [value for value, tensor in held if tensor is not None and tensor.inference]


def _made_in_inference_mode(operations: list[Operation]) -> dict[int, Operation]:
    """What turned inference mode on for each operation that ran in it, by the operation's id."""
    found: dict[int, Operation] = {}
    stack: list[Operation] = []
    for operation in operations:
        if operation.name.startswith("inference_mode("):
            if operation.name.startswith("inference_mode(True)"):
                stack.append(operation)
            elif stack:
                stack.pop()
        elif stack:
            found[operation.id] = stack[0]
    return found


def _origin(
    value: int, operations: list[Operation], made_in: dict[int, Operation]
) -> tuple[Operation | None, Operation | None]:
    """The operation that made an inference tensor, behind views of it made later, and where the mode began."""
    maker: Operation | None = None
    for operation in reversed(operations):
        if value in operation.outputs and value not in operation.inputs:
            maker = operation
            if operation.id in made_in:
                return maker, made_in[operation.id]
            if not operation.inputs:
                break
            value = operation.inputs[0]
    return maker, None


def _switch_span(ask: Ask, switch: Operation) -> Span | None:
    """Where inference mode begins: of a decorated function, the decorator rather than all of its head."""
    span = switch.span
    if span is None or "decorator" not in switch.name:
        return span
    lines = ask.run.sources.get(span.file, {})
    number = span.line
    while lines.get(number, "").lstrip().startswith("@"):
        text = lines[number]
        if "inference_mode" in text:
            column = len(text) - len(text.lstrip()) + 1
            return Span(span.file, number, column, number, len(text.rstrip()) + 1, span.function)
        number += 1
    return Span(span.file, span.line, function=span.function)


@rule("error", [Trouble.REFUSED])
def integer_requires_grad(ask: Ask) -> Iterator[Claim[Crash]]:
    """A tensor of integers or booleans is asked to require grad.

    A gradient is a limit of ever smaller changes, which whole numbers do not have. `torch.arange(n)`,
    `torch.tensor([1, 2])` and the indices of `max` are integers unless a floating point dtype is asked for.

    Bad:

        import torch
        from torch import nn

        scale = nn.Parameter(torch.arange(3))
        optimizer = torch.optim.SGD([scale], lr=0.1)
        for _ in range(3):
            loss = (scale - 1).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        scale = nn.Parameter(torch.arange(3.0))
        optimizer = torch.optim.SGD([scale], lr=0.1)
        for _ in range(3):
            loss = (scale - 1).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    crash = ask.run.crash
    if crash is not None and crash.symptom == "integer requires grad":
        yield Claim(crash.span, crash)


@integer_requires_grad.words
def _(told: Sequence[Claim[Crash]], ask: Ask) -> Story:
    crash = told[0].evidence
    refused = refused_call(ask, "integer requires grad")
    tensor = None
    if refused is not None and refused.operation.inputs:
        tensor = refused.flow.tensor(refused.operation.inputs[0])
    name = tensor.name if tensor is not None else None
    said = f"`{name}`, of {tensor.dtype}," if tensor is not None and name else "a tensor of whole numbers"
    labels: tuple[Label, ...] = ()
    if (
        tensor is not None
        and tensor.made is not None
        and crash.span is not None
        and tensor.made.line != crash.span.line
    ):
        labels = (Label(tensor.made, f"made here, of {tensor.dtype}"),)
    return Story(
        f"{said} cannot require grad: only floating point and complex tensors can",
        crash.span,
        "torch raises here",
        _each(name, *written_at(crash.span, ask.run.sources, line=True)),
        labels,
        (),
        (Help(_FLOATING, floating(ask, crash.span, plain=_is_plain(refused))),),
        raised=True,
    )


_FLOATING = "make the tensor with a floating point dtype, or convert it first, with `.float()`"


def _is_plain(refused: Refusal | None) -> bool:
    """Whether whole numbers were not computed from a tensor that has a history, as the places of a maximum are."""
    if refused is None or not refused.operation.inputs:
        return True
    flow = refused.flow
    maker = flow.maker.get(refused.operation.inputs[0])
    return maker is None or not any(flow.history[value] for value in maker.inputs)
