"""Tensors of a model that have taken the place of others, which an optimizer still holds."""

from __future__ import annotations

from collections import defaultdict

from gradscope.graph.facts import Ledger, Run, Tensor

_NONE = Ledger()
_CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"})


def replaced(run: Run) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a held tensor that gets no gradient any more and the latest that has taken its name and place since."""
    stepped = {optimizer.id for optimizer in run.optimizers if optimizer.steps}
    types = {module.path: module.type for module in run.modules}
    held: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in run.tensors:
        if tensor.optimizer in stepped and tensor.name is not None and tensor.registered == "parameter":
            held[path_of(tensor)].append(tensor)
    latest: dict[int, tuple[Tensor, Tensor]] = {}
    for new in run.tensors:
        ledger = new.ledger or _NONE
        if not gets_gradients(new) or new.registered != "parameter" or new.change:
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
    return list(latest.values())


def gets_gradients(tensor: Tensor) -> bool:
    """Whether gradients other than zero arrive again and again at what no optimizer holds, and nobody uses them."""
    ledger = tensor.ledger or _NONE
    learning = tensor.leaf and tensor.requires_grad and tensor.optimizer is None and tensor.name is not None
    return learning and ledger.passes >= 2 and not ledger.by_hand and any(norm != 0 for norm in tensor.gradient_norms)


def path_of(tensor: Tensor) -> str:
    """The name of a tensor within its root module."""
    name = tensor.name or ""
    return name.removeprefix(f"{tensor.module}.") if tensor.module is not None else name


def label_of(tensor: Tensor) -> str:
    """The variable of the module that a tensor belongs to, without the number of later ones of its name."""
    return (tensor.module or "").partition("#")[0]
