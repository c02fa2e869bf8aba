"""Cut: a tensor takes part in computing the loss, but its gradient is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradscope.graph.ask import Ask
from gradscope.graph.causes import Cause, Cut, grad_mode_switch
from gradscope.graph.cuts import cuts
from gradscope.graph.facts import Help, Label, Operation, Run, Span
from gradscope.graph.naming import callee, last_call, short_name
from gradscope.graph.reliance import REFUSALS, only_returned
from gradscope.graph.replicas import refusal_label
from gradscope.rules.claim import Claim, Story, Trouble, rule, subjects
from gradscope.rules.mends.history import kept
from gradscope.rules.mends.values import carried_on, kept_in_torch
from gradscope.rules.words import listed, steps_text, times_text, who

# Names of calls that say themselves what they do.
_DETACHING = frozenset({"detach", "detach_", "set_data"})


@rule("error", [Trouble.NEVER_LEARNS])
def detach(ask: Ask) -> Iterator[Claim[Cut]]:
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
    return _claims(ask, "detach")


@detach.words
def _(told: Sequence[Claim[Cut]], ask: Ask) -> Story:
    cut = _told(told)
    span = cut.operation.span
    place = last_call(span, ask.run.sources) if span is not None else None
    word = ".data" if cut.operation.name == "Tensor.data" else ".detach()"
    help_ = Help(f"to let it learn, leave out `{word}`")
    called = callee(span, ask.run.sources) if span is not None else None
    if cut.further:
        again = short_name(cut.further[0].name)
        help_ = Help(f"{help_.message}, and mend `{again}` behind it, which ends the history again")
    elif called is not None and called not in _DETACHING:
        help_ = Help(f"`{called}` leaves the history behind: compute the loss without it, or optimize its result")
    return _story(ask, cut, place, "the path to the loss is cut here", Help(help_.message, kept(ask, cut)))


@rule("error", [Trouble.NEVER_LEARNS])
def no_grad(ask: Ask) -> Iterator[Claim[Cut]]:
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
    return _claims(ask, "no-grad")


@no_grad.words
def _(told: Sequence[Claim[Cut]], ask: Ask) -> Story:
    cut = _told(told)
    span = cut.operation.span
    switch = grad_mode_switch(cut.flow, cut.operation)
    otherwise = "leave this term out of the loss" if cut.term else "take these tensors out of the optimizer"
    help_ = Help(f"run this line with grad mode on, or {otherwise}")
    if short_name(cut.operation.name) == "CheckpointFunction":
        help_ = Help(_REENTRANT)
    help_ = Help(help_.message, kept(ask, cut))
    off = switch.span if switch is not None else None
    if switch is not None and off is not None and span is not None:
        elsewhere = _switched_elsewhere(ask.run, switch, off, span)
        help_ = Help(f"{elsewhere}, or {otherwise}", help_.edits) if elsewhere is not None else help_
    if off is not None and _is_a_call_alone(ask.run, off):
        said = "turn it on again after what is to run without, or use `with torch.no_grad():`, which does so"
        help_ = Help(said, help_.edits)
    if off is None or span is None:
        return _story(ask, cut, span, "computed with grad mode off: no history is kept", help_)
    if switch is not None and ("decorator" in switch.name or (off.file, off.function) == (span.file, span.function)):
        said = "this turns grad mode off"
        if switch.name.startswith("set_grad_enabled") and "decorator" in switch.name:
            said = "called from here, a function decorated to run with grad mode off"
        label = Label(off, said)
        return _story(ask, cut, span, "computed with grad mode off: no history is kept", help_, (label,))
    label = Label(span, "so no history is kept here, where the gradient is lost")
    return _story(ask, cut, off, "this turns grad mode off", help_, (label,))


def _switched_elsewhere(run: Run, switch: Operation, off: Span, span: Span) -> str | None:
    """What to do where grad mode is turned off by a decorator, or by a context manager around its `yield`."""
    if "decorator" in switch.name:
        called = callee(off, run.sources)
        if called is None:
            return None
        if off == span:  # there is no line of the user's in it
            return f"`{called}` turns grad mode off itself: call what it computes with, such as the model, in its place"
        return f"leave out the decorator that turns grad mode off for `{called}`"
    lines = run.sources.get(off.file, {})
    head = lines.get(off.line, "")
    if not head.lstrip().startswith(("with ", "async with ")) or off.function == span.function:
        return None
    depth = len(head) - len(head.lstrip())
    for number in range(off.line + 1, max(lines, default=0) + 1):
        text = lines.get(number, "")
        if text.strip() and len(text) - len(text.lstrip()) <= depth:
            return None
        if text.lstrip().startswith("yield"):
            return "compute this outside of the `with` block whose context manager turns grad mode off"
    return None


_REENTRANT = (
    "call `checkpoint` with `use_reentrant=False`: the reentrant kind keeps a history only where an input requires grad"
)


@rule("error", [Trouble.NEVER_LEARNS])
def rebuilt_tensor(ask: Ask) -> Iterator[Claim[Cut]]:
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
    return _claims(ask, "rebuilt-tensor")


@rebuilt_tensor.words
def _(told: Sequence[Claim[Cut]], ask: Ask) -> Story:
    cut = _told(told)
    name = cut.operation.name
    in_place = name.endswith("_") and not name.endswith("__")
    message = _WRITTEN if in_place else _REBUILT.get(name, _JOINED)
    help_ = Help(message, carried_on(ask, cut) if not in_place and not cut.further else ())
    return _story(ask, cut, cut.operation.span, "only the values are copied: the history ends here", help_)


_JOINED = "join tensors with `torch.stack` or `torch.cat`, convert one with `.to()`: these keep the history"
_WRITTEN = "compute with the new values themselves, rather than write them into another tensor without their history"
_COPIED = "a copy learns for itself: compute with the original, or by `functional_call` with weights made from it"
_REBUILT = {
    "nn.Parameter": "use the tensor as it is: `nn.Parameter` makes a new leaf of its values",
    "Variable": "use the tensor as it is: `Variable` makes a new leaf of its values, with or without `requires_grad`",
    **dict.fromkeys(("Tensor.__deepcopy__", "Tensor.data", "Tensor.detach"), _COPIED),
}


@rule("error", [Trouble.NEVER_LEARNS])
def left_torch(ask: Ask) -> Iterator[Claim[Cut]]:
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
    return _claims(ask, "left-torch")


@left_torch.words
def _(told: Sequence[Claim[Cut]], ask: Ask) -> Story:
    cut = _told(told)
    span = cut.operation.span
    labels: tuple[Label, ...] = ()
    back = cut.came_back
    if back is not None and back.span is not None and back.span != span:
        labels = (Label(back.span, "it comes back here, as a constant"),)
    edits = kept_in_torch(ask, cut) if not cut.further else ()
    help_ = Help("compute the loss with torch operations all the way, and call this for logs only", edits)
    place = last_call(span, ask.run.sources) if span is not None else None
    return _story(ask, cut, place, "the value leaves torch here, without its history", help_, labels)


@rule("error", [Trouble.NEVER_LEARNS])
def missing_create_graph(ask: Ask) -> Iterator[Claim[Cut]]:
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
    return _claims(ask, "missing-create-graph")


@missing_create_graph.words
def _(told: Sequence[Claim[Cut]], ask: Ask) -> Story:
    cut = _told(told)
    help_ = Help("compute this gradient with `create_graph=True`", kept(ask, cut))
    return _story(ask, cut, cut.operation.span, "this gradient has no history of its own", help_)


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


@rule("error", [Trouble.NEVER_LEARNS])
def non_differentiable_op(ask: Ask) -> Iterator[Claim[Cut]]:
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
    return _claims(ask, "non-differentiable-op")


@non_differentiable_op.words
def _(told: Sequence[Claim[Cut]], ask: Ask) -> Story:
    cut = _told(told)
    span = cut.operation.span
    called = callee(span, ask.run.sources) if span is not None else None
    name = short_name(cut.operation.name)
    if name in ("int", "index"):
        return _story(ask, cut, span, "a whole number is made of it here: that has no derivative", Help(_CROP))
    said = called if called is not None and not cut.operation.grad_enabled else name
    way = _WAYS.get(said) or _WAYS.get(name) or "use a differentiable operation in its place"
    caret = f"`{said}` has no derivative: its result has no history"
    if _gives_places(cut) and said not in _WAYS:
        caret = f"the indices that `{said}` gives have no derivative and no history"
        way = "compute with the values that it gives as well: they keep the history, as do weights from `softmax`"
    place = last_call(span, ask.run.sources) if span is not None else None
    return _story(ask, cut, place, caret, Help(way, kept(ask, cut)))


def _gives_places(cut: Cut) -> bool:
    """Whether an operation gives values and their places together: `topk`, `sort`, `max` along a dimension."""
    results = [(cut.flow.history[value], cut.flow.tensor(value)) for value in cut.operation.outputs]
    kept = any(history for history, _ in results)
    return kept and all(history or (made is not None and made.dtype == "int64") for history, made in results)


def _is_a_call_alone(run: Run, switch: Span) -> bool:
    """Whether a line calls `set_grad_enabled` and does no more: nothing turns grad mode on again by itself."""
    before = run.sources.get(switch.file, {}).get(switch.line, "")[: (switch.column or 1) - 1]
    return callee(switch, run.sources) == "set_grad_enabled" and not before.strip()


def _claims(ask: Ask, cause: Cause) -> Iterator[Claim[Cut]]:
    for place, cut in enumerate(ask(cuts)):
        if cut.cause != cause:
            continue
        wasted = [backward.span for backward in cut.flow.step.backwards] if cut.severity == "error" else []
        for tensor in cut.tensors:
            learns = (Trouble.NEVER_LEARNS, tensor.id)
            yield Claim(
                place,
                cut,
                tensor,
                explains=() if cut.term else (learns,),
                besides=tuple((Trouble.WASTED, span) for span in wasted),
                severity=cut.severity,
            )


def _told(told: Sequence[Claim[Cut]]) -> Cut:
    """The place at which the gradients are lost of those tensors that are still to be explained."""
    return replace(told[0].evidence, tensors=tuple(subjects(told)))


def _story(ask: Ask, cut: Cut, span: Span | None, caret: str, help_: Help, labels: tuple[Label, ...] = ()) -> Story:
    run = ask.run
    names = tuple(tensor.name or "" for tensor in cut.tensors)
    message, further = _message(run, cut)
    labels += further + tuple(
        Label(other.span, "also cut here") for other in cut.others if other.span is not None and other.span != span
    )
    facts = [f"cut off: {listed(names)}"] if len(names) > 1 else []
    return Story(
        message,
        span,
        caret,
        names,
        labels,
        (*facts, f"path: {_path(cut)}", *_holders(run, cut)),
        (help_,),
        tuple(operation.id for operation in (cut.operation, *cut.others)),
        raised=not cut.term and (_is_refused(run) or _frees(run, cut) or bool(refusal_label(run))),
    )


def _is_refused(run: Run) -> bool:
    return run.crash is not None and run.crash.symptom in REFUSALS


def _frees(run: Run, cut: Cut) -> bool:
    """Whether a gradient without a graph has freed what the loss that it is a part of needs again."""
    freed = run.crash is not None and run.crash.symptom == "freed graph"
    return freed and cut.cause == "missing-create-graph" and not cut.term


def _message(run: Run, cut: Cut) -> tuple[str, tuple[Label, ...]]:
    """Who suffers, and the place at which torch raises for it."""
    those = who(tuple(tensor.name or "" for tensor in cut.tensors), run)
    crash = run.crash
    if cut.term:
        return f"a term of the loss trains nothing: no gradient flows through it to {those.subject}", ()
    if crash is not None and _frees(run, cut):
        labels = (Label(crash.span, f"so torch raises {crash.type} here"),) if crash.span else ()
        return f"a gradient without `create_graph` frees the graph of {those.subject}, which backward needs", labels
    if crash is not None and _is_refused(run):
        labels = (Label(crash.span, f"so torch raises {crash.type} here"),) if crash.span is not None else ()
        return f"backward cannot reach {those.subject}: the loss keeps no way back to {those.them}", labels
    if refusal_label(run):
        return f"no gradient came to {those.subject}, and DDP waits for {those.them}", refusal_label(run)
    steps = steps_text(run, _steps(cut))
    if all(map(only_returned, cut.tensors)):
        return (
            f"{those.subject} {those.learns}: `autograd.grad` returned gradients of {those.them}, and none came to "
            f"`.grad` in {steps}"
        ), ()
    return f"{those.subject} {those.learns}: {those.counted} got no gradient in {steps}", ()


def _steps(cut: Cut) -> int | None:
    received = cut.tensors[0].received
    return received.of if received is not None else None


def _path(cut: Cut) -> str:
    """The way of the data from the first tensor to the loss, with the place at which the gradient stops."""
    flow, tensor = cut.flow, cut.tensors[0]
    starts = flow.values_of.get(tensor.id, [])
    ends = frozenset(flow.roots)
    root = flow.tensor(flow.roots[-1]) if flow.roots else None
    end = (root.name if root is not None else None) or "loss"
    if not cut.operation.outputs:
        way = [*flow.path(starts, cut.operation, ends)]
        return flow.told(tensor.name or "", way, "a plain number")
    return flow.told(tensor.name or "", flow.path(starts, cut.operation, ends), end)


def _holders(run: Run, cut: Cut) -> list[str]:
    """Who holds these tensors, and whether they moved all the same."""
    facts = []
    for optimizer in run.optimizers:
        held = [tensor for tensor in cut.tensors if tensor.optimizer == optimizer.id]
        if held and optimizer.steps and not cut.term:
            moved = sum(bool(tensor.change) for tensor in held)
            fed = max(tensor.received.steps for tensor in held if tensor.received is not None)
            what = "this tensor" if len(held) == 1 else f"these {len(held)} tensors"
            then = "it did not move" if len(held) == 1 else "none of them moved"
            if all(map(only_returned, held)):
                then = "no step had a gradient to apply"
            elif fed:  # they learned until the way was lost
                then = f"gradients came in {fed} of them"
            elif "values" not in run.observed:
                then = "in no step a gradient came"
            elif moved:
                then = f"moved {moved} of them all the same (weight decay or momentum)"
            facts.append(f"note: {optimizer.name} holds {what} and stepped {times_text(optimizer.steps)}; {then}")
    return facts
