"""Notebooks, executed by a real kernel."""

from __future__ import annotations

import os
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENT

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[dev]'")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[dev]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[dev]'")

SETUP = """
import torch
from torch import nn
torch.manual_seed(0)
encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
"""
TRAIN = """
for _ in range(3):
    x = torch.rand(8, 4)
    loss = nn.functional.mse_loss(decoder(encoder(x).detach()), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def executed(*cells: str, folder: Path) -> list[Any]:
    """The outputs of each cell; a cell that raises ends the notebook."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = nbclient.NotebookClient(notebook, **PATIENT, resources={"metadata": {"path": str(folder)}})
    with suppress(nbclient.exceptions.CellExecutionError):
        client.execute()
    return [cell.outputs for cell in notebook.cells]


def shown(outputs: Any, kind: str = "text/plain") -> str:
    """What a cell's displays show in a format."""
    return "\n".join(output.data.get(kind, "") for output in outputs if "data" in output)


def test_a_cell_is_observed(tmp_path: Path) -> None:
    """`%%gradscope` reports on its cell, with the cell's own lines, as text and as a framed page; rules are chosen."""
    outputs = executed(
        "%load_ext gradscope",
        SETUP,
        f"%%gradscope\n{TRAIN}\nprint(loss.ndim)",
        "loss.ndim",
        f"%%gradscope --ignore detach\n{TRAIN}",
        f"%%gradscope --nonsense\n{TRAIN}",
        folder=tmp_path,
    )
    text = shown(outputs[2])
    assert "error[detach]: `encoder` never learns: its 2 parameters got no gradient in 3 steps" in text
    assert "--> Cell In[3]:5:53" in text
    assert "gradscope: Cell In[3], 3 steps" in text
    assert "srcdoc=" in shown(outputs[2], "text/html")
    assert [output.text for output in outputs[2] if output.output_type == "stream"] == ["0\n"]
    assert shown(outputs[3]) == "0"
    assert "error[detach]" not in shown(outputs[4])
    assert "Cell In[5], 3 steps" in shown(outputs[4])
    assert outputs[5][0].evalue.startswith("usage: %%gradscope")


def test_a_cell_that_raises_shows_the_report_then_its_own_traceback(tmp_path: Path) -> None:
    """The report explains the exception; the traceback after it has no frame of ours, and the notebook stops."""
    failing = "w = torch.ones(3)\nloss = (w * 2).sum()\nloss.backward()"
    outputs = executed("%load_ext gradscope\nimport torch", f"%%gradscope\n{failing}", "1 + 1", folder=tmp_path)
    assert outputs[2] == []
    assert [output.output_type for output in outputs[1]] == ["display_data", "error"]
    assert "raised RuntimeError" in shown(outputs[1])
    error = outputs[1][1]
    assert error.ename == "RuntimeError"
    assert error.evalue.startswith("element 0 of tensors does not require grad")
    trace = "\n".join(error.traceback)
    assert "notebook.py" not in trace
    assert "recorder.py" not in trace
    assert "loss.backward()" in trace


def test_report_graph_and_observe_show_themselves(tmp_path: Path) -> None:
    """A report is a framed page, its graph an SVG, an observation the report of what it has seen."""
    outputs = executed(
        SETUP,
        f"import gradscope\nwith gradscope.observe() as seen:\n{textwrap.indent(TRAIN, '    ')}",
        "report = seen.report()",
        "report",
        "report.graph",
        "seen",
        "gradscope.observe()",
        folder=tmp_path,
    )
    assert outputs[1] == outputs[2] == []
    assert "<iframe" in shown(outputs[3], "text/html")
    assert "error[detach]" in shown(outputs[3])
    assert "<svg" in shown(outputs[4], "image/svg+xml")
    assert shown(outputs[4]).startswith("Graph(operations=")
    assert "error[detach]" in shown(outputs[5])
    assert "Observer object" in shown(outputs[6])
