"""The cells of a terminal that text takes: two for wide letters, none for marks that stand on the letter before."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

_MARKS = frozenset({"Mn", "Me", "Mc"})
_JOINED = (range(0x1160, 0x1200), range(0xD7B0, 0xD800))  # vowels and finals of Hangul, written into the letter before


def cells(text: str) -> int:
    """How many cells a text without control characters takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(letter: str) -> int:
    if letter.isascii():
        return 1
    if unicodedata.category(letter) in _MARKS or any(ord(letter) in span for span in _JOINED):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def left(text: str, width: int) -> str:
    """The text with blanks behind it up to a width in cells."""
    return text + " " * (width - cells(text))


def right(text: str, width: int) -> str:
    """The text with blanks before it up to a width in cells."""
    return " " * (width - cells(text)) + text


def shortened(text: str, most: int) -> str:
    """The text with its middle left out where it takes more than so many cells."""
    if cells(text) <= most:
        return text
    return f"{_head(text, most // 2 - 2)}...{_tail(text, most // 2 - 1)}"


def distinct(texts: Iterable[str], most: int) -> dict[str, str]:
    """Each text, shortened where it takes more than so many cells, so that no two read alike.

    Of those that would, what they have in common is left out rather than what tells them apart. Where even that does
    not help, they stay whole.
    """
    short = {text: shortened(text, most) for text in texts}
    for alike in _alike(short):
        start, end = _common(alike)
        for text in alike:
            rest = text[start:]
            if cells(rest) + 3 > most:
                rest = shortened(text[start : len(text) - end], most - 6) + "..."
            short[text] = f"{_head(text, max(0, most - 3 - cells(rest)))}...{rest}"
    for alike in _alike(short):
        short.update({text: text for text in alike})
    return short


def _alike(short: Mapping[str, str]) -> list[list[str]]:
    """The groups of texts that were shortened to the same."""
    groups: dict[str, list[str]] = {}
    for text, shown in short.items():
        groups.setdefault(shown, []).append(text)
    return [group for group in groups.values() if len(group) > 1]


def _common(texts: Sequence[str]) -> tuple[int, int]:
    """How many letters these begin and end with in common, up to a dot of theirs."""
    first = texts[0]
    start = first.rfind(".", 0, _shared(texts)) + 1
    end = _shared([text[start:][::-1] for text in texts])
    tail = first[len(first) - end :]
    return start, len(tail) - tail.find(".") if "." in tail else 0


def _shared(texts: Sequence[str]) -> int:
    """How many letters these begin with in common."""
    columns = enumerate(zip(*texts, strict=False))
    return next((place for place, letters in columns if len(set(letters)) > 1), min(map(len, texts)))


def _head(text: str, most: int) -> str:
    """As much of the beginning as fits, with the marks on its last letter."""
    taken = 0
    for place, letter in enumerate(text):
        taken += _cells(letter)
        if taken > most:
            return text[:place]
    return text


def _tail(text: str, most: int) -> str:
    """As much of the end as fits, from a letter on that is no mark."""
    taken, start = 0, len(text)
    for place in range(len(text) - 1, -1, -1):
        width = _cells(text[place])
        taken += width
        if taken > most:
            break
        if width:
            start = place
    return text[start:]


class _Chunk(str):
    """A word whose length is the cells that it takes."""

    __slots__ = ()

    def __len__(self) -> int:
        return cells(str(self))


class Wrapper(textwrap.TextWrapper):
    """Breaks lines at blanks only, and counts cells where textwrap counts letters."""

    def __init__(self, width: int, initial_indent: str = "", subsequent_indent: str = "") -> None:
        super().__init__(
            width,
            initial_indent=initial_indent,
            subsequent_indent=subsequent_indent,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _split(self, text: str) -> list[str]:
        return [_Chunk(chunk) for chunk in super()._split(text)]
