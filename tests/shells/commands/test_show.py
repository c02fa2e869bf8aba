"""`gradscope show`: every report again from a kept run."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradscope.graph.storage import encode
from tests.runs import Book
from tests.workshop import FORUM, Workshop


def kept(workshop: Workshop) -> Path:
    """A run that was kept without running anything."""
    book = Book()
    book.step(book.op("sum", book.leaf("w", (2,), True, nn_parameter=True), result="loss", shape=()))
    path = workshop.folder / "run.json"
    path.write_bytes(encode(book.run()))
    return path


@pytest.mark.parametrize("source", ["forum", "not finite"])
def test_show_gives_the_same_report(workshop: Workshop, source: str) -> None:
    """`show` writes the same text and the same JSON as `explain --save` did, numbers that are not finite included."""
    script = FORUM
    if source == "not finite":
        script = workshop.write(
            """
            import torch
            w = torch.tensor([1.0, 0.0], requires_grad=True)
            optimizer = torch.optim.SGD([w], lr=1.0)
            for _ in range(3):
                optimizer.zero_grad()
                (1 / w).sum().log().backward()
                optimizer.step()
            """
        )
    for name in ("report.txt", "report.json"):
        assert workshop.gradscope("explain", "--save", "run.json", "-o", name, script).status in (0, 1)
        report = (workshop.folder / name).read_text()
        shown = workshop.gradscope(
            "show", "--format", {"txt": "text", "json": "json"}[name[-4:].strip(".")], "run.json"
        )
        assert shown.err == ""
        assert shown.out == report
        assert workshop.gradscope("show", "-o", "again" + name, "run.json").out == ""
        assert (workshop.folder / ("again" + name)).read_text() == report


def test_all_unfolds(workshop: Workshop) -> None:
    """A table of over 20 rows is folded by module, and `--all` shows each row."""
    book = Book()
    total = book.leaf("x", (2,))
    for layer in range(30):
        name = f"layers.{layer}.weight"
        weight = book.leaf(name, (2,), True, nn_parameter=True, registered="parameter", module="net")
        total = book.op("mul", total, weight)
    book.step(book.op("sum", total, result="loss", shape=()))
    (workshop.folder / "run.json").write_bytes(encode(book.run()))
    folded = workshop.gradscope("show", "run.json").out
    assert "layers.*" in folded
    assert "layers.7.weight" not in folded
    assert "--all shows each" in folded
    every = workshop.gradscope("show", "--all", "run.json").out
    assert all(f"\nlayers.{layer}.weight " in every for layer in range(30))
    assert "--all" not in every


def test_the_graph_is_drawn_from_a_kept_run(workshop: Workshop) -> None:
    """`show --graph FILE` draws the kept run; the drawing is told on standard error."""
    ended = workshop.gradscope("show", "--graph", "graph.dot", kept(workshop))
    assert (ended.status, ended.err) == (0, f"gradscope: drew {'graph.dot'}\n")
    assert (workshop.folder / "graph.dot").read_text().startswith("digraph")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file: bad.json"),
        (b"", "bad.json is cut short or not JSON"),
        (b"hello", "bad.json is cut short or not JSON"),
        (b"\xff\xfe\x00", "bad.json is cut short or not JSON"),
        (b"[1, 2]", "bad.json is not a kept run"),
        (b'{"schema": "gradscope.report/2"}', "bad.json has the schema 'gradscope.report/2'"),
        (b'{"schema": "gradscope.run/2"}', "bad.json has the schema 'gradscope.run/2'"),
        (b'{"schema": "gradscope.run/1"}', "bad.json is damaged"),
        (b'{"schema": "gradscope.run/1", "gradscope": "\xff", "torch": "2"}', "bad.json is damaged"),
        (b'{"schema": "gradscope.run/1", "more": ' + b"[" * 100_000, "bad.json is "),
        (b'{"schema": "gradscope.run/1", "gradscope": 3}', "bad.json is damaged"),
        (
            b'{"schema": "gradscope.run/1", "gradscope": "1", "torch": "2",'
            b' "values": [{"id": 1, "tensor": 7, "history": true}]}',
            "bad.json is damaged",
        ),
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "bytes",
        "list",
        "report",
        "later",
        "little",
        "bad text",
        "deep",
        "wrong type",
        "dangling",
    ],
)
def test_what_is_no_kept_run_is_one_line(workshop: Workshop, data: bytes | None, message: str) -> None:
    """A file that is missing, cut short, not JSON, or of another schema gives one clear line and exit code 2."""
    if data is not None:
        (workshop.folder / "bad.json").write_bytes(data)
    ended = workshop.gradscope("show", "bad.json")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("gradscope: " + message)
    assert ended.err.count("\n") == 1


def test_a_run_cut_short_anywhere_is_one_line(workshop: Workshop) -> None:
    """However short a kept run was cut, the answer is one line and exit code 2."""
    data = kept(workshop).read_bytes()
    for end in range(0, len(data) - 1, 97):
        (workshop.folder / "cut.json").write_bytes(data[:end])
        ended = workshop.gradscope("show", "cut.json")
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_a_directory_is_no_kept_run(workshop: Workshop) -> None:
    """A directory gives one line and exit code 2."""
    ended = workshop.gradscope("show", ".")
    assert (ended.status, ended.err) == (2, "gradscope: cannot read .: Is a directory\n")


def test_depth_and_open_say_how_far_the_graph_is_opened(workshop: Workshop) -> None:
    """`--depth 1` closes the model, and `--open` with a path opens one of its parts again."""
    book = Book()
    total = book.leaf("x", (2,))
    for part in ("a", "b"):
        for place in range(2):
            total = book.op("mul", total, book.leaf(f"{part}{place}", (2,), True), module=f"net.{part}")
    book.step(book.op("sum", total, result="loss", shape=()))
    (workshop.folder / "run.json").write_bytes(encode(book.run()))
    drawn = {}
    for name, options in (("closed", ["--depth", "1"]), ("open", ["--depth", "1", "--open", "net.b"])):
        ended = workshop.gradscope("show", "run.json", "--graph", f"{name}.dot", *options)
        assert ended.status == 0
        drawn[name] = (workshop.folder / f"{name}.dot").read_text()
    assert ">net<" in drawn["closed"]
    assert ">mul<" not in drawn["closed"]
    assert drawn["open"].count(">mul<") == 2
    assert workshop.gradscope("show", "run.json", "--depth", "0").status == 2


def test_names_of_files_steer_no_terminal(workshop: Workshop) -> None:
    """What is said of a file is one line, whatever the file is called."""
    name = "zq\x1b[2J\n::error::x\u202e"
    shown = r"zq\x1b[2J\n\x3a:error::x\u202e"
    for args in (
        ("show", name),
        ("show", "run.json", "-o", f"{name}/x.txt"),
        ("show", "run.json", "--graph", f"{name}/x.svg"),
        ("show", "run.json", "--open", name, name),
        ("diff", name, name),
        ("rule", name),
        (name,),
    ):
        ended = workshop.gradscope(*args)
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith("gradscope: ")
        assert shown.split("\\n")[0] in ended.err or repr(name)[1:-1] in ended.err
        assert ended.err.endswith("\n")
        assert ended.err[:-1].isprintable()
    workshop.write("import torch\n(torch.ones(2, requires_grad=True) * 2).sum().backward()\n")
    ended = workshop.gradscope("explain", "--graph", f"{name}.dot", "script.py")
    assert (ended.status, ended.err) == (0, f"gradscope: drew {workshop.folder}/{shown}.dot\n")
