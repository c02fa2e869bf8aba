"""Who holds what: optimizers that lack tensors of the model, or hold some that the model has no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.cuts import cuts
from gradscope.graph.facts import Help, Label, Ledger, Operation, Optimizer, Run, Span, Tensor
from gradscope.graph.naming import line_of, short_name
from gradscope.graph.successors import gets_gradients, held_copies, label_of, loaded, path_of, replaced
from gradscope.rules.claim import Claim, Story, Trouble, names_of, rule, subjects
from gradscope.rules.mends import holders
from gradscope.rules.words import listed, times_text, who

_NONE = Ledger()


@rule("error", [Trouble.NEVER_LEARNS])
def stale_optimizer(ask: Ask) -> Iterator[Claim[_Replaced]]:
    """An optimizer holds tensors that its model has replaced since it was made.

    An optimizer holds tensor objects, not names. Who gives the model a new head, converts its layers or loads a copy
    of it after making the optimizer leaves it with the old tensors: it goes on stepping, and the new ones never move.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net[2] = nn.Linear(4, 2)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        net[2] = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    optimizers = {optimizer.id: optimizer for optimizer in run.optimizers}
    pairs = ask(replaced)
    places = {path_of(new) for _, new in pairs}
    inherited = tuple((Trouble.NEVER_LEARNS, tensor.id) for tensor in run.tensors if path_of(tensor) in places)
    for old, new in pairs:
        optimizer = optimizers[old.optimizer or 0]
        # Where one line makes the optimizers of several models, they are one story.
        cause = optimizer.made or optimizer.id, line_of(_replacing(old, new))
        learns = (Trouble.NEVER_LEARNS, old.id)
        yield Claim(cause, _Replaced(optimizer, old, new), new, explains=(learns,), besides=inherited)


@dataclass(frozen=True, slots=True)
class _Replaced:
    """A tensor that an optimizer holds, and the one that has taken its place in the model."""

    optimizer: Optimizer
    old: Tensor
    new: Tensor


@stale_optimizer.words
def _(told: Sequence[Claim[_Replaced]], ask: Ask) -> Story:
    optimizer, pairs = told[0].evidence.optimizer, [(claim.evidence.old, claim.evidence.new) for claim in told]
    those = who(names_of(told), ask.run)
    span = _replacing(*pairs[0])
    alike = all(old.shape == new.shape for old, new in pairs)
    edits = holders.loaded_in_place(ask, span) if alike else ()
    edits = edits or holders.made_after(ask, optimizer, [*([span] if span else []), *pairs[0][1].callers])
    labels = (Label(optimizer.made, "made before, it holds the old ones"),) if optimizer.made is not None else ()
    return Story(
        f"{those.subject} {those.learns}: {optimizer.name} still holds the tensors that "
        f"{'it' if those.one else 'they'} replaced",
        span or optimizer.made,
        "replaced here, after the optimizer was made",
        labels=labels if span is not None else (),
        facts=(
            f"replaced: {listed(tuple(dict.fromkeys(old.name or '' for old, _ in pairs)))}",
            f"note: {optimizer.name} stepped {times_text(optimizer.steps)}; what was replaced {_last(pairs)}",
        ),
        help=(Help(_KEEP if alike else _LATER, edits),),
    )


_KEEP = (
    "keep the tensors and change their values: by `copy_` under `torch.no_grad()`, or `load_state_dict` without "
    "`assign`; else make the optimizer anew"
)
_LATER = "make the optimizer after the model has its final layers"


def _replacing(old: Tensor, new: Tensor) -> Span | None:
    """The line that made the new tensor; where one function makes both, the line that called for the new one.

    That is a line of the function that had called for the old one, if there is any: there it is given up.
    """
    if new.built is None or new.built != old.built:
        return new.built or new.made
    others = [span for span in new.callers if span not in old.callers]
    homes = {span.function for span in old.callers}
    return next((span for span in others if span.function in homes), others[0] if others else new.built)


def _last(pairs: list[tuple[Tensor, Tensor]]) -> str:
    last = max((old.ledger or _NONE).last for old, _ in pairs)
    return f"got its last gradient in step {last}" if last else "never got a gradient"


@rule("warning", [Trouble.NEVER_LEARNS])
def not_in_optimizer(ask: Ask) -> Iterator[Claim[_Missing]]:
    """A parameter gets gradients in the steps that update others, and no optimizer holds it.

    An optimizer updates what it was given when it was made, and what `add_param_group` gave it. Parameters of a
    second module (a head, a loss with weights of its own), or those added to the model later, have to be given to it.

    Bad:

        import torch
        from torch import nn

        net, head = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = head(net(torch.rand(8, 4))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net, head = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1)
        for _ in range(3):
            loss = head(net(torch.rand(8, 4))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    stepped = [optimizer for optimizer in run.optimizers if optimizer.fed]
    stepped = stepped or [optimizer for optimizer in run.optimizers if optimizer.steps]
    trained = [run.tensor_by_id[number] for optimizer in stepped for number in optimizer.tensors]
    taken = ask(loaded)
    in_training = {module.path: module.training for module in run.modules}
    modules_held = Counter(label_of(tensor) for tensor in trained if tensor.module is not None)
    stand_ins = _stand_ins(run)
    copies = {cut.operation.span for cut in ask(cuts) if cut.cause == "rebuilt-tensor"}
    for tensor in run.tensors:
        if tensor.id in taken or not gets_gradients(tensor, frozen_since=True) or tensor.change:
            continue
        if tensor.made in copies or tensor.registered == "attribute":
            continue
        if tensor.id not in stand_ins and not _is_meant_to_learn(tensor, trained):
            continue
        alone = tensor.module is not None and not modules_held[label_of(tensor)]
        if alone and not in_training.get(tensor.module or "", True):
            continue  # a whole network in eval mode that nobody trains: it only measures
        optimizer = _nearest(run, stepped, tensor)
        if optimizer is not None:
            missing = _Missing(optimizer, stand_ins.get(tensor.id))
            yield Claim((label_of(tensor), optimizer.id), missing, tensor)


@dataclass(frozen=True, slots=True)
class _Missing:
    """What an optimizer lacks; `stand_in` made another tensor of it, which it was given instead."""

    optimizer: Optimizer
    stand_in: Operation | None


@not_in_optimizer.words
def _(told: Sequence[Claim[_Missing]], ask: Ask) -> Story:
    run, found, optimizer = ask.run, subjects(told), told[0].evidence.optimizer
    names = names_of(told)
    those = who(names, run)
    ledger = max((tensor.ledger or _NONE for tensor in found), key=lambda ledger: ledger.passes)
    place = found[0].built or found[0].made
    span = optimizer.made or place
    labels: tuple[Label, ...] = (Label(place, "made here"),) if place is not None and place != span else ()
    help_ = "give them to the optimizer, or set `requires_grad_(False)` if they are to stay as they are"
    stand_in = next((claim.evidence.stand_in for claim in told if claim.evidence.stand_in is not None), None)
    if stand_in is not None and stand_in.span is not None:
        said = f"`{short_name(stand_in.name)}`"
        gives = f"{said} gives another tensor, which requires no grad; {optimizer.name} holds that"
        labels += (Label(stand_in.span, gives),)
        help_ = f"give the tensors themselves to the optimizer, without {said}"
    edits = holders.given_too(ask, optimizer, found) if stand_in is None else ()
    return Story(
        f"{those.subject} {those.learns}: gradients arrived in {ledger.passes} backwards, and no optimizer holds "
        f"{those.them}",
        span,
        f"{optimizer.name} is given other parameters only",
        names,
        labels,
        (f"not held by any optimizer: {listed(names)}", *_held_instead(run, found, ask(held_copies), optimizer)),
        (Help(help_, edits),),
    )


def _held_instead(run: Run, found: list[Tensor], sources: Mapping[int, Tensor], optimizer: Optimizer) -> Iterator[str]:
    """A note on the copies of these that the optimizer was given."""
    wanted = {tensor.id for tensor in found}
    copies = {copy for copy, source in sources.items() if source.id in wanted}
    held = tuple(tensor.name or "" for tensor in run.tensors if tensor.id in copies)
    if held:
        yield f"note: {optimizer.name} holds copies instead, which get no gradient: {listed(held)}"


def _stand_ins(run: Run) -> dict[int, Operation]:
    """What made a tensor that an optimizer holds in vain of one that requires grad, by the id of that one."""
    tensors = run.tensor_by_id
    holder = run.holder
    held = {number for optimizer in run.optimizers for number in optimizer.tensors if not tensors[number].requires_grad}
    found: dict[int, Operation] = {}
    for operation in (operation for step in run.steps for operation in step.operations):
        if ops.is_a(operation, ops.DETACHES) and any(holder[value] in held for value in operation.outputs):
            found.update((holder[value], operation) for value in operation.inputs)
    return found


def _is_meant_to_learn(tensor: Tensor, trained: list[Tensor]) -> bool:
    """Whether it is of a kind with what is trained.

    Who optimizes an image, a prompt or a latent code leaves the network as it is. Of plain tensors that require grad
    most are data: only a single number is told for a parameter.
    """
    if tensor.registered == "parameter":
        # What is held and has no name is of a module that nobody calls: a copy of this one, or one that is gone.
        return any(other.registered == "parameter" or other.name is None for other in trained)
    if tensor.nn_parameter:
        return any(other.nn_parameter for other in trained)
    return tensor.registered is None and bool(trained) and tensor.is_scalar


def _nearest(run: Run, stepped: list[Optimizer], tensor: Tensor) -> Optimizer | None:
    """Of those that step when it gets gradients, the optimizer that holds most of the same model.

    Else the one whose tensors are trained by the same backwards. What takes part in the loss of a generator gets
    gradients of it as well, though the generator is none of its kind: so those count that come without it.
    Of two alike, the one whose tensors lie nearest by name, and holds most.
    """
    arrivals = [set(backward.arrivals) for step in run.steps for backward in step.backwards]
    turns = {step.optimizer for step in run.steps if any(tensor.id in backward.arrivals for backward in step.backwards)}
    own = _parts(tensor)

    def kinship(optimizer: Optimizer) -> tuple[bool, int, int, int, int]:
        held = [run.tensor_by_id[number] for number in optimizer.tensors]
        siblings = sum(label_of(other) == label_of(tensor) for other in held if other.module is not None)
        with_it = [not reached.isdisjoint(optimizer.tensors) for reached in arrivals if tensor.id in reached]
        without = [reached for reached in arrivals if tensor.id not in reached]
        alone = sum(not reached.isdisjoint(optimizer.tensors) for reached in without)
        nearest = max((_common(own, _parts(other)) for other in held), default=0)
        return optimizer.id in turns, siblings, sum(with_it) - alone, nearest, len(held)

    return max(stepped, key=kinship, default=None)


def _parts(tensor: Tensor) -> list[str]:
    """The parts of the name of a tensor within its root module."""
    return path_of(tensor).split(".")


def _common(parts: list[str], others: list[str]) -> int:
    """How many parts two names have in common from the start."""
    return next((place for place, (one, other) in enumerate(zip(parts, others, strict=False)) if one != other), 0)
