"""The texts that facts hold: all of them changed at once, and all of them written as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

_Facts = TypeVar("_Facts")
_NUMBERS = frozenset({int, float, bool, type(None)})


def throughout(facts: _Facts, change: Callable[[str], str], leave: tuple[type, ...] = ()) -> _Facts:
    """The same facts with each text in them changed, however deep it lies; what is of a type to `leave` stays."""
    changed: Any = _changed(facts, change, leave)
    return changed  # type: ignore[no-any-return]


def _changed(facts: Any, change: Callable[[str], str], leave: tuple[type, ...]) -> Any:
    if isinstance(facts, str):
        return change(facts)
    if type(facts) in _NUMBERS or isinstance(facts, leave):
        return facts
    if isinstance(facts, (tuple, list)):
        # Series of numbers are long, and most of what a large run holds.
        if _NUMBERS.issuperset(map(type, facts)):
            return facts
        return type(facts)([_changed(fact, change, leave) for fact in facts])
    if isinstance(facts, Mapping):
        return {_changed(key, change, leave): _changed(fact, change, leave) for key, fact in facts.items()}
    is_struct = isinstance(facts, msgspec.Struct)
    if not is_struct and not dataclasses.is_dataclass(facts):
        return facts
    names = facts.__struct_fields__ if is_struct else [field.name for field in dataclasses.fields(facts)]
    found = {}
    for name in names:
        old = getattr(facts, name)
        new = _changed(old, change, leave)
        if new is not old and new != old:
            found[name] = new
    if not found:
        return facts
    return msgspec.structs.replace(facts, **found) if is_struct else dataclasses.replace(facts, **found)


def encoded(facts: Any) -> bytes:
    """Facts as JSON in UTF-8, which cannot write half a surrogate pair: one that a name holds is spelled out."""
    try:
        return msgspec.json.encode(facts)
    except UnicodeEncodeError:
        return msgspec.json.encode(throughout(facts, _without_halves))


def _without_halves(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
