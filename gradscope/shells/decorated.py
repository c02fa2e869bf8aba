"""What a decorated training step is: called as before, and with a report."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import torch

import gradscope
from gradscope.graph.facts import Run
from gradscope.reports.report import Report

P = ParamSpec("P")
Rest = ParamSpec("Rest")
Result_co = TypeVar("Result_co", covariant=True)
Owner = TypeVar("Owner")
_OURS = (str(Path(gradscope.__file__).parent) + os.sep, str(Path(torch.__file__).parent) + os.sep)
_BETWEEN = ("contextlib.py", "functools.py")


class GradscopeWarning(UserWarning):
    """What a decorated training step is told of its findings by `on_finding="warn"`."""


class Observed(Protocol[P, Result_co]):
    """A function under observation, with the arguments and the result that it has; also as a method."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result_co:
        """Call it."""

    def report(self) -> Report:
        """The report on the calls that were looked at last."""

    @overload
    def __get__(self, instance: None, owner: Any = None, /) -> Observed[P, Result_co]: ...

    @overload
    def __get__(
        self: Observed[Concatenate[Owner, Rest], Result_co], instance: Owner, owner: Any = None, /
    ) -> Observed[Rest, Result_co]: ...


def off(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, which has a report all the same: it says that nothing is observed."""
    function.report = _report_of_nothing  # type: ignore[attr-defined]
    return function


def _report_of_nothing() -> Report:
    said = "nothing was observed: GRADSCOPE=0 in the environment switches gradscope off"
    return Report.of(Run(gradscope.__version__, torch.__version__, None, (), failures=(said,)))


def warn_user(message: str, function: Callable[..., Any] | None) -> None:
    """Warn at the innermost line that is neither ours nor torch's; at the end of a program there is only `function`."""
    frame = sys._getframe(1)
    level = 2
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS) and os.path.basename(file) not in _BETWEEN:
            warnings.warn(message, GradscopeWarning, stacklevel=level)
            return
        frame, level = frame.f_back, level + 1
    code = getattr(function, "__code__", None)
    if code is not None and frame.f_code.co_filename.startswith(_OURS):
        warnings.warn_explicit(message, GradscopeWarning, code.co_filename, code.co_firstlineno)
    else:
        warnings.warn(message, GradscopeWarning, stacklevel=level)
