"""Where a command writes to, checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from gradscope.errors import GradscopeError
from gradscope.reports.report import Report

Format = Literal["text", "json", "html", "sarif", "markdown", "github"]
FORMATS: tuple[Format, ...] = ("text", "json", "html", "sarif", "markdown", "github")
_ENDINGS: dict[str, Format] = {
    ".txt": "text",
    ".sarif.json": "sarif",
    ".json": "json",
    ".html": "html",
    ".htm": "html",
    ".sarif": "sarif",
    ".md": "markdown",
}


class Unwritable(GradscopeError):
    """A file cannot be written."""


def check_writable(path: Path) -> None:
    """Raise Unwritable, with what to do, if a file cannot be made or replaced at `path`."""
    if path.is_dir():
        raise Unwritable(f"{path} is a directory: name a file in it")
    if path.exists() and not path.is_file():
        raise Unwritable(f"{path} is no regular file: name one that can be replaced")
    folder = path.parent
    if not folder.is_dir():
        raise Unwritable(f"cannot write {path}: there is no directory {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise Unwritable(f"cannot write {path}: permission denied")


def check_apart(paths: Iterable[Path | None]) -> None:
    """Raise Unwritable if two of these are the same file: one would overwrite the other."""
    seen: set[Path] = set()
    for path in paths:
        if path is not None:
            real = path.resolve()
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
    raise Unwritable(
        f"cannot tell the format of {output} by its ending: "
        "give --format, or end it with .txt, .json, .html, .sarif or .md"
    )


def written(report: Report, format_: Format, *, every_row: bool, colour: bool = False, unicode: bool = False) -> str:
    """The report in a format."""
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
    return report.to_text(every_row=every_row, colour=colour, unicode=unicode)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises Unwritable."""
    path = path.resolve()  # what a link leads to is replaced, not the link
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        if path.exists():
            beside.chmod(path.stat().st_mode)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Unwritable(f"cannot write {path}: {error.strerror or error}") from None
