"""Lines of ours among the script's own, on a real terminal: no character of the script's is ever touched."""

from __future__ import annotations

import io
import itertools
import os
import pty
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

import pyte
import pytest

from gradscope.probes.program.scripts import observe_program, program_of_script
from gradscope.shells import live
from gradscope.shells.lines import Lines
from gradscope.shells.live import Live
from tests.workshop import Workshop

LEARNING = """
import contextlib, logging, os, subprocess, sys
import torch
from torch import nn

encoder, decoder = nn.Linear(3, 2), nn.Linear(2, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)

def train():
    loss = decoder(encoder(torch.ones(8, 3)).detach()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

"""
PRINTS = """
print("begins")
for step in range(40):
    print(f"step {step}", end=" ", flush=True)
    train()
    print("done")
"""
WORDS = """
for step in range(40):
    print("." if step % 10 else "|", end="", flush=True)
    train()
print()
"""
RETURNS = """
for step in range(40):
    train()
    print(f"\\rstep {step:3}", end="", flush=True)
print("\\nend")
"""
ENDS_WITH_RETURN = """
for step in range(40):
    print(f"a long line that shrinks {'.' * (40 - step)}", end="\\r", flush=True)
    train()
"""
BAR = """
for step in range(40):
    sys.stderr.write(f"\\r{step:3}%|{'#' * step:40}| {step}/40")
    sys.stderr.flush()
    train()
sys.stderr.write("\\n")
"""
TWO_BARS = """
for epoch in range(4):
    sys.stderr.write(f"\\repoch {epoch}")
    for step in range(10):
        sys.stderr.write(f"\\n\\rstep {step}\\x1b[A")
        sys.stderr.flush()
        train()
sys.stderr.write("\\n\\n")
"""
LOGS = """
logging.basicConfig(level="INFO", format="%(levelname)s:%(message)s", stream=sys.stderr)
for step in range(40):
    train()
    logging.info("step %d", step)
"""
BOTH = """
for step in range(40):
    sys.stdout.write(f"out {step} ")
    train()
    sys.stdout.flush()
    train()
    sys.stderr.write(f"err {step} ")
    train()
    print(file=sys.stderr)
"""
UNHEARD = """
for step in range(40):
    os.write(1, b".")
    train()
os.write(1, b"\\n")
"""
CHILD = """
print("begins")
subprocess.run(["printf", "no line yet"])
for step in range(40):
    train()
subprocess.run(["echo", " now it is"])
"""
CURSES = """
import curses
curses.setupterm("linux")
sys.stdout.write("\\x1b[?1049h\\x1b[2J\\x1b[5;5Hstep  \\n")
for step in range(40):
    train()
    sys.stdout.write(f"\\x1b[5;10H{step}\\n")
    sys.stdout.flush()
"""
RAW = """
import termios, tty
before = termios.tcgetattr(1)
tty.setcbreak(1)
for step in range(40):
    train()
    print("key?")
termios.tcsetattr(1, termios.TCSANOW, before)
"""
BYTES = """
for step in range(40):
    sys.stdout.buffer.write(b"step ")
    sys.stdout.flush()
    train()
    sys.stdout.buffer.write(b"done\\n")
    sys.stdout.flush()
"""
COLOURS = """
for step in range(40):
    print("\\x1b[1;32mstep\\x1b[0m", end=" ", flush=True)
    train()
    print(step)
"""
SILENT = """
for step in range(40):
    train()
"""
TELLS = {
    "prints": PRINTS, "logs": LOGS, "both": BOTH, "bytes": BYTES, "colours": COLOURS, "silent": SILENT,
    "words": WORDS, "returns": RETURNS, "bar": BAR,
}  # fmt: skip
CANNOT_TELL = {
    "ends_with_return": ENDS_WITH_RETURN, "two_bars": TWO_BARS, "unheard": UNHEARD, "child": CHILD, "curses": CURSES,
    "raw": RAW,
}  # fmt: skip
OURS = "gradscope: step "


@contextmanager
def terminal(written: bytearray) -> Iterator[TextIO]:
    """A pseudo-terminal as standard output and error; what was written there is read into `written`."""
    ours, theirs = pty.openpty()

    def read() -> None:
        while data := _read(ours):
            written.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    saved = os.dup(1), os.dup(2)
    sys.stdout.flush()
    try:
        for number in (1, 2):
            os.dup2(theirs, number)
        with (
            open(os.dup(1), "w", encoding="utf-8", buffering=1) as out,
            open(os.dup(2), "w", encoding="utf-8", buffering=1) as err,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            yield err
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(theirs)
        reader.join()
        os.close(ours)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # so Linux says that nobody has the other end any more
        return b""


def screen(written: bytes) -> list[str]:
    """What stands on a terminal in the end, without its empty rest."""
    seen = pyte.Screen(200, 200)
    pyte.ByteStream(seen).feed(written)
    lines = [line.rstrip() for line in seen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def shown(source: str, workshop: Workshop, *, watched: bool) -> bytes:
    """What a program writes to a terminal, with our lines among it or without."""
    workshop.write(LEARNING + source)
    written = bytearray()
    with terminal(written) as stream:
        lines = Lines(stream, sys.stdout)
        with lines:
            outcome = observe_program(program_of_script("script.py", ()), watch=Live(lines).step if watched else None)
        assert (outcome.error, outcome.run.failures) == (None, ())
    return bytes(written)


@pytest.mark.parametrize("source", [*TELLS.values(), *CANNOT_TELL.values()], ids=[*TELLS, *CANNOT_TELL])
def test_the_scripts_output_is_left_alone(workshop: Workshop, source: str) -> None:
    """But for whole lines of ours, a terminal shows what it shows without us, and the bytes are the script's."""
    bare, seen = (shown(source, workshop, watched=watched) for watched in (False, True))
    own = [line for line in seen.splitlines(keepends=True) if not line.startswith(OURS.encode())]
    assert b"".join(own) == bare
    lines = screen(seen)
    told = [line for line in lines if line.startswith(OURS)]
    assert [line for line in lines if line not in told] == screen(bare)
    assert len(told) == (source in TELLS.values())


def test_all_is_put_back(workshop: Workshop) -> None:
    """The streams are what they were, though the script puts others in their places."""
    written = bytearray()
    with terminal(written) as stream:
        inner = stream.buffer.raw, sys.stdout.buffer.raw  # type: ignore[attr-defined]
        with Lines(stream, sys.stdout):
            assert all("write" in vars(each) for each in inner)
        assert not any("write" in vars(each) for each in inner)
    assert bytes(written) == b""


def test_what_the_script_raises_shows_no_frame_of_ours(workshop: Workshop) -> None:
    """A write that fails fails as it would without us."""
    source = """
    import sys, traceback
    sys.stdout.flush()
    try:
        sys.stdout.buffer.raw.write("text")
    except TypeError:
        traceback.print_exc()
    """
    bare, seen = (shown(source, workshop, watched=watched) for watched in (False, True))
    assert seen == bare
    assert b"lines.py" not in seen


def test_a_line_waits_for_the_end_of_the_scripts_line() -> None:
    """What cannot be told is told right behind the newline that ends the script's line, and no later."""
    stream = io.StringIO()
    with Lines(stream) as lines:
        print("half a line", end="", file=stream)
        lines.put("ours")
        assert stream.getvalue() == "half a line"
        print(" is whole", file=stream)
        print("next", end="", file=stream)
        assert not lines.at_beginning(stream)
    assert stream.getvalue() == "half a line is whole\nours\nnext"


def test_a_stream_that_nobody_can_listen_to_gets_nothing() -> None:
    """Where nothing is known of the cursor, nothing is told."""

    class Closed:
        __slots__ = ("written",)

        def __init__(self) -> None:
            self.written = ""

        def write(self, text: str) -> int:
            self.written += text
            return len(text)

        def isatty(self) -> bool:
            return False

    stream: Any = Closed()
    with Lines(stream) as lines:
        lines.put("ours")
    assert stream.written == ""


def test_a_silent_terminal_tells_how_far_a_run_has_come(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds without a word whole lines tell of the steps, each after twice the time; nothing is drawn."""
    clock = types.SimpleNamespace(monotonic=itertools.count(0, 1.0).__next__)
    monkeypatch.setattr(live, "time", clock)
    stream = io.StringIO()
    with Lines(stream) as lines:
        lines.last = 0.0
        workshop.write(LEARNING + SILENT)
        observe_program(program_of_script("script.py", ()), watch=Live(lines, progress=True).step)
    told = [line for line in stream.getvalue().splitlines() if "finding" in line]
    assert next(line.split(",")[0] for line in told) == "gradscope: 10 steps"
    assert 2 <= len(told) <= 4


def conversation(workshop: Workshop, *command: str) -> list[str]:
    """What a terminal shows on which somebody answers a debugger, and the question for a name."""
    ours, theirs = pty.openpty()
    process = workshop.start(*command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    answers = {b"(Pdb) ": b"p step\nnext\nc\n", b"name? ": b"me\n"}
    while data := _read(ours):
        written += data
        for prompt in [prompt for prompt in answers if written.endswith(prompt)]:
            os.write(ours, answers.pop(prompt))
    os.close(ours)
    process.wait()
    return screen(written)


def test_a_breakpoint_keeps_its_prompt(workshop: Workshop) -> None:
    """In the whole command, on a terminal of its own: a debugger and `input` work as they do without us."""
    workshop.write(
        LEARNING
        + """
for step in range(40):
    train()
    if step == 5:
        breakpoint()
    if step == 20:
        print("you said", input("name? "))
"""
    )
    bare, seen = (
        conversation(workshop, *command)
        for command in (["script.py"], ["-m", "gradscope", "explain", "--color", "never", "script.py"])
    )
    assert "you said me" in bare
    report = next(place for place, line in enumerate(seen) if line.startswith("error[detach]"))
    assert [line for line in seen[:report] if not line.startswith(OURS)] == bare
