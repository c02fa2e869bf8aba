"""Who put a module into evaluation mode, and where."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.compiler import is_compiling

from gradscope.probes.forward.callsites import Site
from gradscope.probes.program.scopes import is_constant
from gradscope.probes.program.tracebacks import hidden
from gradscope.probes.records import ModuleMark
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.patches import patched
from gradscope.probes.tensors.quiet import unasked


def watch_modes(tape: Tape) -> AbstractContextManager[None]:
    """See every `train()` and `eval()`: `eval` calls `train(False)`, which calls itself for each child."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def train(self: torch.nn.Module, mode: bool = True) -> Any:
            if not tape.active or is_compiling() or is_constant(self):
                return original(self, mode)
            local = tape.local.__dict__
            outer: tuple[Site | None, ModuleMark] | None = local.get("switching")
            try:
                with unasked():
                    mark, site = tape.mark(self), tape.sites.here()
                    # A call from another line than the outer one's is no part of its descent: a module that keeps
                    # its batch norm in evaluation mode overrides `train` to do so.
                    if outer is None or outer[0] != site:
                        local["switching"] = (site, mark)
                    if self.training is not mode:
                        tape.mode_switched = (tape.next_operation(), local["switching"][0])
                    mark.switched = None if mode else local["switching"]
            except Exception as error:
                tape.fail("mode probe", error)
            try:
                with hidden:
                    return original(self, mode)
            finally:
                local["switching"] = outer

        return train

    return patched(torch.nn.Module, "train", wrap)
