"""What is told while a script runs."""

from __future__ import annotations

import io
import itertools
import types

import pytest

from gradscope.probes.observation import Observation
from gradscope.probes.program.scripts import observe_program, program_of_script
from gradscope.shells import live
from gradscope.shells.live import Live
from tests.workshop import Workshop

DETACHED = """
import torch
from torch import nn

encoder, decoder = nn.Linear(3, 2), nn.Linear(2, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
for _ in range({steps}):
    loss = decoder(encoder(torch.rand(8, 3)).detach()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("end of the script")
"""


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """As a terminal says."""
        return True


def watched(workshop: Workshop, stream: io.StringIO, steps: int, **options: tuple[str, ...]) -> str:
    """What is written while a program runs."""
    workshop.write(DETACHED.format(steps=steps))
    watch = Live(stream, **options)
    observe_program(program_of_script("script.py", ()), watch=watch.step)
    watch.end()
    return stream.getvalue()


def test_a_finding_is_told_once(workshop: Workshop) -> None:
    """A finding that two looks have found is told on a line of its own, and never again."""
    told = watched(workshop, io.StringIO(), 70)
    assert told == (
        "gradscope: step 16: error[detach] script.py:7: `encoder` never learns: its 2 parameters got no gradient "
        "in 16 steps\n"
    )


def test_a_short_run_tells_nothing(workshop: Workshop) -> None:
    """What only one look has seen is not sure."""
    assert watched(workshop, io.StringIO(), 10) == ""


def test_what_a_later_phase_proves_wrong_is_taken_back(workshop: Workshop) -> None:
    """A head that is trained only after 40 steps was unused at step 16, and is not at the end."""
    workshop.write(
        """
        import torch
        from torch import nn

        body, head = nn.Linear(3, 2), nn.Linear(2, 1)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
        for step in range(70):
            hidden = body(torch.rand(8, 3))
            loss = hidden.square().mean() if step < 40 else head(hidden).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """
    )
    stream = io.StringIO()
    observe_program(program_of_script("script.py", ()), watch=Live(stream).step)
    told = stream.getvalue().splitlines()
    assert [line.split(" script.py")[0] for line in told] == [
        "gradscope: step 16: warning[unused-parameter]",
        "gradscope: step 64: no longer so: unused-parameter",
    ]


def test_ignored_rules_are_not_told(workshop: Workshop) -> None:
    """`--ignore` counts while the script runs as well."""
    assert watched(workshop, io.StringIO(), 40, ignore=("detach",)) == ""


def test_progress_is_for_terminals(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run shows a line of progress on a terminal only, and takes it away at its end."""
    monkeypatch.setattr(live, "time", types.SimpleNamespace(monotonic=itertools.count(0, 0.1).__next__))
    monkeypatch.setattr(live, "_SLOW", 0.0)
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    assert watched(workshop, io.StringIO(), 3) == ""
    drawn = watched(workshop, Terminal(), 3)
    assert "gradscope: 3 steps, 0 findings, 0 s\r" in drawn
    assert drawn.endswith("\r\x1b[K")


def test_a_closed_stream_stops_the_telling_and_not_the_script(workshop: Workshop) -> None:
    """Where nobody can read any more, the script runs on."""
    stream = io.StringIO()
    stream.close()
    closed = Live(io.StringIO())
    closed.stream = stream
    workshop.write(DETACHED.format(steps=20))
    outcome = observe_program(program_of_script("script.py", ()), watch=closed.step)
    assert (outcome.error, outcome.run.step_count, outcome.run.failures) == (None, 20, ())


def test_a_failing_look_costs_one_line(workshop: Workshop) -> None:
    """What fails in the telling is a line of the report."""

    def fail(observation: Observation) -> None:
        raise ValueError(f"after step {observation.steps_so_far}")

    workshop.write(DETACHED.format(steps=3))
    outcome = observe_program(program_of_script("script.py", ()), watch=fail)
    assert outcome.run.step_count == 3
    assert outcome.run.failures == tuple(f"optimizer probe failed: ValueError: after step {step}" for step in (1, 2, 3))


def test_the_command_tells_on_standard_error(workshop: Workshop) -> None:
    """`gradscope explain` tells on standard error and reports on standard output after the script's own."""
    workshop.write(DETACHED.format(steps=20))
    ended = workshop.gradscope("explain", "script.py")
    assert ended.err.startswith("gradscope: step 16: error[detach] script.py:7: ")
    assert ended.out.startswith("end of the script\nerror[detach]: ")
