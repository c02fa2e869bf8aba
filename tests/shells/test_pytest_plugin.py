"""The pytest plugin, by running pytest on small suites."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

# Installed with its entry point the plugin is there already, and pytest refuses to have it twice.
_LOAD = () if entry_points(group="pytest11", name="gradscope") else ("-p", "gradscope.shells.pytest_plugin")

# The hunt for unraisable exceptions collects garbage five times at the end, which takes seconds where torch is loaded.
_QUICK = ("-p", "no:xdist", "-p", "no:unraisableexception", "-p", "no:cacheprovider")

TRAIN = """
import asyncio
import unittest

import pytest
import torch
from torch import nn


def train(cut=True, steps=3):
    encoder, decoder = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
    for _ in range(steps):
        z = encoder(torch.rand(4, 3))
        z = z.detach() if cut else z
        optimizer.zero_grad()
        decoder(z).square().mean().backward()
        optimizer.step()


"""


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """Import what the suites will: pytester takes out again what they import first, and torch cannot come twice."""
    for name in ("torch._dynamo", "gradscope.shells.pytest_plugin"):
        importlib.import_module(name)


def ran(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    """How pytest goes on a file of tests that may call `train`."""
    pytester.makepyfile(test_it=TRAIN + source)
    return pytester.runpytest_inprocess(*_LOAD, *_QUICK, "--strict-markers", "-Werror", *options)


def test_the_marker_fails_a_test_with_the_explanation(pytester: pytest.Pytester) -> None:
    """The failure is the finding with its caret; the rest of the report is a section of the test's."""
    result = ran(
        pytester,
        """
@pytest.mark.gradscope
@pytest.mark.parametrize("cut", [True, False])
def test_training(cut):
    train(cut)


def test_unmarked():
    train()
""",
    )
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(
        [
            "*test_training?True?*",
            "error[[]detach[]]: `encoder` never learns: its 2 parameters got no gradient in 3 steps",
            "  --> test_it.py:14:14",
            "* z = z.detach() if cut else z",
            "*^^^^^^^^^ the path to the loss is cut here",
            "*- gradscope -*",
            "gradscope: test_it.py::test_training[[]True[]], 3 steps,*1 finding",
            "encoder.weight * 0/3 *",
            "FAILED test_it.py::test_training?True? - *error?detach?: `encoder`*",
        ]
    )
    assert str(result.stdout).count("the path to the loss is cut here") == 1
    assert "entries are hidden" not in str(result.stdout)


def test_the_level_that_fails_and_the_rules_are_chosen(pytester: pytest.Pytester) -> None:
    """`fail_on`, `select` and `ignore` of the marker nearest to the test count, then those of the command line."""
    source = """
def piling():
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    for _ in range(4):
        w.square().sum().backward()
        optimizer.step()


@pytest.mark.gradscope(ignore=["detach"])
def test_ignored():
    train()


@pytest.mark.gradscope(select="no-grad")
def test_not_selected():
    train()


@pytest.mark.gradscope(fail_on="never")
def test_never():
    train()


@pytest.mark.gradscope(fail_on="warning")
class TestOfWarnings:
    def test_warning(self):
        piling()

    @pytest.mark.gradscope(fail_on="error")
    def test_nearer(self):
        piling()


@pytest.mark.gradscope
def test_default():
    piling()
"""
    result = ran(pytester, source, "-rfP")
    result.assert_outcomes(failed=1, passed=5)
    result.stdout.fnmatch_lines(["FAILED test_it.py::TestOfWarnings::test_warning - *warning?missing-*"])
    result.stdout.fnmatch_lines(["*_ test_never _*", "*- gradscope -*", "error[[]detach[]]: *"])
    ran(pytester, source, "--gradscope-fail-on=warning").assert_outcomes(failed=2, passed=4)


def test_a_test_that_fails_by_itself_is_explained(pytester: pytest.Pytester) -> None:
    """The report is a section beside the test's own failure, whose traceback has no frame of ours."""
    result = ran(
        pytester,
        """
@pytest.mark.gradscope
def test_assertion():
    train()
    assert 1 == 2


def twice():
    loss = torch.ones(2, requires_grad=True).exp().sum()
    loss.backward()
    loss.backward()


@pytest.mark.gradscope
def test_error():
    twice()


@pytest.mark.gradscope
class TestUnit(unittest.TestCase):
    def test_unit(self):
        twice()


@pytest.mark.gradscope
def test_no_torch():
    raise LookupError("mine")
""",
    )
    result.assert_outcomes(failed=4)
    text = str(result.stdout)
    assert "assert 1 == 2" in text
    assert text.count("error[detach]") == 1
    assert text.count("error[freed-graph]") == 2
    assert text.count("- gradscope -") == 3
    assert "recorder.py" not in text
    assert "probes" not in text
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_no_torch - LookupError: mine"])


def test_outcomes_that_are_no_failures_stay(pytester: pytest.Pytester) -> None:
    """Skips, expected failures and errors that a test expects are what they are without us."""
    result = ran(
        pytester,
        """
@pytest.mark.gradscope
def test_skip():
    train()
    pytest.skip("no")


@pytest.mark.gradscope
@pytest.mark.xfail(strict=True)
def test_xfail():
    train()


@pytest.mark.gradscope
def test_expected():
    with pytest.raises(RuntimeError, match="second time"):
        loss = torch.ones(2, requires_grad=True).exp().sum()
        loss.backward()
        loss.backward()


@pytest.mark.gradscope
class TestUnit(unittest.TestCase):
    def test_skip(self):
        train()
        self.skipTest("no")

    @unittest.expectedFailure
    def test_expected_failure(self):
        raise LookupError
""",
    )
    result.assert_outcomes(skipped=2, xfailed=2, passed=1)
    assert "detach" not in str(result.stdout)


def test_ways_to_run_a_body(pytester: pytest.Pytester) -> None:
    """Coroutines, run inside or by a plugin, methods and unittest's test cases are observed alike."""
    pytester.makeconftest(
        """
import asyncio
import inspect
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        asyncio.run(pyfuncitem.obj())
        return True
"""
    )
    result = ran(
        pytester,
        """
pytestmark = pytest.mark.gradscope


async def main(cut):
    await asyncio.sleep(0)
    train(cut)


def test_run_inside():
    asyncio.run(main(True))


async def test_run_by_a_plugin():
    await main(True)


async def test_run_by_a_plugin_and_fine():
    await main(False)


class TestMethods:
    def setup_method(self):
        self.net = nn.Linear(2, 1)

    def test_method(self):
        train()


class TestUnit(unittest.TestCase):
    def setUp(self):
        self.net = nn.Linear(2, 1)

    def test_unit(self):
        train()

    def test_fine(self):
        train(False)
""",
    )
    result.assert_outcomes(failed=4, passed=2)
    assert str(result.stdout).count("the path to the loss is cut here") == 4


def test_workers_send_the_explanation(pytester: pytest.Pytester) -> None:
    """With xdist, sections and explanations come from the workers, for each set of parameters."""
    pytester.makepyfile(
        test_it=TRAIN
        + """
@pytest.mark.gradscope
@pytest.mark.parametrize("cut", [True, False])
def test_training(cut):
    train(cut)
"""
    )
    result = pytester.runpytest_subprocess(*_LOAD, "--strict-markers", "-n1")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*the path to the loss is cut here", "*- gradscope -*", "encoder.weight * 0/3 *"])


def test_the_fixture_observes_and_asserts(pytester: pytest.Pytester) -> None:
    """The fixture has the report so far, the assertions, and what else the package has; it observes as the marker."""
    result = ran(
        pytester,
        """
@pytest.fixture
def net():
    return nn.Linear(3, 1)


@pytest.fixture
def optimizer(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


def test_fine(gradscope, net, optimizer):
    gradscope.assert_learns(net, net(torch.rand(4, 3)).mean())
    net(torch.rand(4, 3)).mean().backward()
    optimizer.step()
    report = gradscope.report()
    assert report.run.step_count == 1
    assert {row.name: row.optimizer for row in report.tensors if row.role == "parameter"} == {
        "net.weight": "SGD",
        "net.bias": "SGD",
    }
    with gradscope.observe() as seen:
        net(torch.rand(4, 3)).mean().backward()
    assert seen.report().run.backward_count == 1
    assert gradscope.report().run.backward_count == 2


def test_cut(gradscope):
    train()


def test_assertion(gradscope, net):
    gradscope.assert_learns(net, net(torch.rand(4, 3)).detach().mean())


@pytest.fixture
def early(gradscope):
    with pytest.raises(RuntimeError, match="begins with the test's body"):
        gradscope.report()


def test_early(early):
    pass
""",
    )
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(
        [
            "E*AssertionError: 2 of 2 tensors got no gradient from the loss: *",
            "E*^^^^^^^^^",
            "E*the path to the loss is cut here",
        ]
    )


def test_the_option_observes_every_test(pytester: pytest.Pytester) -> None:
    """`--gradscope` observes tests without a marker; those that do nothing with torch show nothing."""
    result = ran(
        pytester,
        """
def test_training():
    train()


def test_no_torch():
    assert 1 == 2
""",
        "--gradscope",
    )
    result.assert_outcomes(failed=2)
    assert str(result.stdout).count("- gradscope -") == 1
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_training - *detach*"])


def test_a_wrong_marker_is_an_error(pytester: pytest.Pytester) -> None:
    """What the marker cannot mean is an error of the test, in one line."""
    wrong = {
        'fail_on="errors"': "fail_on must be one of error, warning, info, never, not 'errors'",
        'ignore=["detatch"]': "there is no rule 'detatch': did you mean detach?",
        "level=3": "there is no argument level: there are fail_on, select and ignore",
        '"warning"': "its arguments are fail_on=, select= and ignore=",
        "ignore=3": "'int' object is not iterable",
    }
    marked = [
        f"@pytest.mark.gradscope({arguments})\ndef test_{place}():\n    pass\n" for place, arguments in enumerate(wrong)
    ]
    result = ran(pytester, "\n\n".join(marked))
    result.assert_outcomes(errors=len(wrong))
    for place, message in enumerate(wrong.values()):
        assert f"gradscope marker of test_it.py::test_{place}: {message}\n" in str(result.stdout)


def test_results_are_those_of_the_bare_test(pytester: pytest.Pytester) -> None:
    """Random numbers, grad mode and printed text are the same in a marked test."""
    result = ran(
        pytester,
        """
seen = []


def body():
    torch.manual_seed(3)
    net = nn.Linear(3, 1)
    net(torch.rand(4, 3)).mean().backward()
    seen.append((net.weight.grad.tolist(), torch.rand(3).tolist(), torch.is_grad_enabled()))


def test_bare():
    body()


@pytest.mark.gradscope
def test_marked(capsys):
    body()
    assert capsys.readouterr() == ("", "")


def test_same():
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert torch.overrides._len_torch_function_stack() == 0
""",
    )
    result.assert_outcomes(passed=3)


def test_pytest_starts_without_torch(pytester: pytest.Pytester) -> None:
    """Neither the plugin nor a suite without marked tests imports torch."""
    pytester.makepyfile(
        """
        import sys

        def test_none():
            assert "torch" not in sys.modules
            assert "gradscope.shells.pytest_plugin" in sys.modules
        """
    )
    pytester.runpytest_subprocess(*_LOAD, "-p", "no:xdist", "-p", "no:hypothesispytest").assert_outcomes(passed=1)
    code = "import sys, gradscope.shells.pytest_plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_marker_is_listed(pytester: pytest.Pytester) -> None:
    """`pytest --markers` and `--fixtures` say what there is."""
    pytester.runpytest_inprocess(*_LOAD, *_QUICK, "--markers").stdout.fnmatch_lines(
        ['@pytest.mark.gradscope(fail_on="error", select=*'],
    )
    pytester.runpytest_inprocess(*_LOAD, *_QUICK, "--fixtures").stdout.fnmatch_lines(["gradscope *"])


@pytest.mark.parametrize("options", [(), ("--gradscope",)], ids=["marker", "option"])
def test_switched_off(options: tuple[str, ...], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With GRADSCOPE=0 nothing is observed and no finding fails a test; assertions and wrong markers do."""
    monkeypatch.setenv("GRADSCOPE", "0")
    result = ran(
        pytester,
        """
from gradscope.probes.observation import Observation


@pytest.mark.gradscope(fail_on="info")
def test_training():
    train()
    assert not Observation.is_running()


def test_fixture(gradscope):
    train()
    assert not Observation.is_running()
    report = gradscope.report()
    assert report.ok and not report.findings and report.run.step_count == 0


def test_assertions(gradscope):
    w = torch.ones(2, requires_grad=True)
    gradscope.assert_learns(w, w.sum())
    with pytest.raises(AssertionError, match="got no gradient"):
        gradscope.assert_learns(w, w.detach().sum() + torch.ones((), requires_grad=True))
    raise ValueError("its own")


@pytest.mark.gradscope(fail_on="loud")
def test_wrong():
    pass
""",
        *options,
    )
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.no_fnmatch_line("*detach*never learns*")
    result.stdout.no_fnmatch_line("*- gradscope -*")
    result.stdout.fnmatch_lines(["*ValueError: its own*"])


def test_names_steer_no_terminal_and_no_log(pytester: pytest.Pytester) -> None:
    """The failure, the section and the summary of a test hold names as they are shown, a line each."""
    result = ran(
        pytester,
        """
        @pytest.mark.gradscope
        def test_names():
            net = nn.Module()
            net.add_module("zq\\x1b[2J\\n::error::x\\u202e", nn.Linear(3, 3))
            child, = net.children()
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            out = torch.zeros(3, requires_grad=True)
            for _ in range(3):
                (child(torch.rand(3)).detach() * out).sum().backward()
                optimizer.step()
        """.replace("\n        ", "\n"),
        "-rA",
    )
    result.assert_outcomes(failed=1)
    output = result.stdout.str()
    assert r"zq\x1b[2J\n\x3a:error::x\u202e" in output
    assert output.replace("\n", "").isprintable()
    assert not any(line.lstrip().startswith("::") for line in output.splitlines())
