"""gradscope: which tensors get a gradient, which do not, why, and on which line.

    report = gradscope.explain(loss)
    gradscope.render(loss, "graph.png")
    with gradscope.observe(model=model, optimizer=optimizer) as seen: ...
    @gradscope.observe(steps=3)
    def training_step(batch): ...
    report = gradscope.confirm(step, steps=5, optimizer=optimizer)

Importing gradscope does not import torch; the first call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "GradscopeError",
    "GradscopeWarning",
    "Report",
    "__version__",
    "assert_frozen",
    "assert_learns",
    "assert_no_gradient",
    "check_batch",
    "confirm",
    "explain",
    "observe",
    "render",
]

if TYPE_CHECKING:
    from gradscope.errors import GradscopeError
    from gradscope.reports.report import Report
    from gradscope.shells.assertions import assert_frozen, assert_learns, assert_no_gradient
    from gradscope.shells.decorated import GradscopeWarning
    from gradscope.shells.library import check_batch, confirm, explain, render
    from gradscope.shells.observing import observe


def __getattr__(name: str) -> Any:
    if name == "observe":
        from gradscope.shells.observing import observe

        return observe
    if name == "GradscopeWarning":
        from gradscope.shells.decorated import GradscopeWarning

        return GradscopeWarning
    if name in ("check_batch", "confirm", "explain", "render"):
        from gradscope.shells import library

        return getattr(library, name)
    if name in ("assert_frozen", "assert_learns", "assert_no_gradient"):
        from gradscope.shells import assertions

        return getattr(assertions, name)
    if name == "Report":
        from gradscope.reports.report import Report

        return Report
    if name == "load_ipython_extension":
        from gradscope.shells.notebook import register

        return register
    if name == "GradscopeError":
        from gradscope.errors import GradscopeError

        return GradscopeError
    raise AttributeError(f"module 'gradscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
