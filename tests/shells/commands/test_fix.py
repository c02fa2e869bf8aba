"""`gradscope fix`: mends that are tried, and written where they help."""

from __future__ import annotations

import json

import pytest

from tests.workshop import Workshop

MODEL = """\
import torch
from torch import nn


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x):
        z = self.encoder(x).detach()
        return self.decoder(z)
"""
SCRIPT = """\
import sys

import torch
from pair import Pair

torch.manual_seed(0)
print("arguments", sys.argv[1:])
model = Pair()
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
for _ in range(5):
    x = torch.rand(8, 4)
    loss = (model(x) - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
HEALTHY = MODEL.replace(".detach()", "")


def test_a_mend_is_tried_in_another_file_and_then_written(
    workshop: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    """The files stay as they are while a mend is tried, and `--apply` writes what helped, and nothing else."""
    (workshop.folder / "pair.py").write_text(MODEL)
    (workshop.folder / "train.py").write_text(SCRIPT)
    ended = workshop.gradscope("fix", "train.py", "--lr", "3")
    assert (ended.status, (workshop.folder / "pair.py").read_text()) == (0, MODEL)
    assert capfd.readouterr().out == "arguments ['--lr', '3']\n"  # the trial's own output is not shown
    assert "train.py runs once as it is, and once more for each mend" in ended.err
    assert "11 -         z = self.encoder(x).detach()\n11 +         z = self.encoder(x)\n" in ended.out
    assert "tried: then encoder.weight, encoder.bias get a gradient in 5 of 5 steps, loss" in ended.out
    assert "1 of 1 findings mended" in ended.out
    assert "add --apply" in ended.out
    ended = workshop.gradscope("fix", "--apply", "--format", "json", "train.py")
    fixed = json.loads(ended.out)
    assert (ended.status, (workshop.folder / "pair.py").read_text()) == (0, HEALTHY)
    assert (fixed["schema"], fixed["files"], fixed["applied"]) == ("gradscope.fix/1", ["pair.py"], True)
    assert fixed["findings"][0]["help"][0]["tried"]["outcome"] == "mended"
    assert "-        z = self.encoder(x).detach()" in fixed["diff"]
    assert not list(workshop.folder.glob(".gradscope-*"))


def test_nothing_to_mend_and_what_no_edit_can(workshop: Workshop) -> None:
    """A healthy script exits 0; a finding without an edit is told, and 1 says that something is left."""
    healthy = SCRIPT.replace("from pair import Pair", HEALTHY.partition("\n")[2])
    (workshop.folder / "healthy.py").write_text(healthy)
    ended = workshop.gradscope("fix", "healthy.py")
    assert (ended.status, ended.out.splitlines()[-1]) == (0, "nothing to mend")
    chosen = healthy.replace("z = self.encoder(x)\n", "z = (self.encoder(x) > 0).float()\n")
    (workshop.folder / "chosen.py").write_text(chosen)
    ended = workshop.gradscope("fix", "chosen.py")
    assert ended.status == 1
    assert "1 left: " in ended.out


def test_misuse_is_one_line(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """A rule or a script that there is not ends with 2 before or instead of a run."""
    for arguments, message in (
        (("fix", "--rule", "detatch", "x.py"), "there is no rule 'detatch': did you mean detach?"),
        (("fix", "gone.py"), "no such file: gone.py"),
    ):
        ended = workshop.gradscope(*arguments)
        assert (ended.status, ended.out) == (2, "")
        said = ended.err + capfd.readouterr().err
        assert message in said
        assert "Traceback" not in said


def test_explain_tries_the_first_finding(workshop: Workshop) -> None:
    """`--try` tells what came of the mend in the report itself, in every format, and changes nothing."""
    (workshop.folder / "train.py").write_text(SCRIPT.replace("from pair import Pair", MODEL.partition("\n")[2]))
    ended = workshop.gradscope("explain", "--try", "-o", "report.json", "train.py")
    report = json.loads((workshop.folder / "report.json").read_text())
    (help_,) = (help_ for help_ in report["findings"][0]["help"] if help_["edits"])
    assert (ended.status, help_["tried"]["outcome"]) == (1, "mended")
    assert "5 of 5 steps" in help_["tried"]["message"]
    assert ".detach()" in (workshop.folder / "train.py").read_text()
