"""The cells that text takes on a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from wcwidth import wcwidth

from gradscope.reports.cells import Wrapper, cells, left, right, shortened
from gradscope.reports.escaping import spelled


def test_widths_are_those_of_terminals() -> None:
    """Letter by letter as terminals count them, but for signs that newer versions of Unicode have made wide."""
    letters = [letter for code in range(0x30000) if spelled(letter := chr(code)) == letter]
    other = [letter for letter in letters if cells(letter) != wcwidth(letter)]
    assert len(letters) > 100_000
    assert {(unicodedata.category(letter), wcwidth(letter)) for letter in other} <= {("So", 2), ("No", 2)}
    assert len(other) < 300


def test_padding_counts_cells() -> None:
    """Text is padded to the same end whatever its letters are."""
    assert (left("\u6f22", 4), right("\u6f22", 4), left("e\u0301", 3), right("abcd", 2)) == (
        "\u6f22  ",
        "  \u6f22",
        "e\u0301  ",
        "abcd",
    )


@pytest.mark.parametrize("text", ["abcdefgh" * 9, "\u6f22\u5b57" * 20, "e\u0301" * 60, "\u6f22e\u0301x" * 20])
@pytest.mark.parametrize("most", [16, 17, 32])
def test_long_text_keeps_both_ends(text: str, most: int) -> None:
    """What is left out is the middle; no mark is torn from its letter."""
    short = shortened(text, most)
    head, tail = short.split("...")
    assert most - 5 <= cells(short) <= most
    assert text.startswith(head)
    assert text.endswith(tail)
    assert not any(map(unicodedata.combining, (tail[0], text[len(head)])))
    assert shortened(text, 1000) == text


def test_lines_are_broken_at_blanks_only() -> None:
    """Lines have as many cells as there is room for; a word that is longer stands alone, whole."""
    lines = Wrapper(20, "- ", "  ").wrap("\u6f22\u5b57 " * 8 + "x" * 30 + " end")
    assert [cells(line) for line in lines] == [16, 16, 11, 32, 5]
    assert lines[3] == "  " + "x" * 30
