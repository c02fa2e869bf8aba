"""Standard output and standard error, which may be closed, full, or read by somebody who has enough."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Literal, TextIO

import click

from gradscope.errors import GradscopeError
from gradscope.reports.escaping import shown
from gradscope.reports.frames import WIDTH

_NARROWEST = 72  # columns that the table takes at the least: its numbers cannot be shortened


class Unwritable(GradscopeError):
    """A file or a stream cannot be written."""


def say(line: str) -> None:
    """A line on standard error, with any names in it; where that is closed or full, there is nobody to tell."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    told = f"gradscope: {shown(line)}".encode(encoding, "backslashreplace").decode(encoding)
    with suppress(OSError, ValueError):
        click.echo(told, err=True)


Colour = Literal["auto", "always", "never"]


def colours(stream: TextIO | None, wanted: Colour = "auto") -> bool:
    """Whether what is written there is coloured: as `wanted`, as NO_COLOR or FORCE_COLOR say, else on a terminal."""
    if wanted != "auto":
        return wanted == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") != "0":
        return True
    return stream is not None and not stream.closed and stream.isatty() and os.environ.get("TERM") != "dumb"


def columns(stream: TextIO | None) -> int:
    """The columns of the terminal that a stream leads to, else those of a text that is to be pasted."""
    try:
        if stream is not None and stream.isatty():
            return max(_NARROWEST, os.get_terminal_size(stream.fileno()).columns or WIDTH)
    except (OSError, ValueError):
        pass
    return WIDTH


def to_stream(stream: TextIO | None, text: str) -> None:
    """Write to standard output, to its end. Who reads there and has enough may go. Raises Unwritable."""
    if stream is None or stream.closed:
        raise Unwritable("cannot write to standard output: it is closed; use -o FILE")
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        forget(stream)
    except (OSError, ValueError) as error:
        forget(stream)
        raise Unwritable(f"cannot write to standard output: {error}; use -o FILE") from None


def forget(stream: TextIO) -> None:
    """What a stream could not write is left alone, for Python would try again at its end and complain."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
