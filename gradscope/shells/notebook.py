"""`%load_ext gradscope` in a notebook: `%%gradscope` observes the cell below it and shows the report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import torch

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Ending
from gradscope.probes.observation import Observation
from gradscope.probes.program.scripts import crash_of
from gradscope.probes.program.tracebacks import clean
from gradscope.reports.report import Report
from gradscope.rules import chosen

_USAGE = "usage: %%gradscope [--select RULE[,RULE]] [--ignore RULE[,RULE]]"


class Misused(GradscopeError):
    """The line of `%%gradscope` cannot be understood."""


def register(shell: Any) -> None:
    """Give a running IPython the cell magic `%%gradscope`."""

    def gradscope(line: str, cell: str) -> Report | None:
        """Observe this cell, then show which tensors got a gradient, which did not, why, and on which line."""
        __tracebackhide__ = True
        return observe_cell(shell, line, cell)

    shell.register_magic_function(gradscope, magic_kind="cell")


def observe_cell(shell: Any, line: str, cell: str) -> Report | None:
    """Run a cell under observation.

    An exception of the cell's comes out of here, after the report, with the traceback that it has without us.
    """
    __tracebackhide__ = True
    select, ignore = _options(line)
    chosen(select, ignore)
    observation = Observation(shell.user_ns)
    number = len(shell.user_ns.get("In", ())) - 1
    observation.tape.sites.titles = _titles(shell, number)
    for value in list(shell.user_ns.values()):
        if isinstance(value, torch.optim.Optimizer):
            observation.add_optimizer(value)
    before = shell.CustomTB, shell.custom_exceptions
    # The traceback is shown last, by the shell, when it has been put right.
    shell.set_custom_exc((Exception,), lambda *_, **__: [])
    observation.start()
    try:
        # A line in place of the magic's, so that lines have the numbers that the user sees.
        result = shell.run_cell(f"# %%gradscope\n{cell}")
    finally:
        observation.stop()
        shell.CustomTB, shell.custom_exceptions = before
    if result.error_before_exec is not None:
        return None
    error = result.error_in_exec
    if error is not None:
        clean(error)
    crash = crash_of(error, observation) if isinstance(error, Exception) else None
    ended: Ending = "end" if error is None else "exception" if crash is not None else "interrupt"
    report = Report.of(observation.run(ended, f"Cell In[{number}]", crash=crash), select, ignore)
    if crash is None:
        return report
    shell.display_pub.publish(report._repr_mimebundle_())
    _show_as_is(shell, error)
    raise error


def _options(line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {"--select": (), "--ignore": ()}
    words = iter(shlex.split(line))
    for word in words:
        option, _, value = word.partition("=")
        value = value or next(words, "")
        if option not in found or not value:
            raise Misused(_USAGE)
        found[option] += tuple(name.strip() for name in value.split(",") if name.strip())
    return found["--select"], found["--ignore"]


def _titles(shell: Any, number: int) -> Callable[[str], str | None]:
    """How the notebook calls its cells: `Cell In[3]`. What runs inside of a cell bears the number of the next one."""
    inner = f"In[{shell.execution_count}]"

    def title(file: str) -> str | None:
        named = shell.compile.format_code_name(file)
        if not named:
            return None
        return f"Cell In[{number}]" if named[1] == inner else " ".join(named)

    return title


def _show_as_is(shell: Any, error: BaseException) -> None:
    """Have the shell show an exception from its cell on, without the frames through which it came here."""
    lines = shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__, tb_offset=1)
    error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
