"""The pytest plugin: the marker and the fixture `gradscope`, and `--gradscope`.

    @pytest.mark.gradscope(fail_on="warning", ignore=["frozen-parameter"])
    def test_training(): ...

A marked test is observed from its first line to its last, and fails where there is a finding. torch is imported with
the first test that is observed, and where none is, nothing happens. With GRADSCOPE=0 in the environment none is.

PYTEST_DONT_REWRITE: there is nothing to rewrite here, and pytest would warn where the module is imported before it.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import pytest

from gradscope.errors import GradscopeError
from gradscope.shells.switch import is_off

if TYPE_CHECKING:
    from gradscope.graph.facts import Ending, Severity
    from gradscope.probes.observation import Observation
    from gradscope.reports.report import Report

_LEVELS = ("error", "warning", "info", "never")
_MARKER = (
    'gradscope(fail_on="error", select=[], ignore=[]): observe what torch does in this test, and fail it where a '
    "gradient is lost. fail_on is the severity that fails it: error, warning, info or never."
)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was asked for: the severity that fails a test, and the rules."""

    fail_on: str
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


_WISH = pytest.StashKey[_Wish]()
_OBSERVATION = pytest.StashKey["Observation"]()
_SECTION = pytest.StashKey[str]()


class Watched:
    """What the fixture `gradscope` gives: the report so far, and all that the package has, whose name it takes.

    `gradscope.report()` is the report on what the test has done by then.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def report(self) -> Report:
        """The report on what the test has done so far, an empty one where GRADSCOPE=0 is set.

        Raises RuntimeError while its fixtures are made.
        """
        from gradscope.reports.report import Report

        observation = _observation(self._item) if is_off() else self._item.stash.get(_OBSERVATION, None)
        if observation is None:
            raise RuntimeError("the observation begins with the test's body: ask for the report there")
        wish = self._item.stash[_WISH]
        return Report.of(observation.run(script=self._item.nodeid, confirm=False), wish.select, wish.ignore)

    def __getattr__(self, name: str) -> Any:
        import gradscope

        return getattr(gradscope, name)


@pytest.fixture(name="gradscope")
def _gradscope(request: pytest.FixtureRequest) -> Watched:
    """Observe what torch does in this test, as the marker gradscope does; gives assertions and the report so far."""
    return Watched(request.node)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("gradscope", "gradients")
    group.addoption("--gradscope", action="store_true", help="observe every test, and fail it where a gradient is lost")
    group.addoption(
        "--gradscope-fail-on",
        choices=_LEVELS,
        default="error",
        help="severity that fails a test whose marker says nothing else (default: error)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Read what is wished for, before any fixture is made; a marker that asks for what there is not is an error."""
    marker = item.get_closest_marker("gradscope")
    fixtures: Iterable[str] = getattr(item, "fixturenames", ())
    everything = item.config.getoption("gradscope") and isinstance(item, pytest.Function)
    if marker is None and not everything and "gradscope" not in fixtures:
        return
    try:
        item.stash[_WISH] = _wish(item.config.getoption("gradscope_fail_on"), marker)
        if not is_off():
            import torch  # noqa: F401 - here, lest its import is a part of what is observed
    except (GradscopeError, TypeError, ValueError) as error:
        raise pytest.UsageError(f"gradscope marker of {item.nodeid}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise pytest.UsageError("gradscope: there is no torch in this environment") from None


def _wish(fail_on: str, marker: pytest.Mark | None) -> _Wish:
    from gradscope.rules import chosen

    given = dict(marker.kwargs) if marker is not None else {}
    if marker is not None and marker.args:
        raise TypeError("its arguments are fail_on=, select= and ignore=")
    wish = _Wish(given.pop("fail_on", fail_on), _names(given.pop("select", ())), _names(given.pop("ignore", ())))
    if given:
        raise TypeError(f"there is no argument {next(iter(given))}: there are fail_on, select and ignore")
    if wish.fail_on not in _LEVELS:
        raise ValueError(f"fail_on must be one of {', '.join(_LEVELS)}, not {wish.fail_on!r}")
    chosen(wish.select, wish.ignore)
    return wish


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Observe the test's body; a finding fails a test that would have passed."""
    if _WISH not in item.stash or is_off():
        return (yield)
    observation = item.stash[_OBSERVATION] = _observation(item)
    observation.start()
    error: BaseException | None = None
    try:
        return (yield)
    except BaseException as raised:
        error = raised
        raise
    finally:
        observation.stop()
        item.stash[_SECTION], failure = _judged(item, observation, error)
        del item.stash[_OBSERVATION]
        if failure and error is None:
            pytest.fail(failure, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The explanation is a section of the report on the test."""
    report = yield
    if call.when == "call" and item.stash.get(_SECTION, ""):
        report.sections.append(("gradscope", item.stash[_SECTION]))
        del item.stash[_SECTION]
    return report


def _observation(item: pytest.Item) -> Observation:
    """An observation that knows the test's fixtures and what its module and instance hold."""
    import torch

    from gradscope.probes.observation import Observation

    given = dict(getattr(item, "funcargs", {}))
    held = getattr(getattr(item, "instance", None), "__dict__", {})
    module = getattr(getattr(item, "module", None), "__dict__", {})
    namespace: Mapping[str, Any] = ChainMap(given, held, module)
    observation = Observation(
        namespace, own=(os.path.realpath(item.path),), folder=str(item.config.invocation_params.dir)
    )
    for value in namespace.values():
        if isinstance(value, torch.optim.Optimizer):
            observation.add_optimizer(value)
    return observation


def _judged(item: pytest.Item, observation: Observation, error: BaseException | None) -> tuple[str, str]:
    """The section for the test's report, and why the test fails, each empty where there is nothing to say."""
    from gradscope.probes.program.scripts import crash_of
    from gradscope.probes.program.tracebacks import clean
    from gradscope.reports.escaping import shown
    from gradscope.reports.report import Report
    from gradscope.reports.text import finding_text, text

    error = error or _error_of_unittest(item)
    if isinstance(error, (pytest.skip.Exception, pytest.exit.Exception, KeyboardInterrupt)):
        return "", ""
    wish = item.stash[_WISH]
    try:
        if error is not None:
            clean(error)
        crash = crash_of(error, observation) if isinstance(error, Exception) else None
        ended: Ending = "exception" if crash is not None else "end"
        run = observation.run(ended, item.nodeid, crash=crash, confirm=False)
        report = Report.of(run, wish.select, wish.ignore)
        guilty = report.at_least(_severity(wish.fail_on)) if wish.fail_on != "never" else ()
        if error is not None:
            return (str(report) if report.findings or report.tensors else ""), ""
        rest = tuple(finding for finding in report.findings if finding not in guilty)
        section = text(run, rest, report.document) if report.findings else ""
        return section, "\n\n".join(finding_text(finding, run.sources) for finding in guilty)
    except Exception as failure:
        return f"gradscope: the report failed: {shown(f'{type(failure).__name__}: {failure}')}\n", ""


def _severity(level: str) -> Severity:
    from gradscope.graph.facts import Severity

    return next(severity for severity in get_args(Severity) if severity == level)


def _error_of_unittest(item: pytest.Item) -> BaseException | None:
    """What a test of unittest raised, which pytest's item keeps; with the traceback that it has without us."""
    from gradscope.probes.program.tracebacks import clean

    kept = getattr(item, "_excinfo", None)
    if not kept:
        return None
    for found in kept:
        clean(found.value)
    kept[:] = [pytest.ExceptionInfo.from_exception(found.value) for found in kept]
    error: BaseException = kept[0].value
    return error
