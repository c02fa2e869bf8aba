"""From a running frame to the user's line.

While the program runs only `(code object, f_lasti)` is kept, which costs some nanoseconds a frame; the exact
expression is looked up in the code's position table when the run is frozen.
"""

from __future__ import annotations

import ast
import linecache
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from itertools import islice
from types import CodeType, FrameType
from typing import TypeAlias

import torch

from gradscope.graph.facts import Span
from gradscope.probes import PACKAGE

Site: TypeAlias = tuple[CodeType, int]

LIBRARY, USER, OPTIMIZER, CLOSURE = 0, 1, 2, 3
# The user's own function and dispatch modes only pass a call on.
PASSING = ("__torch_function__", "__torch_dispatch__")

_BUILDERS = 4  # of the lines that a module was built from, the innermost first
_MAKERS = 12  # lines from a parameter to the constructor of the model that it becomes a part of
_CLOSURES = os.path.join(PACKAGE, "probes", "training", "closures.py")
_OPTIMIZERS = os.path.join(os.path.realpath(os.path.dirname(torch.__file__)), "optim", "")

_INSTALLED = frozenset({"site-packages", "dist-packages"})


def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages())
    folders.add(site.getusersitepackages())
    folders.add(os.path.dirname(torch.__file__))  # which may have been built where its sources lie
    return tuple(os.path.join(os.path.realpath(folder), "") for folder in folders if folder)


class CallSites:
    """Tells the user's frames from those of libraries, and turns sites into spans.

    `folder` is where relative file names are counted from. `own` are folders or files that are the user's
    although they lie among the libraries: the package that `-m` names.
    """

    def __init__(self, folder: str | None = None, own: tuple[str, ...] = ()) -> None:
        self.folder = os.path.join(os.path.abspath(folder or os.getcwd()), "")
        self.own = own
        self.titles: Callable[[str], str | None] | None = None  # of what is no file: the cells of a notebook
        self.libraries = _library_folders()
        self.kinds: dict[str, int] = {}
        self._positions: dict[CodeType, list[tuple[int | None, ...]]] = {}

    def kind(self, file: str) -> int:
        """LIBRARY, USER, OPTIMIZER (torch's own, whose operations are not the user's) or CLOSURE (called by one)."""
        kind = self.kinds.get(file)
        if kind is None:
            kind = self.kinds[file] = self._judge(file)
        return kind

    def _judge(self, file: str) -> int:
        if file.startswith("<"):
            # A cell of a notebook has its source in linecache; frozen and generated modules have none, or are of fx.
            return USER if linecache.getline(file, 1) and not file.startswith("<eval_with_key>") else LIBRARY
        real = os.path.realpath(file)
        if real.startswith(PACKAGE):
            return CLOSURE if real == _CLOSURES else LIBRARY
        if any(real.startswith(own) for own in self.own):
            return USER
        if real.startswith(_OPTIMIZERS) and not real.endswith("swa_utils.py"):
            return OPTIMIZER
        # Folders that PYTHONPATH or a .pth file adds may be those of another environment.
        installed = not _INSTALLED.isdisjoint(real.split(os.sep))
        return LIBRARY if installed or real.startswith(self.libraries) else USER

    def find(self, frame: FrameType | None) -> Site | None:
        """The innermost frame of the user's from `frame` outwards.

        None where there is none, and for what torch's optimizers do inside: that is no line of the user's. The closure
        of a step is not their doing, though they call it.
        """
        kinds = self.kinds
        while frame is not None:
            code = frame.f_code
            kind = kinds.get(code.co_filename)
            if kind is None:
                kind = self.kind(code.co_filename)
            if kind == USER and code.co_name not in PASSING:
                return code, frame.f_lasti
            if kind > USER:
                return self._outside(frame) if kind == CLOSURE else None
            frame = frame.f_back
        return None

    def here(self) -> Site | None:
        """The user's line that is being run now."""
        return self.find(sys._getframe(1))

    def caller(self) -> Site | None:
        """The user's line that is being run now, seen through torch's optimizers as well."""
        return self._outside(sys._getframe(1))

    def _outside(self, frame: FrameType | None) -> Site | None:
        while frame is not None and self.kind(frame.f_code.co_filename) != USER:
            frame = frame.f_back
        return self.find(frame)

    def builders(self) -> tuple[Site, ...]:
        """The user's line whose call runs the constructors that are at work now, and those that called its function."""
        own = self._own(sys._getframe(1))
        return tuple(islice((site for site in own if not _is_constructor(site)), _BUILDERS))

    def constructors(self) -> tuple[Site, ...]:
        """The lines of the user's that are being run now, the innermost first, if a constructor is among them.

        What a comprehension runs lies on the line of the comprehension.
        """
        own = tuple(islice((site for site in self._own(sys._getframe(1)) if not _is_comprehension(site)), _MAKERS))
        return own if any(map(_is_constructor, own)) else ()

    def _own(self, frame: FrameType | None) -> Iterator[Site]:
        """The user's lines that are being run now, the innermost first."""
        while frame is not None:
            if self.kind(frame.f_code.co_filename) == USER:
                yield frame.f_code, frame.f_lasti
            frame = frame.f_back

    def position(self, place: Site) -> tuple[int, int, int, int] | None:
        """Line, column, end line and end column (columns in UTF-8 bytes from 0) of the expression at a site."""
        code, lasti = place
        table = self._positions.get(code)
        if table is None:
            table = self._positions[code] = list(code.co_positions())
        index = lasti // 2
        if not 0 <= index < len(table):
            return None
        line, end_line, column, end_column = table[index]
        if line is None or end_line is None or column is None or end_column is None:
            return None
        return line, column, end_line, end_column

    def span(self, place: Site | None) -> Span | None:
        """The span of the expression at a site, or of its line where the interpreter kept no columns."""
        if place is None:
            return None
        code, lasti = place
        file = self.name(code.co_filename)
        position = self.position(place)
        if position is None or position[:2] == position[2:]:
            lines = [line for start, end, line in code.co_lines() if start <= lasti < end and line]
            return Span(file, lines[0] if lines else code.co_firstlineno, function=code.co_qualname)
        line, column, end_line, end_column = position
        return Span(
            file,
            line,
            _characters(code.co_filename, line, column) + 1,
            end_line,
            _characters(code.co_filename, end_line, end_column) + 1,
            code.co_qualname,
        )

    def span_of(self, file: str, node: ast.expr | ast.stmt) -> Span:
        """The span of a node of a file's syntax tree."""
        end_line, end = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
        column, end_column = _characters(file, node.lineno, node.col_offset), _characters(file, end_line, end)
        return Span(self.name(file), node.lineno, column + 1, end_line, end_column + 1)

    def name(self, file: str) -> str:
        """The file's name as reports show it: relative where it lies below the folder of the run."""
        title = self.titles(file) if self.titles is not None else None
        if title is not None or file.startswith("<"):
            return title or file
        path = os.path.abspath(os.path.join(self.folder, file))
        return legible(path.removeprefix(self.folder))


def _is_constructor(place: Site) -> bool:
    return place[0].co_name == "__init__"


def _is_comprehension(place: Site) -> bool:
    return place[0].co_name in ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")


def legible(text: str) -> str:
    """The text without lone surrogates, which file names and arguments may hold and UTF-8 cannot."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _characters(file: str, line: int, offset: int) -> int:
    """How many characters of a line its first `offset` UTF-8 bytes are."""
    text = linecache.getline(file, line)
    if text.isascii():
        return offset
    return len(text.encode()[:offset].decode(errors="ignore"))
