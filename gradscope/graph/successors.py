"""Tensors of a model that have taken the place of others, which an optimizer still holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Ledger, Run, Tensor

_NONE = Ledger()
_CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"})


def replaced(ask: Ask) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a held tensor that gets no gradient any more and the latest that has taken its name and place since.

    One that is replaced again in every step gets a single gradient: it counts if there are several in a row.
    """
    run = ask.run
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    types = {module.path: module.type for module in run.modules}
    held: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in run.tensors:
        if tensor.optimizer in stepped and tensor.name is not None and tensor.registered == "parameter":
            held[path_of(tensor)].append(tensor)
    latest: dict[int, tuple[Tensor, Tensor]] = {}
    left = [new for new in run.tensors if new.registered == "parameter" and not new.change and gets_gradients(new, 1)]
    row = Counter((path_of(new), new.module) for new in left)
    for new in left:
        ledger = new.ledger or _NONE
        if ledger.passes < 2 and row[path_of(new), new.module] < limits.REPLACED_IN_A_ROW:
            continue
        # Of several in whose place it may be, as with clients of one server, that which was not replaced for longest.
        olds = held.get(path_of(new), [])
        for old in sorted(olds, key=lambda old: latest[old.id][1].id if old.id in latest else 0):
            gone = (old.ledger or _NONE).last < ledger.first
            same_shape = old.shape == new.shape and types.get(old.module or "") == types.get(new.module or "")
            # A copy that learns where the first has learned before has taken its place; else it is merely a copy.
            own = types.get(new.module or "") not in _CONTAINERS and bool((old.ledger or _NONE).passes)
            if gone and (label_of(old) == label_of(new) or (same_shape and own)):
                latest[old.id] = old, new
                break
    given_up = {old.id for old, _ in latest.values()}
    return [*latest.values(), *((old, new) for old, new in _made_of(run, held) if old.id not in given_up)]


def _made_of(run: Run, held: Mapping[str, list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a held tensor that only gave its values to parameters of its own model, and one that was made of it.

    So do reparametrisations, as of weight norm: the model computes with a magnitude and a direction from then on.
    """
    olds = {tensor.id: tensor for tensors in held.values() for tensor in tensors}
    tensors = run.tensor_by_id
    holder = run.holder
    made: list[tuple[Tensor, Tensor]] = []
    source: dict[int, int] = {}  # the held tensor whose values a value was made of
    for operation in (operation for step in run.steps for operation in step.operations):
        if not any(holder[value] in olds or value in source for value in operation.inputs):
            continue
        taken = {holder[value] for value in operation.inputs}
        computing = operation.grad_enabled and any(
            run.history[value] and holder[value] not in taken for value in operation.outputs
        )
        if operation.name != "nn.Parameter" and computing:
            for number in [number for number in taken if number in olds]:
                del olds[number]  # the model has it still, or a loss does
            continue
        origins = {number for number in taken if number in olds}
        origins.update(source[value] for value in operation.inputs if value in source)
        for value in operation.outputs if len(origins) == 1 else ():
            (origin,) = origins
            new = tensors[holder[value]]
            if operation.name != "nn.Parameter":
                source[value] = origin
            elif new.registered == "parameter" and gets_gradients(new) and not new.change:
                made += [(olds[origin], new)] if origin in olds else []
    yield from ((old, new) for old, new in made if old.id in olds and label_of(old) == label_of(new))


def held_copies(ask: Ask) -> dict[int, Tensor]:
    """What tensors without gradients in an optimizer were copied from, by their ids, if that learns and is not held.

    An optimizer that was given a target network, or an average, in place of the network that is trained holds these.
    """
    run = ask.run
    foreign = ask(loaded)
    learning = {tensor.id: tensor for tensor in run.tensors if gets_gradients(tensor) and tensor.id not in foreign}
    idle = {tensor for optimizer in run.optimizers if not optimizer.fed for tensor in optimizer.tensors}
    holder = run.holder
    tensors = run.tensor_by_id
    copies: dict[int, Tensor] = {}
    source: dict[int, int] = {}  # the learning tensor whose values a value is
    for operation in (operation for step in run.steps[:1] for operation in step.operations):
        if not ops.is_a(operation, ops.COPIES_A_PARAMETER):
            continue
        origins = {source.get(value, holder[value]) for value in operation.inputs}
        origins = {origin for origin in origins if origin in learning}
        for value in operation.outputs if len(origins) == 1 else ():
            (origin,) = origins
            if holder[value] != origin and tensors[holder[value]].shape == tensors[origin].shape:
                source[value] = origin
                if holder[value] in idle:
                    copies[holder[value]] = learning[origin]
    return copies


def loaded(ask: Ask) -> set[int]:
    """Parameters whose values were copied into them before the first backward: they come from elsewhere."""
    run = ask.run
    holder = run.holder
    found: set[int] = set()
    for step in run.steps[:1]:
        for operation in step.operations:
            if operation.name.endswith("copy_") and not operation.grad_enabled and len(operation.inputs) > 1:
                found.update(holder[value] for value in operation.outputs)
    return found


def gets_gradients(tensor: Tensor, least: int = 2, *, frozen_since: bool = False) -> bool:
    """Whether gradients other than zero arrive again and again at what no optimizer holds, and nobody uses them.

    With `frozen_since`, also whether they did in a phase after which it was frozen, as a teacher is.
    """
    ledger = tensor.ledger or _NONE
    requires = tensor.requires_grad or frozen_since
    learning = tensor.leaf and requires and tensor.optimizer is None and tensor.name is not None
    return learning and ledger.passes >= least and not ledger.by_hand and _is_somewhere(tensor)


def _is_somewhere(tensor: Tensor) -> bool:
    """Whether gradients that arrived may differ from zero: some do, or nobody knows the value of any."""
    norms = tensor.gradient_norms
    return any(norm != 0 for norm in norms) or (not norms and tensor.received is not None and tensor.received.steps > 0)


def path_of(tensor: Tensor) -> str:
    """The name of a tensor within its root module."""
    name = tensor.name or ""
    return name.removeprefix(f"{tensor.module}.") if tensor.module is not None else name


def label_of(tensor: Tensor) -> str:
    """The variable of the module that a tensor belongs to, without the number of later ones of its name."""
    return (tensor.module or "").partition("#")[0]
