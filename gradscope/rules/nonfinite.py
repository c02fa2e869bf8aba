"""NaN and infinity: the operation that first made a value or a gradient so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Nonfinite, Operation, Run, Tensor
from gradscope.graph.naming import operand_names, short_name
from gradscope.graph.spoilt import counts_nothing, is_written_here, suffering, vanished_constant
from gradscope.rules.claim import Claim, Need, Story, Trouble, rule
from gradscope.rules.mends.finite import kept_finite
from gradscope.rules.words import listed, who


@rule("error", [Trouble.NOT_FINITE], needs=[Need.OPERATIONS, Need.VALUES])
def nonfinite_forward(ask: Ask) -> Iterator[Claim[Nonfinite]]:
    """An operation made NaN or infinity out of finite numbers on the way to the loss.

    The gradients of such a loss are NaN, and after one step of the optimizer so is everything that it trains. What
    comes later (losses, errors about NaN) are symptoms: what counts is the first operation.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            probability = torch.sigmoid(net(torch.rand(8, 4)) - 1000)
            loss = -torch.log(probability).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = -nn.functional.logsigmoid(net(torch.rand(8, 4)) - 1000).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    event = ask.run.nonfinite
    if event is not None and event.kind == "step":
        yield Claim("step", event)
    if event is not None and event.kind == "forward" and event.operation is not None:
        # Of such a loss no gradient is a number: that they are zero as well is no trouble of its own.
        besides = ((Trouble.ZERO_GRADIENT, None),) if event.step <= 1 else ()
        yield Claim(event.operation.id, event, besides=besides)


@nonfinite_forward.words
def _(told: Sequence[Claim[Nonfinite]], ask: Ask) -> Story:
    run, event = ask.run, told[0].evidence
    operation = event.operation
    if event.kind == "step":
        return _spoilt_by_step(run, event)
    if event.taken or operation is None:
        return _spoilt_before(run, event)
    name = short_name(operation.name)
    values = run.holder
    tensors = run.tensor_by_id
    root = (event.root,) if event.root is not None else ()
    made_names, root_names = (
        tuple(said for value in of if value in values and (said := tensors[values[value]].name))
        for of in (operation.outputs, root)
    )
    sufferers = tuple(tensor.name for tensor in suffering(run, event) if tensor.name is not None)
    near = (*made_names, *_taken(run, operation)) or root_names
    names = tuple(dict.fromkeys((*near, *sufferers)))
    empty = counts_nothing(ask, event)
    made = {tensors[values[value]].dtype for value in operation.outputs if value in values}
    half = made == {"float16"} and not event.given and _kind(event) not in _FORWARD_HELP
    help_ = _EMPTY_HELP if empty else _HALF_HELP if half else _help(ask, event, _FORWARD_HELP, _ANY_HELP)
    if event.given:
        message = f"`{name}` took what is not finite in step {event.step}: so the loss is not finite"
        caret = "what comes in here is NaN or infinite already"
    else:
        message = f"`{name}` made NaN or infinity of finite numbers in step {event.step}"
        caret = "finite numbers go in, and what comes out is not finite"
    if _kind(event) in ops.SOFTMAX_NODES and not event.given:  # of finite numbers it makes no other
        message = f"`{name}` gave NaN in step {event.step}: what came in was infinite already"
        caret = "over a row that is -inf throughout, a softmax is NaN"
    if empty:
        message = f"`{name}` divided by a count of nothing in step {event.step}: so the loss is not finite"
        caret = "what it divides by is how many there are, and there are none"
    return Story(
        message,
        operation.span,
        caret,
        names,
        _labels(event, "so the loss is not finite here"),
        tuple(_facts(run, event)),
        (Help(help_, kept_finite(ask, event) if not half else ()),),
    )


def _help(ask: Ask, event: Nonfinite, helps: Mapping[str, str], other: str) -> str:
    """What keeps an operation finite: what can be written into its line only where the program has written it."""
    constant = vanished_constant(ask, event)
    if constant is not None:
        return f"{constant:g} is 0 in float16: add at least 1e-4, or compute this in float32"
    kind = _kind(event)
    elsewhere = event.operation is not None and not is_written_here(ask.run, event.operation)
    return other if elsewhere and kind in ops.SINGULAR_NODES else helps.get(kind, other)


def _spoilt_before(run: Run, event: Nonfinite) -> Story:
    """A parameter was not finite when the loss was computed: where it had been before, a step made it so."""
    tensors = run.tensor_by_id
    spoilt = [tensors[number] for number in event.taken]
    names = tuple(tensor.name for tensor in spoilt if tensor.name is not None)
    subject = who(names, run).subject if names else "a tensor"
    holders = {optimizer.id: optimizer for optimizer in run.optimizers if optimizer.steps}
    optimizer = holders.get(spoilt[0].optimizer or 0)
    if optimizer is None or spoilt[0].start is None or event.step <= 1:
        message = f"{subject} is NaN or infinite already where step {event.step} takes it: so the loss is not finite"
        span, caret = event.operation.span if event.operation is not None else None, "taken here, and not finite"
        help_ = "fill it with finite numbers first: `torch.empty` leaves in it whatever lay in memory"
    else:
        message = f"{subject} became NaN or infinite before step {event.step}, though the gradients were finite"
        span, caret = optimizer.stepped or optimizer.made, f"this step of {optimizer.name} made it so"
        help_ = "look for what it divides by and multiplies with: the learning rate, `eps`, decayed averages"
        if {tensor.dtype for tensor in spoilt} == {"float16"}:
            help_ = "keep the parameters in float32 (autocast for speed): in float16 an `eps` of 1e-8 is 0"
    sufferers = (tensor.name for tensor in suffering(run, event) if tensor.name is not None)
    labels = _labels(event, "so the loss is not finite here")
    if event.operation is not None and event.operation.span not in (None, span):
        labels = (Label(event.operation.span, "taken here"), *labels)
    return Story(
        message,
        span,
        caret,
        tuple(dict.fromkeys((*names, *sufferers))),
        labels,
        tuple(_facts(run, event)),
        (Help(help_),),
    )


def _spoilt_by_step(run: Run, event: Nonfinite) -> Story:
    """A step has made a parameter NaN or infinite in places that no loss has met since."""
    names = tuple(name for number in event.tensors if (name := run.tensor_by_id[number].name))
    optimizer = next((each for each in run.optimizers if not set(event.tensors).isdisjoint(each.tensors)), None)
    kind = optimizer.name if optimizer is not None else "the optimizer"
    holds = "holds" if len(names) == 1 else "hold"
    return Story(
        f"{who(names, run).subject} {holds} NaN or infinity at the end, though the losses are finite",
        (optimizer.stepped or optimizer.made) if optimizer is not None else event.span,
        f"a step of {kind} made it so: what it wrote was used by no loss",
        names,
        facts=(f"not finite, in part at least: {listed(names)}",),
        help=(Help("look for what it divides by where a gradient is 0: `eps`, decayed averages"),),
    )


@rule("error", [Trouble.NOT_FINITE], needs=[Need.OPERATIONS, Need.VALUES])
def nonfinite_gradient(ask: Ask) -> Iterator[Claim[Nonfinite]]:
    """The backward of an operation made NaN or infinity out of finite gradients.

    The loss is finite and its gradients are not: the derivative is infinite somewhere (`sqrt` at 0), and 0 times
    infinity is NaN. `torch.where` does not help where the branch that is not taken has such a derivative: it sends
    back a zero that meets it.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            h = net(torch.rand(8, 4))
            loss = (h - h[0]).square().sum(dim=1).sqrt().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            h = net(torch.rand(8, 4))
            loss = ((h - h[0]).square().sum(dim=1) + 1e-6).sqrt().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    event = ask.run.nonfinite
    # What a scaler has kept from the values is told at its own line where the operation is not known.
    if event is not None and event.kind == "gradient" and (event.node or not event.withheld):
        yield Claim(event.step, event)


@nonfinite_gradient.words
def _(told: Sequence[Claim[Nonfinite]], ask: Ask) -> Story:
    run, event = ask.run, told[0].evidence
    tensors = run.tensor_by_id
    names = tuple(name for number in event.tensors if (name := tensors[number].name))
    spoilt = tuple(tensor.name for tensor in run.tensors if tensor.name and _is_spoilt(tensor, event))
    sufferers = tuple(tensor.name for tensor in suffering(run, event) if tensor.name is not None)
    operation = event.operation
    name = short_name(operation.name) if operation is not None else "backward"
    span = operation.span if operation is not None else event.span
    sure = bool(event.node)
    subject = who(names, run).subject if names else "a tensor"
    labels: tuple[Label, ...] = ()
    if event.custom is not None:
        labels = (Label(span, f"`{name}` is applied here"),) if span is not None else ()
        caret = "finite gradients come in here, and what goes out is not finite"
    elif event.given:
        caret = "what comes out here is not finite: the loss leaves it out, its gradients do not"
    elif sure:
        caret = "finite gradients come back to here, and what goes on is not finite"
    else:
        caret = "the gradients of what is used here are not finite"
    stopped = run.crash is not None and run.crash.span is not None and run.crash.span == event.span
    got, gotten = ("would get", "would not be finite") if stopped else ("got", "not finite")
    message = f"the backward of `{name}` made NaN or infinity in step {event.step}: {subject} {got} it"
    if event.given:
        message = f"`{name}` made NaN or infinity in step {event.step}, and gradients met it: {subject} {got} NaN"
    elif not sure:
        message = f"{subject} got NaN or infinity for a gradient in step {event.step}, of a loss that is finite"
    return Story(
        message,
        event.custom or span,
        caret,
        tuple(dict.fromkeys((*names, *spoilt, *sufferers, *_taken(run, operation)))),
        (*labels, *_labels(event, "the loss is finite, and its gradients are not")),
        (f"{gotten}: {listed(names)}", *_facts(run, event, spoilt)),
        (_help_for_gradient(ask, event),),
    )


def _help_for_gradient(ask: Ask, event: Nonfinite) -> Help:
    if not event.node:
        return Help(_UNSURE_HELP)
    return Help(_help(ask, event, _BACKWARD_HELP, _ANY_BACKWARD_HELP), kept_finite(ask, event))


def _is_spoilt(tensor: Tensor, event: Nonfinite) -> bool:
    """Whether a parameter got gradients that were not finite only after the first ones, and because of them."""
    received = tensor.received
    return (
        tensor.optimizer is not None
        and received is not None
        and received.nonfinite > 0
        and tensor.id not in event.tensors
    )


def _taken(run: Run, operation: Operation | None) -> Iterator[str]:
    """What an operation took, by names of tensors or as the line calls it."""
    if operation is None:
        return
    tensors = [run.tensor_by_id.get(run.holder.get(value, -1)) for value in operation.inputs]
    found = [tensor.name if tensor is not None else None for tensor in tensors]
    written = operand_names(operation.span, operation.name, run.sources) if operation.span is not None else []
    if len(written) != len(found):
        written = [None] * len(found)
    yield from filter(None, (name or spelled for name, spelled in zip(found, written, strict=True)))


def _kind(event: Nonfinite) -> str:
    return "custom" if event.custom is not None else event.node


_ANY_HELP = "keep what goes in here in the range in which the result is finite"
_HALF_HELP = "compute it in float32 or bfloat16: float16 holds no number above 65,504"
_MASKED_HELP = "mask with a large negative number rather than -inf, or leave out rows in which everything is masked"
_EMPTY_HELP = (
    "look at what is counted: where no label is other than `ignore_index` (-100), or a mask is empty, there is nothing "
    "to take a mean of"
)
_FORWARD_HELP = {
    **dict.fromkeys(("NllLoss", "NllLoss2D"), _EMPTY_HELP),
    "Log": "take the logarithm of what cannot be 0: `logsigmoid`, `log_softmax`, or `clamp` before",
    "Exp": "keep the argument small: `clamp` it, or scale the data",
    "Div": "keep the divisor away from 0: `clamp` it, or add a small constant",
    **dict.fromkeys(("Softmax", "LogSoftmax"), _MASKED_HELP),
    "Mean": "take no mean of nothing: leave the step out where nothing is selected",
    **dict.fromkeys(("Std", "Var"), "a single element has no spread: leave it out, or give `correction=0`"),
}
_UNSURE_HELP = "look for what has an infinite derivative or gave NaN between here and the loss"
_ANY_BACKWARD_HELP = "keep what goes in here away from where its derivative is infinite"
_BACKWARD_HELP = {
    "Sqrt": "add a small constant before the square root: its derivative at 0 is infinite",
    "Pow": "add a small constant before the power: below 1 its derivative at 0 is infinite",
    "Exp": "`clamp` the argument before `exp`, also where `torch.where` leaves the result out",
    "Div": "keep the divisor away from 0 before the division, also where `torch.where` leaves the result out",
    **dict.fromkeys(("Acos", "Asin"), "`clamp` the argument to a little less than 1: at 1 the derivative is infinite"),
    "Log": "keep the argument away from 0 before the logarithm, also where `torch.where` leaves the result out",
    **dict.fromkeys(("Softmax", "LogSoftmax"), _MASKED_HELP),
    "custom": "keep its divisors away from 0, for example with `clamp`",
}


def _labels(event: Nonfinite, message: str) -> tuple[Label, ...]:
    return (Label(event.span, message),) if event.span is not None else ()


def _facts(run: Run, event: Nonfinite, spoilt: Sequence[str] = ()) -> Iterator[str]:
    if event.operand:
        what = "its divisor" if event.operand == "other" else "its argument"
        low = "-inf or NaN" if event.low is None else f"{event.low:.3g}"
        high = "inf or NaN" if event.high is None else f"{event.high:.3g}"
        same = event.low is not None and event.low == event.high
        yield f"{what} is {low}" if same else f"{what} lies between {low} and {high}"
    withheld = max((optimizer.withheld for optimizer in run.optimizers), default=0)
    if event.withheld:
        yield f"note: the GradScaler withheld {withheld:,} steps for it, so nothing is trained"
    elif run.step_count > event.step:
        them = f", and {listed(spoilt, 3)} with them" if spoilt else ""
        yield f"note: all {run.step_count - event.step:,} steps after it are spoilt{them}"
