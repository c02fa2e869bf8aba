"""Runs in which every text is hostile, made from the types of the facts: a new field is hostile by itself."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
import pyte
from msgspec import structs

from gradscope.graph.facts import Finding, Run

# Each holds `zq`, by which it is found again in what was written.
TEXTS = {
    "terminal": "zq\x1b[2J\x1b]0;evil\x07\x1b[31mred\x9b1;1H\x08\x0e\t\r\n\x0b\x0c\x7f\x00\x85\u2028\u2029zq",
    "bidi": "zq\u202ea\u2066b\u2069\u200f\u200b\ufeff\u00ad\u061c\U000e0041\u115f\ufff9\ue000\U0010ffff",
    "commands": "::error file=x::zq\n::set-output name=a::b ::warning::x ##[error]y\n  ::stop-commands::t zq",
    "blocks": "zq\n\n<img src=//evil/x> @octocat [click](//evil)\n\n# big\n- a\n1. b\n> c\n***\n|a|b|\n|-|-|\n<b>",
    "backticks": "pipe|`<img src=x onerror=alert(1)>`|@octocat ```\n```\n~~~\n``` zq `",
    "words": "zq` is fine; ignore `y",
    "links": "zq https://evil.org www.evil.org a@b.org #123 GH-123 o/r#1 $x^2$ :smile: [^1] &lt; ![i](x) [r]: x",
    "page": "</script><script>alert('zq')</script><img src=x onerror=\"alert(1)\"><!--</pre>{style}",
    "pictures": 'zq\\N\\G\\l{a|b}<b>"];x->y;//\\',
    "edges": " `zq` ",
    "half": "zq\ud800\udc80",
    "letters": "zq\u6f22\u5b57e\u0301\ud55c\u05d0\u0627\U0001f600",
}


def hints_of(kind: Any) -> dict[str, Any]:
    """The types of the fields."""
    names = kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else typing.get_type_hints(kind)
    hints = typing.get_type_hints(kind)
    return {name: hints[name] for name in names}


def whole(kind: Any, text: str) -> Any:
    """A value of a type in which everything that can be there is: all numbers are 0, all is true, all texts are this.

    Facts name each other by number: where all are 0, they name each other.
    """
    if kind is str:
        return text
    if kind is bool:
        return True
    if kind in (int, float):
        return kind(0)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return inner[0]
    if origin in (typing.Union, types.UnionType):
        return whole(next(one for one in inner if one is not type(None)), text)
    if origin is tuple:
        return tuple(whole(one, text) for one in inner if one is not Ellipsis)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {whole(inner[0], text): whole(inner[1], text)}
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):  # of a type of its own at each place
        fields = {name: inner[0] if isinstance(hint, TypeVar) else hint for name, hint in hints_of(origin).items()}
        return origin(**{name: whole(hint, text) for name, hint in fields.items()})
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    assert is_struct or dataclasses.is_dataclass(kind), f"how is a {kind} made?"
    hints = hints_of(kind)
    names = kind.__struct_fields__ if is_struct else [field.name for field in dataclasses.fields(kind)]
    given = {name: whole(hints[name], text) for name in names}
    if "end_column" in given:
        given |= {"line": 1, "column": 1, "end_line": 1, "end_column": 5}
    return kind(**given)


def run_of(text: str) -> Run:
    """A run with one fact of each kind, all texts of which are this one, and the lines of source that they cite."""
    lines = {text: {1: text, 2: f"\tx = '{text}'.detach()"}}
    run: Run = dataclasses.replace(whole(Run, text), sources=lines, step_count=1, backward_count=1, dry=None)
    return run


def findings_of(text: str) -> tuple[Finding, ...]:
    """A finding whose texts are all this one, and one that quotes it as rules do."""
    bare: Finding = structs.replace(whole(Finding, text), rule="detach")  # a rule of ours has a page
    quoted = structs.replace(
        bare,
        span=dataclasses.replace(bare.span, line=2, end_line=2, column=7, end_column=7 + len(text)),
        message=f"`{text}` never learns: its 4 parameters got no gradient in 20 steps",
        caret=f"the path from `{text}` to the loss is cut here",
        facts=(f"cut off: {text}.weight, {text}.bias",),
    )
    return bare, quoted


class Terminal:
    """What a terminal of boundless size does with some output."""

    def __init__(self, output: str) -> None:
        self.done: list[tuple[str, tuple[Any, ...]]] = []
        pyte.Stream(self).feed(output)  # type: ignore[arg-type]  # listens as a screen does
        lines = output.splitlines()
        self.screen = pyte.Screen(2 * max(map(len, lines), default=0) + 2, len(lines) + 1)
        pyte.Stream(self.screen).feed(output.replace("\n", "\r\n"))

    def __getattr__(self, event: str) -> Any:
        """Every event of the terminal is noted."""
        return lambda *args, **_: self.done.append((event, args))

    @property
    def colours(self) -> set[tuple[int, ...]]:
        """The changes of colour."""
        return {args for event, args in self.done if event == "select_graphic_rendition"}

    def deeds(self) -> set[str]:
        """What else it does but write lines in colours."""
        return {event for event, _ in self.done} - {"draw", "linefeed", "select_graphic_rendition"}

    def lines(self) -> list[str]:
        """What is read on the screen, with a blank for the second cell of wide letters."""
        return [
            "".join(self.screen.buffer[row][column].data or " " for column in range(self.screen.columns)).rstrip()
            for row in range(self.screen.lines)
        ]

    def styled(self) -> Iterator[str]:
        """The letters that do not look as letters do by default."""
        for row in self.screen.buffer.values():
            yield from (cell.data for cell in row.values() if cell._replace(data=" ") != self.screen.default_char)
