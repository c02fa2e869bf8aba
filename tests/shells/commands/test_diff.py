"""`gradscope diff`."""

from __future__ import annotations

import json

from tests.workshop import Workshop

PROGRAM = """
import torch
from torch import nn

torch.manual_seed(0)
encoder, decoder = nn.Linear(3, 2), nn.Linear(2, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
for _ in range(5):
    z = encoder(torch.rand(8, 3)){cut}
    loss = decoder(z).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
ENCODER = ("encoder.weight", "encoder.bias")


def kept(workshop: Workshop, name: str, cut: str, *options: str) -> None:
    """Keep the run of a program, or its report."""
    workshop.write(PROGRAM.format(cut=cut))
    workshop.gradscope("explain", "--fail-on", "never", *(options or ("--save",)), name, "script.py")


def test_a_mend_and_a_regression(workshop: Workshop) -> None:
    """A mended finding is gone and its tensors learn now; the other way round it is new, and the exit code 1."""
    kept(workshop, "broken.json", ".detach()")
    kept(workshop, "mended.json", "")
    mended = workshop.gradscope("diff", "broken.json", "mended.json")
    assert mended.out.splitlines() == [
        "gradscope: broken.json -> mended.json, 1 finding gone, 0 findings new",
        "gone: error[detach] script.py:8: `encoder` never learns: its 2 parameters got no gradient in 5 steps",
        *(f"learns now: {name}" for name in ENCODER),
    ]
    assert mended.status == 0
    broken = workshop.gradscope("diff", "mended.json", "broken.json")
    assert "0 findings gone, 1 finding new" in broken.out
    assert [line for line in broken.out.splitlines() if "no longer" in line] == [
        f"learns no longer: {name}" for name in ENCODER
    ]
    assert broken.status == 1
    assert workshop.gradscope("diff", "--fail-on", "never", "mended.json", "broken.json").status == 0


def test_no_difference(workshop: Workshop) -> None:
    """Two runs of one program differ in nothing; a report in JSON does as well as a kept run."""
    kept(workshop, "run.json", ".detach()")
    kept(workshop, "report.json", ".detach()", "--format", "json", "-o")
    ended = workshop.gradscope("diff", "run.json", "report.json")
    assert ended.out == (
        "gradscope: run.json -> report.json, 0 findings gone, 0 findings new, 1 in both\nthe same tensors learn\n"
    )
    assert ended.status == 0


def test_json(workshop: Workshop) -> None:
    """`--format json` gives the same as data."""
    kept(workshop, "broken.json", ".detach()")
    kept(workshop, "mended.json", "")
    found = json.loads(workshop.gradscope("diff", "--format", "json", "broken.json", "mended.json").out)
    assert [finding["rule"] for finding in found["gone"]] == ["detach"]
    assert (found["new"], found["stays"], found["learns_now"]) == ([], 0, list(ENCODER))


def test_misuse_is_one_line(workshop: Workshop) -> None:
    """What is no run gets one line and exit code 2."""
    kept(workshop, "run.json", "")
    workshop.write("{}", "other.json")
    missing = workshop.gradscope("diff", "run.json", "nothing.json")
    other = workshop.gradscope("diff", "other.json", "run.json")
    for ended, words in ((missing, "no such file: nothing.json"), (other, "other.json is not a kept run")):
        assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", 1)
        assert words in ended.err
