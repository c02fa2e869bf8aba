"""What a failed backward met: asked of the graph while it is still alive, and of the record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradscope.probes.backward.custom import complained
from gradscope.probes.backward.failing import identity
from gradscope.probes.backward.recomputes import Recompute
from gradscope.probes.backward.symptoms import same_complaint, symptom_of, told_versions
from gradscope.probes.backward.walker import nodes_behind
from gradscope.probes.records import Subject
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.attributes import storage_key

_LIMIT = 200_000


@dataclass(frozen=True, slots=True)
class RefusalRecord:
    """Nodes by their sequence numbers, writers by the serial numbers of their operations; see `facts.Refused`."""

    node: str | None = None
    sequence: int | None = None
    subject: Subject | None = None
    result: bool = False
    versions: tuple[int, int] | None = None
    writers: tuple[int, ...] = ()
    freed: tuple[int, ...] = ()
    recompute: Recompute | None = None


def refusal(tape: Tape, roots: Sequence[torch.Tensor], error: BaseException) -> RefusalRecord | None:
    """Why the engine raised this error out of a pass from these roots, as far as the graph can tell."""
    symptom = symptom_of(error)
    if symptom == "custom backward":
        complained(tape)
    if symptom == "changed in place":
        return _changed(tape, nodes_behind(roots, _LIMIT), error)
    again = tape.recompute
    if again is not None and (symptom == "recomputed otherwise" or again.raised == identity(error)):
        return RefusalRecord(recompute=again)
    if symptom == "freed graph":
        freed = (node._sequence_nr() for node in nodes_behind(roots, _LIMIT) if _is_freed(node))
        return RefusalRecord(freed=tuple(freed))
    return None


def _changed(tape: Tape, nodes: Iterable[Any], error: BaseException) -> RefusalRecord | None:
    """The node that complains as the engine did; of several the latest, which the engine comes to first."""
    for node in sorted(nodes, key=lambda node: -node._sequence_nr()):
        for name, saved in _saved(node):
            if not _complains(node, name, error):
                continue
            tensor = getattr(saved, "data", None)
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = storage_key(tensor)
            writes = [serial for step in tape.steps() for serial, place in step.writes if place == storage]
            return RefusalRecord(
                str(node.name()).rpartition("::")[2],
                node._sequence_nr(),
                _subject_of(tape, tensor, storage),
                name in ("_raw_saved_result", "_raw_saved_output"),
                told_versions(error),
                tuple(writes),
            )
    return None


def _saved(node: Any) -> Iterator[tuple[str, Any]]:
    """What a node saved, unchecked: reading these runs no saved-tensor hook and raises for no change."""
    for name in dir(type(node)):
        if not name.startswith("_raw_saved_"):
            continue
        try:
            raw = getattr(node, name)
        except RuntimeError:
            continue  # freed
        for saved in raw if isinstance(raw, (tuple, list)) else (raw,):
            if getattr(saved, "unpack_hook", None) is None:
                yield name, saved


def _complains(node: Any, name: str, error: BaseException) -> bool:
    checked = "saved_tensors" if name == "_raw_saved_tensors" else name.replace("_raw", "", 1)
    try:
        getattr(node, checked)
    except RuntimeError as raised:
        return same_complaint(raised, error)
    return False


def _is_freed(node: Any) -> bool:
    """Whether the tensors that a node had saved are gone."""
    for name in dir(type(node)):
        if name.startswith("_raw_saved_"):
            try:
                getattr(node, name)
            except RuntimeError as raised:
                if symptom_of(raised) == "freed graph":
                    return True
    return False


def _subject_of(tape: Tape, tensor: torch.Tensor, storage: int | None) -> Subject | None:
    """Who a saved tensor is: the very object, or, for a saved result, whoever shares its memory and looks like it."""
    subject = tape.seen(tensor)
    if subject is not None:
        return subject
    for known in list(tape.known.values()):
        live = known.ref()
        if live is None or live.shape != tensor.shape or storage_key(live) != storage:
            continue
        if live.storage_offset() == tensor.storage_offset():
            return known
    return None
