"""What steps do to values: gradients that move nothing, and tensors that move though they are frozen."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator

from gradscope.graph.facts import Finding, Help, Label, Ledger, Optimizer, Run, Span, Tensor
from gradscope.rules.values import exploding_gradient
from gradscope.rules.wording import listed, who

_NONE = Ledger()
_NO_RATE = 1e-12
_SQUARABLE = 1e18  # the square root of the range of float32, and of bfloat16
_EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
_LATE = 8  # gradients in a row that are zero, after which a tensor counts as frozen
_SAMPLE = 4_096  # elements of a larger tensor at which its value is measured
_MARGIN = 64  # how many times too small an update may be estimated
_NOISE = 1e-4  # of the largest gradient beside it: what is smaller is rounding, as of biases before a batch norm


def frozen_but_updated(run: Run) -> Iterator[Finding]:
    """A tensor that was frozen goes on moving with every step.

    An optimizer moves whatever has a `.grad`. A tensor whose `requires_grad` was switched off but whose last gradient
    is still there, or whose gradient is masked or set to zero before the step, is moved by that gradient, by momentum,
    by Adam's averages or by weight decay.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(6):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            net[0].weight.grad *= 0
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        net[0].weight.requires_grad_(False)
        trained = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.01)
        for _ in range(6):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for optimizer in run.optimizers:
        held = [tensor for tensor in run.tensors if tensor.optimizer == optimizer.id and tensor.name is not None]
        frozen = [tensor for tensor in held if not tensor.requires_grad and (tensor.ledger or _NONE).moved_frozen >= 2]
        masked = [tensor for tensor in held if _is_masked(tensor, optimizer)]
        if frozen:
            ledger = frozen[0].ledger or _NONE
            yield _moving(
                run,
                optimizer,
                frozen,
                ledger.frozen or optimizer.stepped,
                "frozen here, with its last gradient left in `.grad`" if ledger.frozen else "moves what is frozen",
                "`requires_grad` is off, and `.grad` still holds a gradient",
                "set `.grad = None` when you freeze it, or give it to no optimizer",
            )
        if masked:
            ledger = masked[0].ledger or _NONE
            yield _moving(
                run,
                optimizer,
                masked,
                ledger.masked_at or ledger.cleared or optimizer.stepped,
                "the gradient is set to zero here" if ledger.masked_at or ledger.cleared else "moves what is frozen",
                "weight decay, momentum or averages move elements whose gradient is zero",
                "freeze it with `requires_grad_(False)`, or keep it out of the optimizer, or put its values back",
            )


def _is_masked(tensor: Tensor, optimizer: Optimizer) -> bool:
    """Whether elements with a gradient set to zero moved in most of the steps that were looked at.

    Or in some at the end, from where on nothing but zeros arrived.
    Where a whole optimizer or module is cleared before its step, nobody meant to freeze.
    """
    ledger = tensor.ledger or _NONE
    looks = max(len(ledger.updates), 1)
    for_good = len(tensor.gradient_norms) >= _LATE and all(norm == 0 for norm in tensor.gradient_norms[-_LATE:])
    lost = ledger.cleared_first * 2 >= max(optimizer.uses, 1) and (ledger.swept or optimizer.fed * 2 <= optimizer.uses)
    return ledger.masked >= 3 and (ledger.masked * 2 >= looks or for_good) and not lost


def _moving(
    run: Run, optimizer: Optimizer, tensors: list[Tensor], span: Span | None, caret: str, why: str, mend: str
) -> Finding:
    names = tuple(dict.fromkeys(tensor.name or "" for tensor in tensors))
    those = who(names, run)
    labels: tuple[Label, ...] = ()
    if optimizer.stepped is not None and optimizer.stepped != span:
        labels = (Label(optimizer.stepped, "and this goes on moving it"),)
    return Finding(
        "frozen-but-updated",
        "warning",
        f"{those.subject} {'is' if those.one else 'are'} frozen, yet {optimizer.name} goes on moving {those.them}",
        span,
        caret,
        names,
        labels,
        (f"moved: {listed(names)}", f"why: {why}"),
        (Help(mend),),
    )


def no_update(run: Run) -> Iterator[Finding]:
    """Steps with a gradient other than zero leave the value as it is, to the last bit.

    Either the learning rate is 0, or the update is smaller than the distance to the next number that the tensor's
    type can hold: around 1.0 that is 0.0078 in bfloat16, 0.00098 in float16 and 0.00000012 in float32. Or the
    `step` of an optimizer makes new tensors, as `p = p - update` does, rather than change those that it holds.

    Bad:

        import torch

        net = torch.nn.Linear(4, 1).to(torch.bfloat16)
        torch.nn.init.ones_(net.weight)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
        for _ in range(6):
            loss = net(torch.rand(8, 4, dtype=torch.bfloat16)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch

        net = torch.nn.Linear(4, 1)
        torch.nn.init.ones_(net.weight)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
        for _ in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = net(torch.rand(8, 4))
            loss = out.float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for optimizer in run.optimizers:
        held = [tensor for tensor in run.tensors if tensor.optimizer == optimizer.id and tensor.name is not None]
        stuck = [tensor for tensor in held if _is_still(tensor.ledger or _NONE)]
        at_zero = [tensor for tensor in stuck if _rate_is_zero(tensor.ledger or _NONE)]
        learning = [tensor for tensor in held if (tensor.ledger or _NONE).stirred or tensor in stuck]
        if at_zero and len(at_zero) < len(learning):
            # A group at rate 0 beside others that move is kept as it is on purpose.
            stuck = [tensor for tensor in stuck if tensor not in at_zero]
            at_zero = []
        loudest = max((_size(tensor) for tensor in held), default=0.0)
        stuck = [tensor for tensor in stuck if _size(tensor) > _NOISE * loudest and not _has_arrived(tensor)]
        groups: dict[str, list[Tensor]] = defaultdict(list)
        for tensor in stuck:
            why = "rate" if tensor in at_zero else "range" if _size(tensor) > _SQUARABLE else "precision"
            if why == "precision" and _is_far_above_precision(tensor):
                why = "unchanged"
            groups[why].append(tensor)
        for why, tensors in groups.items():
            if why == "range" and any(exploding_gradient(run)):
                continue  # they grew: that is the story
            yield _unmoved(run, optimizer, tensors, why)


def _is_still(ledger: Ledger) -> bool:
    return ledger.still >= 4 and ledger.still >= ledger.stirred


def _has_arrived(tensor: Tensor) -> bool:
    """Whether it moved until its gradient was next to nothing: there is no way left to go."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    stirred = (tensor.ledger or _NONE).stirred > 0
    return stirred and bool(norms) and statistics.median(norms) <= _NOISE * max(norms)


def _rate_is_zero(ledger: Ledger) -> bool:
    return ledger.rate_zero * 2 >= ledger.still


def _is_far_above_precision(tensor: Tensor) -> bool:
    """Whether its type would hold the sum of the value and an update, were that rate * gradient or rate alone."""
    rate, epsilon = (tensor.ledger or _NONE).rate, _EPSILON.get(tensor.dtype)
    if rate is None or rate < _NO_RATE or epsilon is None or tensor.start is None:
        return False
    value = tensor.start / math.sqrt(max(min(math.prod(tensor.shape), _SAMPLE), 1))
    return rate * min(_size(tensor), 1.0) > _MARGIN * epsilon * value


def _size(tensor: Tensor) -> float:
    """The root mean square of the elements of its gradients, the median over the steps."""
    norms = [norm for norm in tensor.gradient_norms if norm is not None]
    return statistics.median(norms) / math.sqrt(max(math.prod(tensor.shape), 1)) if norms else 0.0


def _unmoved(run: Run, optimizer: Optimizer, tensors: list[Tensor], why: str) -> Finding:
    names = tuple(dict.fromkeys(tensor.name or "" for tensor in tensors))
    those = who(names, run)
    ledger = tensors[0].ledger or _NONE
    looks = ledger.still + ledger.stirred
    types = sorted({tensor.dtype for tensor in tensors})
    rate = ledger.rate if ledger.rate is not None else 1.0
    no_rate = why == "rate" or rate < _NO_RATE
    if no_rate:
        cause = f"the learning rate is {rate:.2g}"
        mend = (
            "look at what sets the learning rate: the optimizer, the scheduler, or a line that scales it in every step"
        )
    elif why == "range":
        cause = "the gradients are so large that their squares are infinite"
        mend = "make them smaller: normalise what the loss is computed from, or clip the gradients before the step"
    elif why == "unchanged":
        cause = f"a step of {optimizer.name} writes nothing into {those.them}"
        mend = (
            "change the tensors themselves in `step`, as `p.add_(update)` does: `p = p + update` makes another tensor "
            "and leaves the one that the model has"
        )
    else:
        cause = f"the updates are below the precision of {' and '.join(types)}"
        mend = "keep the parameters in float32 (autocast for speed), or take a larger learning rate"
    labels: tuple[Label, ...] = ()
    if optimizer.made is not None and optimizer.stepped is not None:
        labels = (Label(optimizer.made, f"this {optimizer.name}"),)
    return Finding(
        "no-update",
        "warning",
        f"{those.subject} {'does' if those.one else 'do'} not move: {cause}",
        optimizer.stepped or optimizer.made,
        "gradients are there, and the values stay as they are",
        names,
        labels,
        (
            f"unmoved in {ledger.still} of {looks} steps that were looked at: {listed(names)}",
            *((f"note: the learning rate was {rate:.2g} at last",) if ledger.rate is not None and not no_rate else ()),
        ),
        (Help(mend),),
    )
