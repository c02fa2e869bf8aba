"""Replacing an attribute of torch for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class _Patch(NamedTuple):
    owner: Any
    name: str
    own: Any  # None where the owner inherits the attribute
    replacement: Any
    always: bool


_patches: list[_Patch] = []
_bare = 0  # how many threads want torch as it was
_lock = threading.RLock()


@contextmanager
def patched(owner: Any, name: str, wrap: Callable[[Any], Any], always: bool = False) -> Iterator[None]:
    """Put `wrap(original)` in the place of `owner.name`, and the original back at the end.

    The original is taken from the owner's own dictionary, so that descriptors (classmethod, staticmethod) go
    back as they were; what the owner inherits is inherited again. Where somebody else has replaced ours meanwhile,
    theirs stays: putting the original back would undo what they did, and our wrapper steps aside by itself once the
    tape is closed. What is `always` there is not taken out by `take_out`.
    """
    own = vars(owner).get(name)
    original = getattr(owner, name, None) if own is None else own
    if original is None:
        yield
        return
    patch = _Patch(owner, name, own, wrap(original), always)
    with _lock:
        _patches.append(patch)
        if always or not _bare:
            _put_in(patch)
    try:
        yield
    finally:
        with _lock:
            _patches.remove(patch)
            _take_out(patch)


def take_out() -> None:
    """Have everything that `patched` has replaced as it was, for who reads torch's code, until `put_back`."""
    global _bare
    with _lock:
        _bare += 1
        if _bare == 1:
            for patch in reversed(_patches):
                if not patch.always:
                    _take_out(patch)


def put_back() -> None:
    """Replace again what this thread had taken out."""
    global _bare
    with _lock:
        _bare -= 1
        if not _bare:
            for patch in _patches:
                _put_in(patch)


def _put_in(patch: _Patch) -> None:
    if vars(patch.owner).get(patch.name) is patch.own:
        setattr(patch.owner, patch.name, patch.replacement)


def _take_out(patch: _Patch) -> None:
    if vars(patch.owner).get(patch.name) is not patch.replacement:
        return
    if patch.own is None:
        delattr(patch.owner, patch.name)
    else:
        setattr(patch.owner, patch.name, patch.own)
