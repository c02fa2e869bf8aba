"""The files that a mend changes: read as Python reads them, changed without touching anything else, written at once."""

from __future__ import annotations

import io
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Edit
from gradscope.reports.diffs import Change, changes
from gradscope.shells.commands.destinations import check_writable, replace_file

_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Unmendable(GradscopeError):
    """A file cannot be changed, or must not be."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the user's: its lines, what each ends with, and how they are written as bytes."""

    lines: tuple[str, ...]
    endings: tuple[str, ...]
    encoding: str

    @classmethod
    def of(cls, content: bytes) -> Source:
        """Raises UnicodeDecodeError or SyntaxError where the bytes are not in their encoding."""
        encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
        found = [(line[1], line[2]) for line in _LINE.finditer(content.decode(encoding)) if line[0]]
        return cls(tuple(line for line, _ in found), tuple(ending for _, ending in found), encoding)

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return "".join(map("".join, zip(self.lines, self.endings, strict=True))).encode(self.encoding)

    @property
    def numbered(self) -> dict[int, str]:
        """The lines by their numbers."""
        return dict(enumerate(self.lines, 1))

    def changed(self, found: Iterable[Change]) -> Source:
        """The file with other lines in some places; new ones end as those beside them do."""
        lines, endings = list(self.lines), list(self.endings)
        usual = next((ending for ending in self.endings if ending), "\n")
        for change in sorted(found, key=lambda change: change.first, reverse=True):
            place = slice(change.first - 1, change.first - 1 + len(change.before))
            old = endings[place]
            lines[place] = change.after
            endings[place] = [*old, *[usual] * len(change.after)][: len(change.after)]
        # Whatever became the last line ends as the last one did, and none before it lacks its end.
        for number in range(len(endings) - 1):
            endings[number] = endings[number] or usual
        endings[-1:] = self.endings[-1:] if endings else []
        return Source(tuple(lines), tuple(endings), self.encoding)


def read(file: str, folder: Path) -> Source:
    """The source of a file as a report names it. Raises Unmendable."""
    path = folder / file
    try:
        return Source.of(path.read_bytes())
    except OSError as error:
        raise Unmendable(f"cannot read {file}: {error.strerror or error}") from None
    except (UnicodeDecodeError, SyntaxError):
        raise Unmendable(f"cannot read {file}: it is not in the encoding that it declares") from None


def mended(sources: Mapping[str, Source], edits: Sequence[Edit]) -> dict[str, Source]:
    """The sources after the edits of one mend, which are places in them."""
    found = changes(edits, {file: source.numbered for file, source in sources.items()})
    files = {change.file for change in found}
    return {
        file: source.changed([change for change in found if change.file == file]) if file in files else source
        for file, source in sources.items()
    }


def check_own(file: str, folder: Path) -> None:
    """Raise Unmendable for a file that is not the user's to change: one of an installed package or of Python."""
    real = Path(os.path.realpath(folder / file))
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    if not _INSTALLED.isdisjoint(real.parts) or any(real.is_relative_to(os.path.realpath(path)) for path in libraries):
        raise Unmendable(f"{file} belongs to an installed package: change a copy of it, or its next release")


def write(changed: Mapping[str, Source], seen: Mapping[str, Source], folder: Path) -> None:
    """Write changed files, all of them or none. `seen` are the same files as they ran.

    Raises Unmendable, with everything as it was, where a file has changed since, is not the user's, or cannot be
    written.
    """
    for file in changed:
        check_own(file, folder)
        if read(file, folder) != seen[file]:
            raise Unmendable(f"{file} has changed since it ran: run `gradscope fix` again; nothing was written")
        check_writable(folder / file)
    done: list[str] = []
    try:
        for file, source in changed.items():
            replace_file(folder / file, source.content)
            done.append(file)
    except BaseException as error:
        for file in done:
            replace_file(folder / file, seen[file].content)
        if isinstance(error, GradscopeError):
            raise Unmendable(f"{error}; nothing was changed") from None
        raise
