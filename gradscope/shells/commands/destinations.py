"""Where a command writes to, checked before any work is done."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from gradscope.reports.frames import WIDTH
from gradscope.reports.report import Report
from gradscope.shells.commands.streams import Unwritable

Format = Literal["text", "json", "html", "sarif", "markdown", "github", "concise"]
FORMATS: tuple[Format, ...] = ("text", "json", "html", "sarif", "markdown", "github", "concise")
_ENDINGS: dict[str, Format] = {
    ".txt": "text",
    ".sarif.json": "sarif",
    ".json": "json",
    ".html": "html",
    ".htm": "html",
    ".sarif": "sarif",
    ".md": "markdown",
}


def check_writable(path: Path) -> None:
    """Raise Unwritable, with what to do, if nothing can be written at `path`.

    The only sure way to know is to make a file in its folder: permissions, quotas and file systems all have a say.
    """
    try:
        if path.is_dir():
            raise Unwritable(f"{path} is a directory: name a file in it")
        if _is_taken_as_it_is(path):
            return  # whether it takes all that is written, nobody knows before
        whole = _whole(path)
        os.lstat(whole)  # says of a name that it is too long
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(path, error) from None
    if not whole.parent.is_dir():
        folder = path.parent if not path.is_symlink() else whole.parent
        raise Unwritable(f"cannot write {path}: there is no directory {folder}")
    if whole.is_symlink():
        raise Unwritable(f"cannot write {path}: it is a link that leads back to itself")
    if not os.access(whole if whole.exists() else whole.parent, os.W_OK):
        raise Unwritable(f"cannot write {path}: permission denied")
    try:
        _beside(whole, b"").unlink()
    except OSError as error:
        raise _unwritable(path, error) from None


def check_apart(paths: Iterable[Path | None]) -> None:
    """Raise Unwritable if two of these are the same file: one would overwrite the other."""
    seen: set[Path] = set()
    for path in paths:
        if path is not None and not _is_taken_as_it_is(path):
            real = _whole(path)
            if real in seen:
                raise Unwritable(f"{path} is named twice: it would be overwritten, give another name")
            seen.add(real)


def format_of(given: str | None, output: Path | None) -> Format:
    """The format that was asked for, else the one that the output's ending says, else text."""
    for known in FORMATS:
        if given == known:
            return known
    if output is None:
        return "text"
    for ending, format_ in _ENDINGS.items():
        if output.name.lower().endswith(ending):
            return format_
    if _is_taken_as_it_is(output):
        return "text"  # a device has no ending
    raise Unwritable(
        f"cannot tell the format of {output} by its ending: "
        "give --format, or end it with .txt, .json, .html, .sarif or .md"
    )


def written(
    report: Report, format_: Format, *, every_row: bool, colour: bool = False, unicode: bool = False, width: int = WIDTH
) -> str:
    """The report in a format; how it is to look counts for text alone."""
    if format_ == "json":
        return report.to_json() + "\n"
    if format_ == "html":
        return report.to_html()
    if format_ == "sarif":
        return report.to_sarif()
    if format_ == "markdown":
        return report.to_markdown(every_row=every_row)
    if format_ == "github":
        return report.to_github()
    if format_ == "concise":
        return report.to_concise()
    return report.to_text(every_row=every_row, colour=colour, unicode=unicode, width=width)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; what is no regular file gets the bytes as they come. Raises Unwritable."""
    try:
        stream = _stream_to(path)
        if stream is not None:
            with os.fdopen(os.dup(stream), "wb") as file:
                file.write(data)
        elif _is_taken_as_it_is(path):
            path.write_bytes(data)
        else:
            _put(_whole(path), data)
    except OSError as error:
        raise _unwritable(path, error) from None


def _put(path: Path, data: bytes) -> None:
    beside = _beside(path, data)
    try:
        if path.exists():
            beside.chmod(stat.S_IMODE(path.stat().st_mode))
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _beside(path: Path, data: bytes) -> Path:
    """A new file with this content in the folder of `path`, of a short name: that of `path` may be the longest."""
    beside = path.with_name(f".gradscope-{secrets.token_hex(6)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return beside


def _whole(path: Path) -> Path:
    """What a link leads to, which is replaced rather than the link."""
    return Path(os.path.realpath(path))


def _is_taken_as_it_is(path: Path) -> bool:
    """Whether what is there cannot be replaced by another file: a pipe, a device, or what a stream of ours leads to."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _stream_to(path) is not None


def _stream_to(path: Path) -> int | None:
    """The standard stream that leads to a file, if one does: `/dev/stdout`, and the file that it was sent to."""
    for number, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
        with suppress(OSError):
            if stream is not None and os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _unwritable(path: Path, error: OSError) -> Unwritable:
    return Unwritable(f"cannot write {path}: {(error.strerror or str(error)).lower()}")
