"""Clipping of gradients by torch's functions: which gradients, where, and whether they were there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.compiler import is_compiling
from torch.nn.utils import clip_grad

from gradscope.folds.accounts import Account, Stamp
from gradscope.folds.clips import Clips, State
from gradscope.graph.events import Clipped
from gradscope.probes.forward.callsites import Site
from gradscope.probes.program.tracebacks import hidden, hide
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.attributes import gradient_of, stamp_of
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import capturing, unobserved, unwatched
from gradscope.probes.training.courses import norms_known

# Where the functions that clip look each other up, and where programs do.
_PLACES = (clip_grad, torch.nn.utils)


class _Leaf(NamedTuple):
    """A leaf before its gradient is clipped."""

    serial: int
    account: Account[Site]
    tensor: torch.Tensor
    stamp: Stamp
    state: State


@contextmanager
def watch_clips(tape: Tape) -> Iterator[None]:
    """See what clips by norm (`clip_grad_norm_` ends in `_clip_grads_with_norm_`) and by value."""

    def wrap(original: Callable[..., Any], name: str, by_norm: bool) -> Callable[..., Any]:
        @functools.wraps(original)
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if not tape.active or is_compiling() or capturing():
                return original(parameters, *args, **kwargs)
            if isinstance(parameters, Iterator):  # a generator, a filter, a map: it can be gone through once
                parameters = list(parameters)
            with unwatched():
                before = _before(tape, parameters)
            try:
                with hidden:
                    result = original(parameters, *args, **kwargs)
            except BaseException as error:
                hide(error)
                raise
            with unwatched():
                _clipped(tape, before, args[0] if args else kwargs.get(name), by_norm)
            return result

        return clip

    @functools.cache  # one for both places, so that they hold the same function as ever
    def by_norm(original: Callable[..., Any]) -> Callable[..., Any]:
        return wrap(original, "max_norm", by_norm=True)

    @functools.cache
    def by_value(original: Callable[..., Any]) -> Callable[..., Any]:
        return wrap(original, "clip_value", by_norm=False)

    with ExitStack() as stack:
        for owner in _PLACES:
            for name in ("_clip_grads_with_norm_", "clip_grads_with_norm_"):
                stack.enter_context(patched(owner, name, by_norm))
            stack.enter_context(patched(owner, "clip_grad_value_", by_value))
        yield


def _before(tape: Tape, parameters: Any) -> list[_Leaf]:
    """The leaves whose gradients are about to be clipped."""
    if tape.backwards_running:
        return []  # in a hook of a backward: what it brings is not written down before its end
    leaves: list[_Leaf] = []
    try:
        with unobserved():
            given: Iterable[Any] = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            for tensor in given:
                subject = tape.seen(tensor) if isinstance(tensor, torch.Tensor) else None
                if subject is not None and subject.leaf and subject.requires_grad and tape.readable(subject):
                    account, gradient = tape.course(subject).account, gradient_of(tensor)
                    stamp = stamp_of(gradient)
                    leaves.append(_Leaf(subject.serial, account, tensor, stamp, _state(account, stamp, gradient)))
    except Exception as error:
        tape.fail("clip probe", error)
    return leaves


def _clipped(tape: Tape, leaves: list[_Leaf], limit: Any, by_norm: bool) -> None:
    """They have been clipped. Without a limit only the norm was asked for: a look."""
    if not leaves:
        return
    try:
        with unobserved():
            limit = float(limit)
            site = tape.sites.here()
            looked = limit == float("inf")
            for leaf in leaves:
                account = leaf.account
                account.changed(leaf.stamp, stamp_of(gradient_of(leaf.tensor)))
                if not looked and site is not None:
                    if account.clips is None:
                        account.clips = Clips()
                    account.clips.clip(site, limit, leaf.state, arrived=account.passes > 0)
            if not looked:
                serials = tuple(leaf.serial for leaf in leaves)
                tape.note(Clipped(tape.next_operation(), site, serials, limit, by_norm))
    except Exception as error:
        tape.fail("clip probe", error)


def _state(account: Account[Site], stamp: Stamp, gradient: torch.Tensor | None) -> State:
    """Whether a gradient waits for its use, has been used, or is nothing."""
    if account.pending:
        return "fresh"
    if gradient is None:
        return "none"
    if stamp == account.stamp:
        return "used" if account.users else "none"
    # Written by hand, or set to zero: a gradient of zeros is none.
    return "fresh" if norms_known([gradient])[0] != 0 else "none"
