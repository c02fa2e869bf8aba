r"""Text that is not ours, made safe for each place where it is shown.

Names, files, messages of exceptions and lines of source are the user's, and may hold anything. Every report takes what
it shows through `plain`, or through the one function here that is named for its destination:

- `shown` for lines of text, which a terminal shows or the log of a CI service reads; `plain` for whole facts;
- `code_span`, `prose` and `fence` for Markdown;
- `command_data` and `command_property` for workflow commands of GitHub;
- `html_value` for HTML, `dot_label` and `dot_string` for pictures;
- `sarif_message` for messages in SARIF, `printable_json` for JSON, which both hold the true names.

What cannot be seen, or would steer a terminal, is spelled as Python spells it: `\x1b`, `\n`, `\u202e`. Letters of all
alphabets stay as they are, and so does what is spelled already.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from markupsafe import Markup

from gradscope.graph.facts import Edit
from gradscope.graph.texts import throughout

_Facts = TypeVar("_Facts")
# Letters and marks that no font draws, and that `str.isprintable` lets through.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
# GitHub's runner takes a line that begins with `::`, after blanks, and a `##[` anywhere for commands.
_COMMAND = re.compile(r"(?<!\S):(?=:)|#(?=#\[)")


def shown(text: str, kept: str = "") -> str:
    """Text for a line of a terminal or a log: it moves no cursor, ends no line and is no command of a CI service."""
    return "".join(shown_letters(text, kept)) if _COMMAND.search(text) else spelled(text, kept)


def shown_letters(text: str, kept: str = "") -> list[str]:
    """How each letter of a text is shown; see `shown`."""
    letters = [letter if letter in kept else _letter(letter) for letter in text]
    for found in _COMMAND.finditer(text):
        letters[found.start()] = f"\\x{ord(found[0]):02x}"
    return letters


def spelled(text: str, kept: str = "") -> str:
    """Text in which all that cannot be seen is spelled, but for letters that are `kept`."""
    if _is_seen(text):
        return text
    return "".join(letter if letter in kept else _letter(letter) for letter in text)


def _is_seen(text: str) -> bool:
    return text.isprintable() and (text.isascii() or not any(letter in text for letter in _UNSEEN))


def _letter(letter: str) -> str:
    return letter if letter.isprintable() and letter not in _UNSEEN else ascii(letter)[1:-1]


def plain(facts: _Facts) -> _Facts:
    """The same findings, or the same report as data, with every text as it is `shown`.

    Edits stay as they are: they are code, which is shown when it has been put into its line.
    """
    return throughout(facts, shown, leave=(Edit,))


def plain_files(sources: Mapping[str, Mapping[int, str]]) -> dict[str, Mapping[int, str]]:
    """Lines of source by the names of their files, true and as they are `shown`."""
    return {**{shown(file): lines for file, lines in sources.items()}, **sources}


def code_span(text: str) -> str:
    """Markdown that shows a text letter by letter, as code: nothing in it ends the code or means anything."""
    text = spelled(text) or " "
    quotes = "`" * (_longest_run(text) + 1)
    # Markdown takes a blank away on both sides where there are two, and needs one beside a backtick.
    edge = " " if text.startswith("`") or text.endswith("`") or (text[0] == text[-1] == " " and text.strip()) else ""
    return f"{quotes}{edge}{text}{edge}{quotes}"


def fence(text: str, language: str = "text") -> str:
    """Markdown that shows lines as a block of code, whose fence is longer than any in the text."""
    marks = "`" * max(3, _longest_run(text) + 1)
    return "\n".join([marks + language, spelled(text, kept="\n\t"), marks])


def _longest_run(text: str) -> int:
    return max(map(len, re.findall(r"`+", text)), default=0)


_CODE = re.compile(r"`([^`]+)`")
_WORDS = re.compile(r"[A-Za-z0-9 .,;:'\"()/%=+|*>_-]*")
_LINKED = re.compile(r"://|www\.|mailto:|xmpp:|\bGH-\d|:[a-z+-][\w+-]*:", re.IGNORECASE)
_MEANT = re.compile(r"([*_|>])")


def prose(text: str, quotes: Collection[str] = ()) -> str:
    """Markdown for a sentence of ours, in which what stands in backticks is code.

    Our own words need no more than letters, digits and plain marks. A sentence that has anything else outside of its
    backticks, or one of those `quotes` in it that are names' own, is code as a whole: there is no telling which of its
    backticks are ours.
    """
    pieces = _CODE.split(spelled(text))
    words = pieces[::2]
    if any(quote in text for quote in quotes) or not all(_WORDS.fullmatch(piece) for piece in words):
        return code_span(text)
    if any(_LINKED.search(piece) for piece in words):
        return code_span(text)
    return "".join(code_span(piece) if place % 2 else _MEANT.sub(r"\\\1", piece) for place, piece in enumerate(pieces))


def command_data(text: str) -> str:
    """The text of a workflow command of GitHub: one line, which GitHub unfolds again where lines of ours end."""
    return spelled(text, kept="\n").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """A property of a workflow command, such as its file."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")


def html_value(value: object) -> object:
    """What a template of HTML puts in: of text, all that cannot be seen is spelled; ends of lines stay.

    The template escapes it then; markup of ours stays as it is.
    """
    return spelled(value, kept="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def dot_label(text: str) -> str:
    r"""Text in an HTML-like label of DOT, where Graphviz replaces `\N` and the like all the same."""
    return html.escape(spelled(text)).replace("\\", "\\\\") or " "


def dot_string(text: str) -> str:
    """Text in a quoted string of DOT, where Graphviz also reads entities of HTML."""
    return spelled(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


_LINK = re.compile(r"\](?=\()")


def sarif_message(text: str) -> str:
    """A plain text message of SARIF, in which `[words](target)` would be a link."""
    text = spelled(text, kept="\n")
    return re.sub(r"[\\\[\]]", r"\\\g<0>", text) if _LINK.search(text) else text


def printable_json(text: str) -> str:
    """The same JSON, in which what cannot be seen is written with escapes of JSON's: a terminal may show it."""
    if _is_seen(text.replace("\n", "")):
        return text
    return "".join(letter if letter == "\n" or _letter(letter) == letter else _json_escape(letter) for letter in text)


def _json_escape(letter: str) -> str:
    halves = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{halves[place] << 8 | halves[place + 1]:04x}" for place in range(0, len(halves), 2))
