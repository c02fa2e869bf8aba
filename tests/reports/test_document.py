"""The report as data and as JSON."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscope.reports
from gradscope.graph.facts import Crash, Loss, Received, Run, Span
from gradscope.reports.document import Document, schema
from gradscope.reports.report import Report
from tests.runs import Book
from tests.workshop import FORUM, Workshop

FILE = Path(gradscope.reports.__file__).with_name("report.schema.json")
REGENERATE = (
    "python -c 'import json; from gradscope.reports.document import schema; print(json.dumps(schema(), indent=1))'"
    " > gradscope/reports/report.schema.json"
)


@cache
def validator() -> jsonschema.Draft202012Validator:
    """Checks against the schema that the package ships."""
    return jsonschema.Draft202012Validator(json.loads(FILE.read_text()))


def valid(report: Report) -> dict[str, Any]:
    """The report's JSON, after it has been validated."""
    written: dict[str, Any] = json.loads(report.to_json())
    validator().validate(written)
    return written


def test_the_shipped_schema_is_that_of_the_code() -> None:
    """`report.schema.json` is what the code generates."""
    assert FILE.read_text() == json.dumps(schema(), indent=1) + "\n", f"write it again: {REGENERATE}"


def test_the_schema_is_a_schema_and_refuses() -> None:
    """The schema is a valid one of draft 2020-12, names itself, and refuses what is no report."""
    loaded = json.loads(FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(loaded)
    assert loaded["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert loaded["$id"] == "gradscope.report/2"
    good = valid(Report.of(Run("0", "2")))
    for damage in ({"schema": "gradscope.report/1"}, {"run": None}, {"tensors": [{}]}, {"gradscope": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validator().validate({**good, **damage})


def test_a_report_has_the_fields_of_the_design(workshop: Workshop) -> None:
    """The names of all fields that users rely on are there."""
    workshop.write(
        """
        import torch
        from torch import nn
        net = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
        optimizer = torch.optim.AdamW(net.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            net["a"](torch.rand(4, 2)).sum().backward()
            optimizer.step()
        raise ValueError("the end")
        """
    )
    workshop.gradscope("explain", "--save", "run.json", "-o", "report.json", "script.py")
    report = json.loads((workshop.folder / "report.json").read_bytes())
    validator().validate(report)
    assert report["schema"] == "gradscope.report/2"
    assert report.keys() >= {"gradscope", "torch", "script", "argv", "run", "tensors", "findings", "graph"}
    assert report["run"].keys() >= {"steps", "backwards", "ended", "seconds", "exception"}
    assert report["run"]["exception"] == {
        "type": "ValueError",
        "message": "the end",
        "file": "script.py",
        "line": 9,
    }
    assert (report["run"]["ended"], report["run"]["steps"], report["run"]["backwards"]) == ("exception", 2, 2)
    row = next(row for row in report["tensors"] if row["name"] == "a.weight")
    expected = {
        "role": "parameter",
        "leaf": True,
        "requires_grad": True,
        "shape": [1, 2],
        "dtype": "float32",
        "device": "cpu",
        "optimizer": "AdamW",
        "predicted": True,
        "received": {"steps": 2, "of": 2, "zero": 0, "nonfinite": 0},
        "finding": None,
    }
    assert {name: row[name] for name in expected} == expected
    assert len(row["grad_norm"]) == 2
    assert row["moved"] > 0
    assert row.keys() >= {"location"}
    finding = next(finding for finding in report["findings"] if finding["rule"] == "unused-parameter")
    assert finding["severity"] == "warning"
    assert finding["tensors"] == ["b.weight", "b.bias"]
    assert finding["location"].keys() == {"file", "line", "column", "end_line", "end_column", "function"}
    assert finding.keys() >= {"message", "labels", "facts", "help"}
    assert finding["help"][0].keys() == {"message", "edits", "tried"}
    assert report["graph"].keys() == {"operations", "edges", "parameters"}
    assert report["graph"]["parameters"] == 4


def test_the_forum_report_validates(workshop: Workshop) -> None:
    """The JSON of a healthy run validates, and its counts are those of the run."""
    workshop.gradscope("explain", "-o", "report.json", FORUM, "--lr", "1")
    report = json.loads((workshop.folder / "report.json").read_bytes())
    validator().validate(report)
    assert report["argv"] == ["--lr", "1"]
    assert report["graph"] == {"operations": 3, "edges": 2, "parameters": 1}
    assert [loss["name"] for loss in report["losses"]] == ["output.sum()"]


def test_a_leaf_that_is_only_detached_has_a_row(workshop: Workshop) -> None:
    """In a script without backward: it asks for a gradient, none is predicted, and none arrives."""
    run = workshop.run(
        """
        import torch
        a, c, d = (torch.ones(3, requires_grad=True) for _ in range(3))
        hidden = torch.tanh(a)
        result = hidden + c.detach() * d.data
        """
    )
    rows = {row["name"]: row for row in valid(Report.of(run))["tensors"]}
    assert list(rows) == ["a", "c", "d", "hidden", "result"]
    for name in "cd":
        row = rows[name]
        assert (row["role"], row["requires_grad"], row["predicted"]) == ("input", True, False)
        assert (row["received"] or {"steps": 0})["steps"] == 0


def test_what_is_not_finite_is_null() -> None:
    """JSON has no NaN: losses and norms that are not finite are null, and counted apart."""
    book = Book()
    w = book.leaf(
        "w",
        (2,),
        True,
        received=Received(3, 3, nonfinite=1),
        gradient_norms=(1.0, None, 2.0),
        nn_parameter=True,
    )
    book.step(book.op("sum", w, result="loss", shape=()))
    run = Run(**{**vars_of(book.run()), "losses": (Loss("loss", 1.0, None),)})
    report = valid(Report.of(run))
    assert "NaN" not in json.dumps(report)
    (loss,) = report["losses"]
    assert (loss["first"], loss["last"]) == (1.0, None)
    row = next(row for row in report["tensors"] if row["name"] == "w")
    assert (row["grad_norm"], row["received"]["nonfinite"]) == ([1.0, None, 2.0], 1)


def vars_of(run: Run) -> dict[str, Any]:
    """The fields of a run."""
    return {name: getattr(run, name) for name in run.__dataclass_fields__}


@pytest.mark.parametrize(
    ("start", "change", "moved", "from_zero"),
    [(2.0, 0.5, 0.25, False), (0.0, 0.5, None, True), (2.0, 0.0, 0.0, False), (0.0, 0.0, 0.0, False)],
)
def test_movement_is_relative_to_the_start(start: float, change: float, moved: float | None, from_zero: bool) -> None:
    """`moved` is |change| / |start|; from a start of zero there is nothing to divide by, and `from_zero` says so."""
    book = Book()
    w = book.leaf("w", (2,), True, nn_parameter=True, start=start, change=change)
    book.step(book.op("sum", w, result="loss", shape=()))
    row = Report.of(book.run()).tensors[0]
    assert (row.name, row.moved, row.from_zero) == ("w", moved, from_zero)


@settings(max_examples=60)
@given(
    names=st.lists(st.text(max_size=10), max_size=6),
    grads=st.lists(st.booleans(), min_size=6, max_size=6),
    crash=st.none() | st.builds(Crash, st.text(max_size=5), st.text(max_size=5), st.none() | st.just(Span("f", 1))),
)
def test_any_report_validates(names: list[str], grads: list[bool], crash: Crash | None) -> None:
    """Whatever the names in a run, its JSON validates and reads back as the same document."""
    book = Book()
    total = book.leaf("x", (2,), True)
    for name, grad in zip(names, grads, strict=False):
        total = book.op("mul", total, book.leaf(name, (2,), grad, nn_parameter=grad), result=name or None)
    book.step(book.op("sum", total, result="loss", shape=()))
    report = Report.of(Run(**{**vars_of(book.run()), "crash": crash}))
    valid(report)
    assert msgspec.json.decode(report.to_json(), type=Document) == report.document
