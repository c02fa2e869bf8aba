"""Warnings that are raised while our handlers are on the stack, put back on the line that they are for.

Who warns names the place by its distance on the stack, and our frames lie in between. The text is the same but
the place is wrong, and Python shows a warning once for each place. So where the place was counted through frames
that are there because of us, it is counted again without them, and the warning is issued for what comes out.

Before that, Python asks its filters, and some of these judge by the module that the place is in: these are told the
right one.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gradscope.probes import FOLDER
from gradscope.probes.tensors.patches import patched

_PACKAGE = "gradscope.probes."
_ASKING = "torch.overrides"
_OVERRIDES = os.path.join("torch", "overrides.py")
_ISSUING = threading.local()  # one for all observations: of two at once, only the inner one counts again


@contextmanager
def warnings_in_place() -> Iterator[None]:
    """While this is on, warnings are shown for the places for which they would be shown without us.

    `_showwarnmsg` is where every warning comes by, shown or recorded; `showwarning` belongs to the user, and
    `warnings.catch_warnings(record=True)` takes it away for a while.
    """
    original = warnings._showwarnmsg  # type: ignore[attr-defined]

    def show(message: warnings.WarningMessage) -> None:
        places = None if getattr(_ISSUING, "now", False) else _places_of(message)
        if places is None:
            original(message)
            return
        wrong, right = places
        _forget(wrong, message)
        _ISSUING.now = True
        try:
            warnings.warn_explicit(
                message.message,
                message.category,
                right.f_code.co_filename,
                right.f_lineno,
                right.f_globals.get("__name__"),
                right.f_globals.setdefault("__warningregistry__", {}),
                source=message.source,
            )
        finally:
            _ISSUING.now = False

    warnings._showwarnmsg = show  # type: ignore[attr-defined]
    try:
        with _modules_in_place():
            yield
    finally:
        if warnings._showwarnmsg is show:  # type: ignore[attr-defined]
            warnings._showwarnmsg = original  # type: ignore[attr-defined]


@contextmanager
def _modules_in_place() -> Iterator[None]:
    """While this is on, filters for some module are asked for the module that a warning would be in without us."""

    def replace(as_now: Callable[[Any], Any]) -> None:
        for place, item in enumerate(warnings.filters):
            action, message, category, module, line = item
            warnings.filters[place] = (action, message, category, as_now(module), line)  # type: ignore[index]

    def wrap(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def add(action: Any, message: Any, category: Any, module: Any, *rest: Any, **options: Any) -> None:
            original(action, message, category, _in_place(module), *rest, **options)

        return add

    with patched(warnings, "_add_filter", wrap, always=True):
        replace(_in_place)
        try:
            yield
        finally:
            replace(_own)


def _in_place(module: Any) -> Any:
    """What a filter asks for its module: nothing, a text (of Python's own filters), or a regular expression."""
    if type(module) is str:
        return _Text(module)
    return _Expression(module) if type(module) is re.Pattern else module


def _own(module: Any) -> Any:
    if isinstance(module, _Text):
        return str(module)
    return module.own if isinstance(module, _Expression) else module


class _Text(str):
    """The name of a module; Python asks what is no plain text to match."""

    __slots__ = ()

    def match(self, module: str) -> bool:
        return str(self) == _module(module)


class _Expression:
    """A regular expression for the names of modules."""

    def __init__(self, own: re.Pattern[str]) -> None:
        self.own = own

    def match(self, module: str) -> re.Match[str] | None:
        return self.own.match(_module(module))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def __repr__(self) -> str:
        return repr(self.own)

    def __hash__(self) -> int:
        return hash(self.own)

    def __eq__(self, other: object) -> bool:
        return bool(self.own == _own(other))


def _module(module: str) -> str:
    """The module that a warning would be in without us, of which Python says that it is in this one."""
    if getattr(_ISSUING, "now", False) or not (module == _ASKING or module.startswith(_PACKAGE)):
        return module
    places = _places(sys._getframe(1), lambda frame: frame.f_globals.get("__name__") == module)
    return module if places is None else str(places[1].f_globals.get("__name__", "<unknown>"))


def _places_of(message: warnings.WarningMessage) -> tuple[FrameType, FrameType] | None:
    line, file = message.lineno, message.filename
    return _places(sys._getframe(1), lambda frame: frame.f_lineno == line and frame.f_code.co_filename == file)


def _places(frame: FrameType | None, is_named: Callable[[FrameType], bool]) -> tuple[FrameType, FrameType] | None:
    """The frame that a warning names and the one that it would name without us; None where that is the same."""
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    every: list[FrameType] = []
    theirs: list[FrameType] = []
    reached: int | None = None
    while frame is not None and (reached is None or len(theirs) < reached):
        if reached is None:
            every.append(frame)
            if is_named(frame):
                reached = len(every)
        outer = frame.f_back
        if not frame.f_code.co_filename.startswith(FOLDER):
            theirs.append(frame)
        elif outer is not None and _asks(outer):
            # A Python function of torch's asks the mode first, and stands on the stack a second time for it.
            for asking in (outer, outer.f_back):
                if reached is None and asking is not None:
                    every.append(asking)
                    if is_named(asking):
                        reached = len(every)
            outer = outer.f_back and outer.f_back.f_back
        frame = outer
    if reached is None or len(theirs) < reached or theirs[reached - 1] is every[reached - 1]:
        return None
    return every[reached - 1], theirs[reached - 1]


def _asks(frame: FrameType) -> bool:
    return frame.f_code.co_name == "handle_torch_function" and frame.f_code.co_filename.endswith(_OVERRIDES)


def _forget(frame: FrameType, message: warnings.WarningMessage) -> None:
    """Python remembers what it has shown for a place; for the wrong place it must not."""
    text, category = str(message.message), message.category
    registry: dict[Any, Any] = frame.f_globals.get("__warningregistry__", {})
    for key in ((text, category, message.lineno), (text, category, 0), (text, category)):  # of the various filters
        registry.pop(key, None)
    once: dict[Any, Any] = warnings.onceregistry  # type: ignore[attr-defined]
    once.pop((text, category), None)
