"""The stack of function modes, as it is and as the program sees it: without the modes of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradscope.probes.tensors.patches import patched

size: Callable[[], int] = torch._C._len_torch_function_stack
at: Callable[[int], Any] = torch._C._get_function_stack_at
push: Callable[[Any], None] = torch._C._push_on_torch_function_stack
pop: Callable[[], Any] = torch._C._pop_torch_function_stack
_HANDING = torch.overrides.handle_torch_function.__code__


class HiddenMode(TorchFunctionMode):
    """A mode that the program neither sees on the stack nor takes off it."""


def modes() -> list[Any]:
    """All modes that are on in this thread, the innermost last."""
    return [at(place) for place in range(size())]


@contextmanager
def hidden_modes() -> Iterator[None]:
    """Have the program's own questions for the stack answered as without us.

    torch's modules have their own names for these functions and go on with the whole stack.
    """
    answers: dict[str, Callable[..., Any]] = {
        "_len_torch_function_stack": lambda: len(_seen()),
        "_get_function_stack_at": _seen_at,
        "_pop_torch_function_stack": _pop_seen,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patched(torch._C, name, _replaced_by(answer)))
        for name in ("_len_torch_function_stack", "_get_function_stack_at"):
            stack.enter_context(patched(torch.overrides, name, _replaced_by(answers[name])))
        stack.enter_context(patched(torch.overrides, "_pop_mode", _replaced_by(_pop_seen)))
        stack.enter_context(patched(torch.overrides, "_pop_mode_temporarily", _replaced_by(_Popped)))
        yield


def _replaced_by(answer: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda _: answer


def _seen() -> list[Any]:
    return [mode for mode in modes() if not isinstance(mode, HiddenMode)]


def _seen_at(place: int, /) -> Any:
    seen = _seen()
    return seen[place] if place < len(seen) else at(size())  # refused as torch refuses it


class _Popped:
    """`_pop_mode_temporarily`, by which torch itself asks the innermost mode, one of ours too."""

    __slots__ = ("mode",)

    def __enter__(self) -> Any:
        self.mode = pop() if sys._getframe(1).f_code is _HANDING else _pop_seen()
        return self.mode

    def __exit__(self, *raised: Any) -> None:
        push(self.mode)


def _pop_seen() -> Any:
    aside: list[Any] = []
    while size() and isinstance(at(size() - 1), HiddenMode):
        aside.append(pop())
    try:
        return pop()
    finally:
        for mode in reversed(aside):
            push(mode)
