"""Cut: a tensor takes part in computing the loss, but its gradient is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.graph.facts import Edit, Finding, Help, Label, Run, Span
from gradscope.graph.naming import callee, last_call, short_name, source_of
from gradscope.rules.lost import REFUSALS, Cause, Lost, grad_mode_switch, lost, only_returned
from gradscope.rules.replicas import refusal_label
from gradscope.rules.wording import listed, steps_text, times_text, who

# Names of calls that say themselves what they do.
_DETACHING = frozenset({"detach", "detach_", "set_data"})


def detach(run: Run) -> Iterator[Finding]:
    """The path from a parameter to the loss goes through `.detach()` or `.data`.

    `detach` gives the same values without their history: backward stops there. That is right for targets, metrics and
    teachers, and wrong on the only way from a parameter that an optimizer holds to the loss.

    Bad:

        import torch
        from torch import nn

        encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
        for _ in range(3):
            x = torch.rand(8, 4)
            z = encoder(x).detach()
            loss = nn.functional.mse_loss(decoder(z), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
        for _ in range(3):
            x = torch.rand(8, 4)
            z = encoder(x)
            loss = nn.functional.mse_loss(decoder(z), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for loss in _with_cause(run, "detach"):
        span = loss.operation.span
        place = last_call(span, run.sources) if span is not None else None
        word = ".data" if loss.operation.name == "Tensor.data" else ".detach()"
        help_ = Help(f"to let it learn, leave out `{word}`")
        called = callee(span, run.sources) if span is not None else None
        if loss.further:
            again = short_name(loss.further[0].name)
            help_ = Help(f"{help_.message}, and mend `{again}` behind it, which ends the history again")
        elif place is not None and place != span and source_of(place, run.sources) == word:
            help_ = Help(help_.message, Edit(place, ""))
        elif called is not None and called not in _DETACHING:
            help_ = Help(f"`{called}` leaves the history behind: compute the loss without it, or optimize its result")
        yield _finding(run, loss, place, "the path to the loss is cut here", help_)


def no_grad(run: Run) -> Iterator[Finding]:
    """The path from a parameter to the loss runs through an operation with grad mode off.

    Inside `torch.no_grad()`, `torch.inference_mode()`, a function decorated with either, or after
    `torch.set_grad_enabled(False)`, operations keep no history: what was computed before gets no gradient through them.

    Bad:

        import torch
        from torch import nn

        encoder, head = nn.Linear(4, 3), nn.Linear(3, 1)
        optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.1)
        for _ in range(3):
            with torch.no_grad():
                features = encoder(torch.rand(8, 4))
            loss = head(features).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        encoder, head = nn.Linear(4, 3), nn.Linear(3, 1)
        optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.1)
        for _ in range(3):
            features = encoder(torch.rand(8, 4))
            loss = head(features).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for loss in _with_cause(run, "no-grad"):
        span = loss.operation.span
        switch = grad_mode_switch(loss.flow, loss.operation)
        otherwise = "leave this term out of the loss" if loss.term else "take these tensors out of the optimizer"
        help_ = Help(f"run this line with grad mode on, or {otherwise}")
        if short_name(loss.operation.name) == "CheckpointFunction":
            help_ = Help(_REENTRANT)
        off = switch.span if switch is not None else None
        if off is not None and _is_a_call_alone(run, off):
            help_ = Help("turn it on again after what is to run without, or use `with torch.no_grad():`, which does so")
        if off is None or span is None:
            yield _finding(run, loss, span, "computed with grad mode off: no history is kept", help_)
        elif switch is not None and (
            "decorator" in switch.name or (off.file, off.function) == (span.file, span.function)
        ):
            said = "this turns grad mode off"
            if switch.name.startswith("set_grad_enabled") and "decorator" in switch.name:
                said = "called from here, a function decorated to run with grad mode off"
            label = Label(off, said)
            yield _finding(run, loss, span, "computed with grad mode off: no history is kept", help_, (label,))
        else:
            label = Label(span, "so no history is kept here, where the gradient is lost")
            yield _finding(run, loss, off, "this turns grad mode off", help_, (label,))


_REENTRANT = (
    "call `checkpoint` with `use_reentrant=False`: the reentrant kind keeps a history only where an input requires grad"
)


def rebuilt_tensor(run: Run) -> Iterator[Finding]:
    """A new tensor is made of the old one's values, and the gradient ends at the copy.

    `torch.tensor(t)`, `torch.Tensor([a, b])`, `nn.Parameter(t)`, `Variable(t)` and `p.data.copy_(t)` take values and
    leave the history behind.

    Bad:

        import torch

        angles = [torch.tensor(0.1 * n, requires_grad=True) for n in range(3)]
        optimizer = torch.optim.SGD(angles, lr=0.1)
        offset = torch.zeros(3, requires_grad=True)
        optimizer.add_param_group({"params": [offset]})
        for _ in range(3):
            pose = torch.tensor(angles) + offset
            loss = pose.cos().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch

        angles = [torch.tensor(0.1 * n, requires_grad=True) for n in range(3)]
        optimizer = torch.optim.SGD(angles, lr=0.1)
        offset = torch.zeros(3, requires_grad=True)
        optimizer.add_param_group({"params": [offset]})
        for _ in range(3):
            pose = torch.stack(angles) + offset
            loss = pose.cos().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for loss in _with_cause(run, "rebuilt-tensor"):
        name = loss.operation.name
        in_place = name.endswith("_") and not name.endswith("__")
        help_ = Help(_WRITTEN if in_place else _REBUILT.get(name, _JOINED))
        yield _finding(run, loss, loss.operation.span, "only the values are copied: the history ends here", help_)


_JOINED = "join tensors with `torch.stack` or `torch.cat`, convert one with `.to()`: these keep the history"
_WRITTEN = "compute with the new values themselves, rather than write them into another tensor without their history"
_COPIED = "a copy learns for itself: compute with the original, or by `functional_call` with weights made from it"
_REBUILT = {
    "nn.Parameter": "use the tensor as it is: `nn.Parameter` makes a new leaf of its values",
    "Variable": "use the tensor as it is: `Variable` makes a new leaf of its values, with or without `requires_grad`",
    **dict.fromkeys(("Tensor.__deepcopy__", "Tensor.data", "Tensor.detach"), _COPIED),
}


def left_torch(run: Run) -> Iterator[Finding]:
    """A value on the way to the loss leaves torch and comes back as a constant.

    `.item()`, `.tolist()`, `.numpy()` and `float(t)` give plain numbers. Whatever is computed from them is a constant
    to autograd.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            error = net(torch.rand(8, 4)).square().mean()
            loss = torch.tensor(error.item() ** 0.5, requires_grad=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            error = net(torch.rand(8, 4)).square().mean()
            loss = error ** 0.5
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for loss in _with_cause(run, "left-torch"):
        span = loss.operation.span
        labels: tuple[Label, ...] = ()
        back = loss.came_back
        if back is not None and back.span is not None and back.span != span:
            labels = (Label(back.span, "it comes back here, as a constant"),)
        help_ = Help("compute the loss with torch operations all the way, and call this for logs only")
        place = last_call(span, run.sources) if span is not None else None
        yield _finding(run, loss, place, "the value leaves torch here, without its history", help_, labels)


def missing_create_graph(run: Run) -> Iterator[Finding]:
    """A gradient is used in a loss, and was computed without `create_graph=True`.

    Without it, `torch.autograd.grad` and `backward` give gradients that have no history: a penalty made of them is a
    constant to autograd.

    Bad:

        import torch
        from torch import nn

        critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4, requires_grad=True)
            score = critic(x)
            slope, = torch.autograd.grad(score.sum(), x, retain_graph=True)
            loss = score.mean() + (slope.norm(dim=1) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4, requires_grad=True)
            score = critic(x)
            slope, = torch.autograd.grad(score.sum(), x, create_graph=True)
            loss = score.mean() + (slope.norm(dim=1) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for loss in _with_cause(run, "missing-create-graph"):
        help_ = Help("compute this gradient with `create_graph=True`")
        yield _finding(run, loss, loss.operation.span, "this gradient has no history of its own", help_)


_WAYS = {
    "argmax": "train on the scores themselves (`cross_entropy` on logits), or use `softmax` with a temperature",
    "argmin": "train on the scores themselves, or use `softmax` of their negatives",
    "sample": "draw with `rsample()` where the distribution has it, or weight `log_prob` by the reward",
    "normal": "draw as `mean + std * torch.randn_like(std)`",
    "bernoulli": "use the probabilities, a relaxed distribution, or weight `log_prob` by the reward",
    "multinomial": "use the probabilities, `gumbel_softmax`, or weight `log_prob` by the reward",
    "histc": "use a soft histogram: kernels around the bin centres, summed",
    "bucketize": "use soft bins",
    "searchsorted": "use soft bins",
    "gt": "use the value before the comparison, or `sigmoid` of its distance to the threshold",
    "round": "add what rounding changes as a constant: `x + (x.round() - x).detach()`",
}
_CROP = "choose with a differentiable operation: weights from `softmax`, `grid_sample` for a crop"
_WAYS |= dict.fromkeys(("lt", "ge", "le", "eq", "ne"), _WAYS["gt"])


def non_differentiable_op(run: Run) -> Iterator[Finding]:
    """An operation without a derivative stands on the way to the loss.

    `argmax`, comparisons, casts to integers, histograms and `sample()` give results that have no history.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 3)
        bias = nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.SGD([*net.parameters(), bias], lr=0.1)
        for _ in range(3):
            label = net(torch.rand(8, 4)).argmax(dim=1)
            loss = (label.float() + bias).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 3)
        bias = nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.SGD([*net.parameters(), bias], lr=0.1)
        for _ in range(3):
            label = net(torch.rand(8, 4)).softmax(dim=1) @ torch.arange(3.0)
            loss = (label + bias).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for loss in _with_cause(run, "non-differentiable-op"):
        span = loss.operation.span
        called = callee(span, run.sources) if span is not None else None
        name = short_name(loss.operation.name)
        if name in ("int", "index"):
            yield _finding(run, loss, span, "a whole number is made of it here: that has no derivative", Help(_CROP))
            continue
        said = called if called is not None and not loss.operation.grad_enabled else name
        way = _WAYS.get(said) or _WAYS.get(name) or "use a differentiable operation in its place"
        caret = f"`{said}` has no derivative: its result has no history"
        if _gives_places(loss):
            caret = f"the indices that `{said}` gives have no derivative and no history"
            way = "compute with the values that it gives as well: they keep the history, as do weights from `softmax`"
        place = last_call(span, run.sources) if span is not None else None
        yield _finding(run, loss, place, caret, Help(way))


def _gives_places(loss: Lost) -> bool:
    """Whether an operation gives values and their places together: `topk`, `sort`, `max` along a dimension."""
    results = [(loss.flow.history[value], loss.flow.tensor(value)) for value in loss.operation.outputs]
    kept = any(history for history, _ in results)
    return kept and all(history or (made is not None and made.dtype == "int64") for history, made in results)


def _is_a_call_alone(run: Run, switch: Span) -> bool:
    """Whether a line calls `set_grad_enabled` and does no more: nothing turns grad mode on again by itself."""
    before = run.sources.get(switch.file, {}).get(switch.line, "")[: (switch.column or 1) - 1]
    return callee(switch, run.sources) == "set_grad_enabled" and not before.strip()


def _with_cause(run: Run, cause: Cause) -> Iterator[Lost]:
    return (loss for loss in lost(run) if loss.cause == cause)


def _finding(
    run: Run, loss: Lost, span: Span | None, caret: str, help_: Help, labels: tuple[Label, ...] = ()
) -> Finding:
    names = tuple(tensor.name or "" for tensor in loss.tensors)
    those = who(names, run)
    crash = run.crash
    refused = crash is not None and crash.symptom in REFUSALS
    if loss.term:
        message = f"a term of the loss trains nothing: no gradient flows through it to {those.subject}"
    elif refused and crash is not None:
        message = f"backward cannot reach {those.subject}: the loss keeps no way back to {those.them}"
        if crash.span is not None:
            labels = (*labels, Label(crash.span, f"so torch raises {crash.type} here"))
    elif refusal_label(run):
        message = f"no gradient came to {those.subject}, and DDP waits for {those.them}"
        labels = (*labels, *refusal_label(run))
    elif all(map(only_returned, loss.tensors)):
        message = (
            f"{those.subject} {those.learns}: `autograd.grad` returned gradients of {those.them}, and none came to "
            f"`.grad` in {steps_text(run, _steps(loss))}"
        )
    else:
        message = f"{those.subject} {those.learns}: {those.counted} got no gradient in {steps_text(run, _steps(loss))}"
    labels += tuple(
        Label(other.span, "also cut here") for other in loss.others if other.span is not None and other.span != span
    )
    facts = []
    if len(names) > 1:
        facts.append(f"cut off: {listed(names)}")
    facts.append(f"path: {_path(loss)}")
    facts += _holders(run, loss)
    return Finding(
        loss.cause,
        loss.severity,
        message,
        span,
        caret,
        names,
        labels,
        tuple(facts),
        (help_,),
        tuple(operation.id for operation in (loss.operation, *loss.others)),
        raised=not loss.term and (refused or bool(refusal_label(run))),
    )


def _steps(loss: Lost) -> int | None:
    received = loss.tensors[0].received
    return received.of if received is not None else None


def _path(loss: Lost) -> str:
    """The way of the data from the first tensor to the loss, with the place at which the gradient stops."""
    flow, tensor = loss.flow, loss.tensors[0]
    starts = flow.values_of.get(tensor.id, [])
    ends = frozenset(flow.roots)
    root = flow.tensor(flow.roots[-1]) if flow.roots else None
    end = (root.name if root is not None else None) or "loss"
    if not loss.operation.outputs:
        way = [*flow.path(starts, loss.operation, ends)]
        return flow.told(tensor.name or "", way, "a plain number")
    return flow.told(tensor.name or "", flow.path(starts, loss.operation, ends), end)


def _holders(run: Run, loss: Lost) -> list[str]:
    """Who holds these tensors, and whether they moved all the same."""
    facts = []
    for optimizer in run.optimizers:
        held = [tensor for tensor in loss.tensors if tensor.optimizer == optimizer.id]
        if held and optimizer.steps and not loss.term:
            moved = sum(bool(tensor.change) for tensor in held)
            fed = max(tensor.received.steps for tensor in held if tensor.received is not None)
            what = "this tensor" if len(held) == 1 else f"these {len(held)} tensors"
            then = "it did not move" if len(held) == 1 else "none of them moved"
            if all(map(only_returned, held)):
                then = "no step had a gradient to apply"
            elif fed:  # they learned until the way was lost
                then = f"gradients came in {fed} of them"
            elif moved:
                then = f"moved {moved} of them all the same (weight decay or momentum)"
            facts.append(f"note: {optimizer.name} holds {what} and stepped {times_text(optimizer.steps)}; {then}")
    return facts
