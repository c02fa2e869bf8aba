"""The closure of an optimizer's step: code of the program's that torch's optimizer calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gradscope.probes.program.tracebacks import hidden


def watched_closure(
    closure: Callable[..., Any], calling: Callable[[], None], called: Callable[[], None]
) -> Callable[..., Any]:
    """The closure, with `calling` before each of its calls and `called` after it.

    Its frame also tells call sites that what runs within is not the optimizer's doing (see `CallSites.find`): trainers
    run a whole step inside a closure.
    """

    @functools.wraps(closure)
    def watched(*args: Any, **kwargs: Any) -> Any:
        calling()
        with hidden:
            result = closure(*args, **kwargs)
        called()
        return result

    return watched
