"""Transforms of `torch.func`: where they put a tensor into a wrapper, and where they take a result out of one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._functorch import eager_transforms, vmap
from torch.compiler import is_compiling

from gradscope.probes.forward.functions import link
from gradscope.probes.forward.recorder import sequence_number
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unasked

# What does it, whether it puts in or takes out, and what the operation is called.
_WRAPPING = (
    (vmap, "_add_batch_dim", True, "vmap"),
    (vmap, "_remove_batch_dim", False, "vmap"),
    (eager_transforms, "_wrap_for_grad", True, "transform"),
    (eager_transforms, "_unwrap_for_grad", False, "transform"),
)


@contextmanager
def watch_transforms(tape: Tape) -> Iterator[None]:
    """Record as operations what leads into a transform and out of it, which no function mode sees."""

    def wrap(puts_in: bool, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def hand_on(tensor: Any, *args: Any) -> Any:
            result = original(tensor, *args)
            if tape.active and not is_compiling():
                _handed_on(tape, puts_in, name, tensor, result)
            return result

        return hand_on

    with ExitStack() as stack:
        for owner, attribute, puts_in, name in _WRAPPING:
            stack.enter_context(patched(owner, attribute, functools.partial(wrap, puts_in, name)))
        yield


def _handed_on(tape: Tape, puts_in: bool, name: str, tensor: Any, result: Any) -> None:
    try:
        tape.write_at_once()  # inside, tensors are wrappers that come and go
        site, number = tape.sites.here(), sequence_number()
        if site is not None and isinstance(tensor, torch.Tensor) and isinstance(result, torch.Tensor):
            with unasked():
                source = tape.subject(tensor, site).held()
                if tape.seen(result) is None:
                    made = tape.meet(result, site)
                    made.wrapper = puts_in
                    link(tape, name, site, source, made.held(), number)
    except Exception as error:
        tape.fail("transform probe", error)
