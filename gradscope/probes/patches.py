"""Replacing an attribute of torch for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def patched(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Put `wrap(original)` in the place of `owner.name`, and the original back at the end.

    The original is taken from the owner's own dictionary, so that descriptors (classmethod, staticmethod) go
    back as they were; what the owner inherits is inherited again. Where somebody else has replaced ours meanwhile,
    theirs stays: putting the original back would undo what they did, and our wrapper steps aside by itself once the
    tape is closed.
    """
    own = vars(owner).get(name)
    original = getattr(owner, name, None) if own is None else own
    if original is None:
        yield
        return
    replacement = wrap(original)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if vars(owner).get(name) is replacement:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
