"""Hooks on leaves that set elements of every gradient to zero, which is how some freeze a layer or a few rows."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.compiler import is_compiling

from gradscope.probes.forward.callsites import Site
from gradscope.probes.program.tracebacks import hidden
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import capturing, detached, unobserved

_LOOKS = 4  # gradients of one leaf that are compared with what its hook makes of them
_HOOKS = 16  # of one leaf that are watched: some register one anew in every step
_Hook = Callable[[torch.Tensor], Any]


class _Watched:
    """What the first calls of one hook set to zero."""

    def __init__(self, tape: Tape, leaf: int, site: Site | None) -> None:
        self.tape, self.leaf, self.site = tape, leaf, site
        self.zeroed: torch.Tensor | None = None
        self.looks = 0

    def note(self) -> None:
        """The hook worked on a gradient; whether it masks was seen at the first of them."""
        leaf = self.tape.leaves.get(self.leaf)
        if leaf is not None and leaf.course is not None:
            leaf.course.account.mask(self.site)

    def compare(self, given: torch.Tensor, made: Any) -> None:
        """A fixed mask sets the same elements to zero each time: one that comes through later was not masked."""
        self.looks += 1
        leaf = self.tape.leaves.get(self.leaf)
        usable = isinstance(made, torch.Tensor) and made.shape == given.shape and made.layout is torch.strided
        if leaf is None or leaf.course is None or not usable or given.layout is not torch.strided:
            return
        account = leaf.course.account
        zero = made == 0
        zeroed = zero & (given != 0)
        if self.zeroed is not None:
            zeroed |= self.zeroed
        if bool((zeroed & ~zero).any()):
            self.looks = _LOOKS
            account.masked_at = None if account.masked_at == self.site else account.masked_at
        elif bool(zeroed.any()):
            account.masked_at = self.site
        self.zeroed = zeroed if self.looks < _LOOKS else None


@contextmanager
def watch_masks(tape: Tape) -> Iterator[None]:
    """See what hooks that are registered on leaves make of gradients; the hooks themselves go back at the end."""
    placed: WeakValueDictionary[int, Any] = WeakValueDictionary()  # the hooks of tensors, nothing of which is kept
    watched: dict[int, int] = defaultdict(int)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def register_hook(self: torch.Tensor, hook: _Hook) -> Any:
            # Under a function mode torch comes here again with the hook that was put in the place of the user's.
            if not tape.active or is_compiling() or hasattr(hook, "__gradscope__") or not _is_trained(self):
                with hidden:
                    return original(self, hook)
            leaf = tape.subject(self).serial
            watched[leaf] += 1
            if watched[leaf] > _HOOKS:
                return original(self, hook)
            with hidden:
                handle = original(self, _observed(tape, hook, _Watched(tape, leaf, tape.sites.here())))
            hooks = handle.hooks_dict_ref()
            placed[id(hooks)] = hooks
            return handle

        return register_hook

    with patched(torch.Tensor, "register_hook", wrap):
        try:
            yield
        finally:
            for hooks in list(placed.values()):
                for number, hook in list(hooks.items()):
                    if getattr(hook, "__gradscope__", None) is tape:
                        hooks[number] = hook.__wrapped__


def _is_trained(tensor: torch.Tensor) -> bool:
    with unobserved():
        return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_leaf and tensor.requires_grad


def _observed(tape: Tape, hook: _Hook, watched: _Watched) -> _Hook:
    @functools.wraps(hook)
    def observed(gradient: torch.Tensor) -> Any:
        looking = tape.active and watched.looks < _LOOKS and not capturing()
        given = gradient
        if looking:
            with unobserved():
                given = detached(gradient).clone()  # a hook may change it in place
        with hidden:
            made = hook(gradient)
        try:
            if looking:
                with unobserved():
                    watched.compare(given, gradient if made is None else made)
            if tape.active:
                watched.note()
        except Exception as error:
            tape.fail("hook probe", error)
        return made

    observed.__gradscope__ = tape  # type: ignore[attr-defined]
    return observed
