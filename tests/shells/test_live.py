"""What is told while a script runs."""

from __future__ import annotations

import io
import itertools
import types

import pytest

from gradscope.probes.observation import Observation
from gradscope.probes.program.scripts import observe_program, program_of_script
from gradscope.shells import live
from gradscope.shells.lines import Lines
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


def watched(workshop: Workshop, stream: io.StringIO, steps: int, **options: tuple[str, ...]) -> str:
    """What is written while a program runs."""
    workshop.write(DETACHED.format(steps=steps))
    with Lines(stream) as lines:
        observe_program(program_of_script("script.py", ()), watch=Live(lines, **options).step)
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
    with Lines(stream) as lines:
        observe_program(program_of_script("script.py", ()), watch=Live(lines).step)
    told = stream.getvalue().splitlines()
    assert [line.split(" script.py")[0] for line in told] == [
        "gradscope: step 16: warning[unused-parameter]",
        "gradscope: step 64: no longer so: unused-parameter",
    ]


def test_ignored_rules_are_not_told(workshop: Workshop) -> None:
    """`--ignore` counts while the script runs as well."""
    assert watched(workshop, io.StringIO(), 40, ignore=("detach",)) == ""


def test_slow_steps_are_looked_at_by_the_clock(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose steps take half a minute is looked at after its second step, and told of after its third."""
    monkeypatch.setattr(live, "time", types.SimpleNamespace(monotonic=itertools.count(0, 30.0).__next__))
    assert watched(workshop, io.StringIO(), 5).startswith("gradscope: step 3: error[detach] script.py:7: ")


def test_the_script_ends_at_a_finding_that_is_sure(workshop: Workshop) -> None:
    """`until` ends the script once a finding is told, also where nothing is written."""
    workshop.write(DETACHED.format(steps=70))
    watch = Live(None, until=lambda finding: finding.severity == "error")
    run = observe_program(program_of_script("script.py", ()), watch=watch.step).run
    assert (run.step_count, run.ended, run.failures) == (16, "finding", ())


def test_a_closed_stream_stops_the_telling_and_not_the_script(workshop: Workshop) -> None:
    """Where nobody can read any more, the script runs on."""
    stream = io.StringIO()
    workshop.write(DETACHED.format(steps=20))
    with Lines(stream) as lines:
        stream.close()
        outcome = observe_program(program_of_script("script.py", ()), watch=Live(lines).step)
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
