"""Values: gradients that are zero, vanishing or exploding."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from gradscope.graph.facts import Finding, Help, Label, Operation, Run, Tensor
from gradscope.graph.naming import short_name
from gradscope.graph.profiles import ProfileFlow, Stage, repeated
from gradscope.rules.wording import listed, owner, steps_text, who


def zero_gradient(run: Run) -> Iterator[Finding]:
    """A gradient arrives in every step, and is exactly zero.

    Something on the way has a derivative of zero: `round`, `sign`, a `clamp` whose limit is passed, a ReLU that is
    never active, a saturated `tanh`, a factor of 0. The tensor gets its gradient and never learns.

    Bad:

        import torch
        from torch import nn

        encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        for _ in range(5):
            x = torch.rand(8, 4)
            code = torch.round(encoder(x))
            loss = (decoder(code) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        for _ in range(5):
            x = torch.rand(8, 4)
            code = encoder(x)
            code = code + (torch.round(code) - code).detach()
            loss = (decoder(code) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    if run.nonfinite is not None and run.nonfinite.kind == "forward" and run.nonfinite.step <= 1:
        return  # no loss was a number that could be trained on
    found = [ProfileFlow(profile) for profile in run.profiles]
    groups: dict[object, list[tuple[Tensor, Operation, str]]] = {}
    for tensor in _trained(run):
        received = tensor.received
        if received is None or received.steps < 3 or received.zero < received.steps:
            continue
        causes = next((causes for flow in found if (causes := flow.zeroed(tensor.id))), [])
        cause = next((stage for stage in causes if stage.operation is not None and stage.operation.span), None)
        if cause is not None and cause.operation is not None and cause.operation.span is not None:
            span = cause.operation.span
            groups.setdefault((span.file, span.line), []).append((tensor, cause.operation, cause.name))
    flat = any(node not in _PRODUCTS for group in groups.values() for _, _, node in group)
    for group in groups.values():
        if flat and all(node in _PRODUCTS for _, _, node in group):
            continue  # a factor is 0 where something before it has made it so
        _, operation, node = max(group, key=lambda item: sum(item[1].span == other[1].span for other in group))
        names = tuple(dict.fromkeys(tensor.name or "" for tensor, _, _ in group))
        received = group[0][0].received
        steps = steps_text(run, received.steps if received is not None else None)
        name = short_name(operation.name)
        place, caret = operation.span, f"`{name}` takes a gradient here and sends back 0"
        why = _ZERO_WHY.get(node, f"why: the derivative of `{name}` is 0 for all that came in")
        help_ = _ZERO_HELP.get(node, "start where this has a derivative that is not 0, or leave it out")
        labels: tuple[Label, ...] = ()
        last = _last_step_taken(run, operation, names)
        if node == "LogSoftmax" and _is_of_one_class(run, operation):
            caret = f"a softmax over one class is 1, whatever the logit: `{name}` sends back 0"
            why = "why: with a single output there is nothing to choose between"
            help_ = "use `binary_cross_entropy_with_logits` on the one output, or give the last layer two outputs"
        elif last is not None and last.span is not None:
            labels = (Label(place, f"`{name}` is computed here"),) if place is not None else ()
            place, caret = last.span, "the reverse direction has read only the last input here: it ends at the first"
            why = f"why: at the last place the reverse direction of `{name}` is at its first step, with a state of 0"
            help_ = "take the last state of both directions: `torch.cat([h_n[-2], h_n[-1]], dim=1)`"
        yield Finding(
            "zero-gradient",
            "warning",
            f"{who(names, run).subject} {who(names, run).learns}: every gradient is exactly 0, in {steps}",
            place,
            caret,
            names,
            labels,
            (f"all 0: {listed(names)}", why),
            (Help(help_),),
        )


def _is_of_one_class(run: Run, operation: Operation) -> bool:
    """Whether scores come in whose last axis, or the axis of classes, has a single place."""
    taken = [run.tensor_by_id[run.holder[value]] for value in operation.inputs[:1] if value in run.holder]
    return any(
        tensor.shape and 1 in (tensor.shape[-1], tensor.shape[min(1, len(tensor.shape) - 1)]) for tensor in taken
    )


_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_REVERSE = "_reverse"


def _last_step_taken(run: Run, operation: Operation, names: Iterable[str]) -> Operation | None:
    """Where only the last place is taken of what both directions of a recurrent layer gave.

    There, the weights of the reverse direction that take its state have had no state yet.
    """
    if short_name(operation.name) not in _RECURRENT or not all(name.endswith(_REVERSE) for name in names):
        return None
    for step in run.steps:
        for made in step.operations:
            if (made.name, made.span) == (operation.name, operation.span) and made.outputs:
                users = [other for other in step.operations if made.outputs[0] in other.inputs]
                if len(users) == 1 and short_name(users[0].name) in ("getitem", "select"):
                    return users[0]
    return None


_PRODUCTS = frozenset({"Mul", "Mm", "Addmm", "Bmm", "Baddbmm", "Convolution", "Mv", "Dot"})
_FACTOR = "why: what it is multiplied by is 0 throughout"
_ZERO_WHY = {
    "Relu": "why: nothing that comes in is above 0, so the ReLU is dead",
    "Round": "why: `round` is flat: its derivative is 0 everywhere",
    "Floor": "why: `floor` is flat: its derivative is 0 everywhere",
    "Ceil": "why: `ceil` is flat: its derivative is 0 everywhere",
    "Sign": "why: `sign` is flat: its derivative is 0 everywhere",
    "Clamp": "why: all that comes in lies beyond the limits, where `clamp` is flat",
    "Tanh": "why: `tanh` is saturated: it gives exactly 1 or -1, where its derivative rounds to 0",
    "Sigmoid": "why: `sigmoid` is saturated: it gives exactly 1 or 0, where its derivative rounds to 0",
    "Softmax": "why: `softmax` gives the same whatever comes in: over one element, or saturated",
    **dict.fromkeys(_PRODUCTS, _FACTOR),
}
_STRAIGHT = "to learn through it, keep its derivative at 1: `x + (y - x).detach()` where y is the result"
_ZERO_HELP = {
    "Relu": "use `leaky_relu`, a smaller learning rate, or another start",
    **dict.fromkeys(("Round", "Floor", "Ceil", "Sign"), _STRAIGHT),
    "Clamp": "start within the limits",
    **dict.fromkeys(("Tanh", "Sigmoid"), "scale what comes in: standardise the data, or start with smaller weights"),
    "Softmax": "take the softmax over a dimension of more than one element, or scale down what comes in",
    **dict.fromkeys(_PRODUCTS, "do not start both factors of a product at 0"),
}


def vanishing_gradient(run: Run) -> Iterator[Finding]:
    """The gradient becomes smaller by many orders of magnitude on its way back.

    A chain of layers or of time steps multiplies the gradient by their derivatives, one after the other. Where each is
    below 1, what comes to the far end is too small to learn from.

    Bad:

        import torch
        from torch import nn

        layers = [module for _ in range(12) for module in (nn.Linear(8, 8), nn.Sigmoid())]
        net = nn.Sequential(*layers, nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            x = torch.rand(16, 8)
            loss = (net(x) - x.sum(dim=1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        layers = [module for _ in range(12) for module in (nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8))]
        net = nn.Sequential(*layers, nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            x = torch.rand(16, 8)
            loss = (net(x) - x.sum(dim=1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for flow in (ProfileFlow(profile) for profile in run.profiles):
        sizes = {tensor.id: size for tensor in _trained(run) if tensor.id in flow.leaves and (size := _size(tensor))}
        largest: dict[int, float] = {}
        groups: dict[object, list[_Way]] = {}
        for tensor in _trained(run):
            if sizes.get(tensor.id, 0) >= _VANISHED * max(sizes.values(), default=0.0):
                continue
            way = flow.way(tensor.id)
            largest[tensor.id] = _largest_on(run, way, sizes)
            opening = [stage for stage in way if _opens(run, stage, tensor)]
            kept = sizes[tensor.id] / 10 ** sum(stage.growth for stage in opening) if tensor.id in sizes else 0.0
            if not 0 < kept < _VANISHED * largest[tensor.id]:
                continue
            way = [stage for stage in way if stage not in opening]
            if not way or any(stage.adds and stage.growth < -3 for stage in way):
                continue  # what is left where a sum cancels is rounding noise
            worst = min(way, key=lambda stage: stage.growth)
            once = worst.growth < 0.6 * sum(min(0.0, stage.growth) for stage in way)
            if once and worst.name in _PRODUCTS | {"Div", "WeightNormInterface"}:
                continue  # scaled down once, on purpose, or multiplied by what is small; or of a single element
            lines = [(operation, _shrinking(stages)) for operation, _, stages in repeated(way)]
            operation, growth = min(lines, key=lambda line: line[1], default=(None, 0.0))
            if operation is not None and operation.span is not None and growth < -3:
                groups.setdefault((operation.span.file, operation.span.line), []).append((tensor, operation, way))
        for group in _of_one_owner(groups.values()):
            tensor, operation, way = min(group, key=lambda item: sizes[item[0].id])
            names = tuple(tensor.name or "" for tensor, _, _ in group)
            further = {other.span: None for _, other, _ in group if other.span != operation.span}
            times = sum(stage.operation is not None and stage.operation.span == operation.span for stage in way)
            yield Finding(
                "vanishing-gradient",
                "warning",
                f"the gradient vanishes on its way to `{tensor.name}`: it is "
                f"{largest[tensor.id] / sizes[tensor.id]:.0e} times smaller than others on this way",
                operation.span,
                f"it becomes smaller here, {times} times in a row" if times > 1 else "it becomes smaller here",
                names,
                tuple(Label(span, "and here") for span in further if span is not None),
                (*_profile(run, flow), f"note: on the way: {_course(way)}"),
                (Help(_VANISHING_HELP),),
            )
        if groups:
            return


_Way = tuple[Tensor, Operation, list[Stage]]
_NORMS = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "NativeGroupNorm"})
_OPENING = -2  # powers of ten: no chain of layers loses as much at each


def _largest_on(run: Run, way: list[Stage], sizes: Mapping[int, float]) -> float:
    """The largest gradient of the layers that the way to a tensor leads through.

    Others on other ways have other units: the noise of a Gaussian process, and the points that it is computed at. A
    single number collects a gradient from all that it takes part in.
    """
    on_the_way = {leaf for stage in way for leaf in (*stage.factors, *stage.addends)}
    return max(
        (sizes.get(leaf, 0.0) for leaf in on_the_way if math.prod(run.tensor_by_id[leaf].shape) > 1), default=0.0
    )


def _opens(run: Run, stage: Stage, tensor: Tensor) -> bool:
    """Whether a stage multiplies by what started at 0 and has grown only little since: a branch that is to open.

    It starts at 0 itself (the weights of a last layer, gamma, B of LoRA), or is computed, as a gate is: then the
    gradient behind it was exactly 0 at first.
    """
    if stage.growth > _OPENING or stage.name not in _PRODUCTS | _NORMS:
        return False
    started = any(run.tensor_by_id[leaf].start == 0 for leaf in stage.factors)
    return started or (tensor.gradient_norms[0] == 0 and stage.name == "Mul")


def _of_one_owner(groups: Iterable[list[_Way]]) -> list[list[_Way]]:
    """The same with those of one module together: a model that is called on two lines is one story."""
    found: list[list[_Way]] = []
    for group in groups:
        for other in found:
            if owner([tensor.name or "" for tensor, _, _ in (*other, *group)]) is not None:
                other += group
                break
        else:
            found.append([*group])
    return found


_VANISHED = 1e-5
_VANISHING_HELP = (
    "shorten the way: residual connections, a gated or leaky state, normalisation, or activations such as ReLU whose "
    "derivative is 1"
)


def exploding_gradient(run: Run) -> Iterator[Finding]:
    """The gradient becomes larger by many orders of magnitude, on its way back or from step to step.

    A chain of layers or of time steps whose derivatives are above 1 multiplies the gradient at each. A learning rate
    that is too large does so from step to step.

    Bad:

        import torch
        from torch import nn

        torch.manual_seed(0)
        w = nn.Parameter(3 * torch.randn(8, 8))
        optimizer = torch.optim.Adam([w], lr=1e-3)
        for _ in range(5):
            h = torch.rand(16, 8)
            for _ in range(20):
                h = h @ w
            loss = h.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(8, 8))
        optimizer = torch.optim.Adam([w], lr=1e-3)
        for _ in range(5):
            h = torch.rand(16, 8)
            for _ in range(20):
                h = nn.functional.layer_norm(h @ w, (8,))
            loss = h.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    large = [tensor for tensor in _trained(run) if _last_norm(tensor) > _EXPLODED]
    if not large:
        return
    for flow in (ProfileFlow(profile) for profile in run.profiles):
        best: tuple[float, Operation, list[Stage], Tensor] | None = None
        names = []
        for tensor in large:
            way = flow.way(tensor.id)
            chains = [(operation, _chain(stages)) for operation, _, stages in repeated(way)]
            lines = [(operation, chain) for operation, chain in chains if _multiplying(chain)]
            total = sum(stage.growth for _, chain in lines for stage in chain)
            operation = max(lines, key=lambda line: _multiplying(line[1]), default=(None, []))[0]
            if operation is None or total < 2.5:
                continue
            names.append(tensor.name or "")
            if best is None or total > best[0]:
                best = total, operation, way, tensor
        if best is not None:
            total, operation, way, tensor = best
            times = sum(stage.operation is not None and stage.operation.span == operation.span for stage in way)
            yield Finding(
                "exploding-gradient",
                "warning",
                f"the gradient explodes on its way to `{tensor.name}`: |grad| is {_last_norm(tensor):.1e}",
                operation.span,
                f"it becomes larger here, {times} times in a row",
                tuple(names),
                (),
                (*_profile(run, flow), f"note: on the way: {_course(way)}"),
                (Help("keep the factor of each step at 1 or below: normalise it, or start with smaller weights"),),
            )
            return
    yield from _diverging(run, large)


_EXPLODED = 1e3


def _diverging(run: Run, large: list[Tensor]) -> Iterator[Finding]:
    """The gradient grows from step to step: the updates lead away from where they should."""
    for optimizer in run.optimizers:
        grown = [tensor for tensor in large if tensor.optimizer == optimizer.id and _growth(tensor) > 1e4]
        if grown and optimizer.made is not None:
            names = tuple(tensor.name or "" for tensor in grown)
            worst = max(grown, key=_growth)
            norms = [norm for norm in worst.gradient_norms if norm is not None]
            course = " -> ".join(f"{norms[len(norms) * part // 4]:.1e}" for part in range(4))
            yield Finding(
                "exploding-gradient",
                "warning",
                f"the gradients explode from step to step: |grad| of `{worst.name}` grew {_growth(worst):.0e} times",
                optimizer.made,
                "each step of this optimizer makes the next gradient larger",
                names,
                (),
                (f"|grad| of {worst.name} over the steps: {course} -> {norms[-1]:.1e}",),
                (Help("use a smaller learning rate, or clip the gradients before the step"),),
            )


def _growth(tensor: Tensor) -> float:
    norms = [norm for norm in tensor.gradient_norms if norm]
    return _last_norm(tensor) / statistics.median(norms[: max(1, len(norms) // 4)]) if norms else 0.0


def _last_norm(tensor: Tensor) -> float:
    """The median over the later half of the steps."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    return statistics.median(norms[len(norms) // 2 :]) if norms else 0.0


def _chain(stages: list[Stage]) -> list[Stage]:
    """The stages on a line that come again and again there: one large factor by itself is no chain."""
    counts = Counter(stage.name for stage in stages)
    return [stage for stage in stages if counts[stage.name] >= 5]


def _shrinking(stages: list[Stage]) -> float:
    """How much smaller the chain on a line makes the gradient, or one stage of it by itself, in powers of ten.

    A line that runs a whole model has many stages of many kinds, each of which takes its share once: no chain.
    """
    return min(sum(stage.growth for stage in _chain(stages)), min(stage.growth for stage in stages))


def _multiplying(stages: list[Stage]) -> int:
    return sum(not stage.adds for stage in stages)


def _trained(run: Run) -> list[Tensor]:
    """The tensors that somebody relies on: an optimizer that steps holds them."""
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    return [
        tensor
        for tensor in run.tensors
        if tensor.optimizer in stepped and tensor.leaf and tensor.requires_grad and tensor.name is not None
    ]


def _size(tensor: Tensor) -> float:
    """The median over the steps of the root mean square of a gradient's elements."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    return statistics.median(norms) / math.sqrt(math.prod(tensor.shape) or 1) if norms else 0.0


def _profile(run: Run, flow: ProfileFlow) -> Iterator[str]:
    """|grad| of the tensors in the order in which the gradient comes to them."""
    rows = [(flow.leaves[tensor.id], tensor) for tensor in _trained(run) if tensor.id in flow.leaves]
    shown = [f"{tensor.name} {_last_norm(tensor):.1e}" for _, tensor in sorted(rows, key=lambda row: row[0])]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-4:]]
    yield f"|grad| from the loss on: {', '.join(shown)}"


def _course(way: list[Stage]) -> str:
    """The size of the gradient at some places of its way."""
    picked = [way[len(way) * part // 6] for part in range(6)] if len(way) > 6 else way
    return " -> ".join([f"{stage.arrived:.0e}" for stage in picked] + [f"{way[-1].sent:.0e}"])
