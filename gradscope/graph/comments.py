"""The comments of a program that speak to gradscope."""

from __future__ import annotations

import io
import tokenize

MARK = "gradscope:"


def comments_in(text: str) -> dict[int, str]:
    """These comments by their lines, counted from 1; what looks like one inside a string is none.

    Of a text that cannot be read to its end as Python, the lines that were not read are read one by one.
    """
    found: dict[int, str] = {}
    if MARK not in text:
        return found
    read = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            read = token.end[0]
            if token.type == tokenize.COMMENT and MARK in token.string:
                found[token.start[0]] = token.string
    except (tokenize.TokenError, SyntaxError):
        lines = text.split("\n")
        if len(lines) > 1:
            for number in range(read + 1, len(lines) + 1):
                comment = comments_in(lines[number - 1]).get(1)
                if comment is not None:
                    found[number] = comment
    return found
