"""Handing reports over: whatever part of it fails, the others come, and the exit code tells."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gradscope.graph.storage import encode, load
from gradscope.probes import observation
from gradscope.reports.report import Report
from tests.runs import Book
from tests.workshop import Workshop

DETACHED = """
    import sys
    import torch
    from torch import nn
    a, b = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        b(a(torch.ones(4, 2)).detach()).sum().backward()
        optimizer.step()
"""


def failing(*_: object, **__: object) -> Any:
    """A part of ours that does not work."""
    raise TypeError("an int is a Tensor\nin here")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, no file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def kept(workshop: Workshop) -> Path:
    """A run that was kept without running anything."""
    book = Book()
    book.step(book.op("sum", book.leaf("w", (2,), True, nn_parameter=True), result="loss", shape=()))
    path = workshop.folder / "run.json"
    path.write_bytes(encode(book.run()))
    return path


def test_the_scripts_own_exit_code_comes_first(workshop: Workshop) -> None:
    """Its own where it is not 0, also where there are errors; a code that Python makes 0 of is none."""
    for code, status in ((3, 3), (0, 1), (256, 1), ("None", 1)):
        workshop.write(DETACHED + f"    sys.exit({code})\n")
        assert workshop.gradscope("explain", "script.py").status == status
    workshop.write(DETACHED + "    sys.exit(3)\n")
    ended = workshop.gradscope("explain", "--save", "/dev/full", "script.py")
    assert (ended.status, ended.err) == (3, "gradscope: cannot write /dev/full: no space left on device\n")
    assert "error[detach]" in ended.out


@pytest.mark.parametrize("part", ["freezing", "keeping", "judging", "writing", "drawing"])
def test_a_report_that_is_lost_is_never_a_success(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Whichever part of ours fails, there is one line and exit code 2; what does not need it comes all the same."""
    workshop.write("import torch; w = torch.ones(2, requires_grad=True); w.sum().backward(); print('done')")
    owner, name = {
        "freezing": (observation, "freeze"),
        "keeping": (sys.modules["gradscope.shells.commands.explain"], "encode"),
        "judging": (Report, "of"),
        "writing": (Report, "to_text"),
        "drawing": (Report, "render"),
    }[part]
    monkeypatch.setattr(owner, name, failing)
    ended = workshop.gradscope("explain", "--save", "run.json", "--graph", "g.dot", "script.py")
    assert ended.status == 2
    lines = [line for line in ended.err.splitlines() if not line.startswith("gradscope: drew ")]
    assert len(lines) == 1
    assert lines[0].startswith("gradscope: ")
    assert lines[0].endswith(" failed: TypeError: an int is a Tensor")
    assert ended.out.startswith("done\n")
    assert ("gradscope: script.py, 1 step" in ended.out) == (part in ("keeping", "drawing"))
    assert (workshop.folder / "g.dot").exists() == (part in ("keeping", "writing"))
    assert (workshop.folder / "run.json").exists() == (part not in ("freezing", "keeping"))


def test_a_crash_is_told_though_the_report_is_lost(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no facts can be read out, the user's own traceback and exit code remain."""
    workshop.write("import torch\ntorch.ones(2) @ torch.ones(3)\n")
    monkeypatch.setattr(observation, "freeze", failing)
    ended = workshop.gradscope("explain", "script.py")
    told = ended.err + capsys.readouterr().err
    assert ended.status == 1
    assert "gradscope: the report failed: TypeError: an int is a Tensor\n" in told
    assert "RuntimeError: " in told


def test_a_full_disk_takes_only_the_file(workshop: Workshop) -> None:
    """The report comes where the run cannot be kept; what stood there stays, and nothing is left beside it."""
    workshop.write(DETACHED)
    (workshop.folder / "run.json").write_text("precious")
    before = sorted(os.listdir(workshop.folder))
    with files_of_at_most(500):
        ended = workshop.gradscope("explain", "--fail-on", "never", "--save", "run.json", "script.py")
    assert (ended.status, ended.err) == (2, f"gradscope: cannot write {workshop.folder}/run.json: file too large\n")
    assert "error[detach]" in ended.out
    assert (workshop.folder / "run.json").read_text() == "precious"
    with files_of_at_most(500):
        ended = workshop.gradscope("explain", "--fail-on", "never", "-o", "run.json", "--graph", "g.dot", "script.py")
    assert (ended.status, ended.out, ended.err.count("gradscope: cannot write ")) == (2, "", 2)
    assert (workshop.folder / "run.json").read_text() == "precious"
    assert sorted(os.listdir(workshop.folder)) == before


@pytest.mark.parametrize("option", ["-o", "--save", "--graph"])
def test_where_nothing_can_be_written_is_told_before_the_run(workshop: Workshop, option: str) -> None:
    """Below a file, by too long a name, through a link to itself or nowhere: one line, and the script never runs."""
    workshop.write("print('ran')")
    (workshop.folder / "loop.svg").symlink_to("loop.svg")
    (workshop.folder / "dangling.svg").symlink_to("nowhere/graph.svg")
    (workshop.folder / "folder.svg").mkdir()
    for name in ("script.py/r.svg", "n" * 300 + ".svg", "loop.svg", "dangling.svg", "folder.svg", "/proc/r.svg"):
        ended = workshop.gradscope(
            "explain", option, name, *(["--format", "text"] if option == "-o" else []), "script.py"
        )
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended
        assert ended.err.startswith("gradscope: "), ended


def test_names_may_be_as_long_as_can_be_and_links_lead_on(workshop: Workshop) -> None:
    """A name of 255 bytes is no trouble, and what a link leads to is made or replaced with its permissions."""
    run = kept(workshop)
    name = "n" * 251 + ".txt"
    assert workshop.gradscope("show", "-o", name, run) == (0, "", "")
    (workshop.folder / "link.txt").symlink_to("real.txt")
    assert workshop.gradscope("show", "-o", "link.txt", run) == (0, "", "")
    (workshop.folder / "real.txt").chmod(0o640)
    assert workshop.gradscope("show", "-o", "link.txt", run) == (0, "", "")
    assert (workshop.folder / "link.txt").is_symlink()
    assert stat.S_IMODE((workshop.folder / "real.txt").stat().st_mode) == 0o640
    assert (workshop.folder / "real.txt").read_text() == (workshop.folder / name).read_text()


def test_pipes_and_devices_are_written_to(workshop: Workshop) -> None:
    """`-o` takes a named pipe, and `/dev/null` for two things at once; neither is replaced by a file."""
    run = kept(workshop)
    pipe = workshop.folder / "pipe.json"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert workshop.gradscope("show", "-o", "pipe.json", run) == (0, "", "")
    reader.join()
    assert json.loads(read[0])["schema"].startswith("gradscope.report/")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    workshop.write("print('ran')")
    assert workshop.gradscope("explain", "-o", "/dev/null", "--save", "/dev/null", "script.py") == (0, "ran\n", "")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    ended = workshop.gradscope("show", "-o", "/dev/full", run)
    assert ended == (2, "", "gradscope: cannot write /dev/full: no space left on device\n")


def test_streams_may_be_closed_or_full_or_have_enough(workshop: Workshop) -> None:
    """No command shows a traceback; a report that cannot be written ends with 2, one that nobody wants with 0."""
    kept(workshop)
    gradscope = f"{sys.executable} -m gradscope"
    workshop.write(
        f"""
        for command in "show run.json" "diff run.json run.json" rules "rule detach"; do
            {gradscope} $command >&-; echo closed $?
            {gradscope} $command >/dev/full; echo full $?
        done 2>both.txt
        {gradscope} show missing.json 2>&-; echo silent $?
        {gradscope} show run.json >out.txt <&-; echo no input $?
        (echo before; {gradscope} show -o /dev/stdout run.json; echo after) >all.txt; echo together $?
        """,
        "streams.sh",
    )
    ended = subprocess.run(["sh", "streams.sh"], cwd=workshop.folder, capture_output=True, text=True, check=True)
    expected = ["closed 2", "full 2"] * 4 + ["silent 2", "no input 0", "together 0"]
    assert ended.stdout.splitlines() == expected
    lines = (workshop.folder / "both.txt").read_text().splitlines()
    assert len(lines) == 8
    assert all(line.startswith("gradscope: cannot write to standard output: ") for line in lines)
    report = (workshop.folder / "out.txt").read_text()
    assert (workshop.folder / "all.txt").read_text() == f"before\n{report}after\n"


def test_a_reader_that_has_enough_is_no_error(workshop: Workshop) -> None:
    """Where the other end of the pipe is closed, the exit code still tells of findings."""
    workshop.write(DETACHED)
    assert workshop.gradscope("explain", "--save", "run.json", "script.py").status == 1
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "gradscope", "show", "run.json"],
            cwd=workshop.folder, stdout=closed, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "")


def test_what_standard_output_cannot_spell_is_spelled_out(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name beyond the encoding of standard output does not take the report along."""
    workshop.write("import torch\ngewöhnlich = torch.ones(2, requires_grad=True)\ngewöhnlich.sum().backward()\n")
    assert workshop.gradscope("explain", "--save", "run.json", "script.py").status == 0
    assert next(tensor.name for tensor in load(workshop.folder / "run.json").tensors) == "gewöhnlich"
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = subprocess.run(
        [sys.executable, "-m", "gradscope", "show", "run.json"], cwd=workshop.folder, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"gew\\xf6hnlich" in ended.stdout
