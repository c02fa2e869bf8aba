"""Standard output and standard error, which may be closed, full, or read by somebody who has enough."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Literal, TextIO

import click

from gradscope.errors import GradscopeError
from gradscope.reports.escaping import shown


class Unwritable(GradscopeError):
    """A file or a stream cannot be written."""


def say(line: str) -> None:
    """A line on standard error, with any names in it; where that is closed or full, there is nobody to tell."""
    with suppress(OSError, ValueError):
        click.echo(f"gradscope: {shown(line)}", err=True)


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
