"""A failing program made smaller: statements are taken out while it still fails."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable

MOST = 400  # tries, of about a second each


def smaller(source: str, fails: Callable[[str], bool]) -> str:
    """Take out of a program what it does not need to fail: long stretches of statements first, then single ones."""
    first = source.partition("\n")[0]
    tree = ast.parse(source)
    tries = 0

    def still(candidate: ast.Module) -> bool:
        nonlocal tries
        tries += 1
        return tries <= MOST and fails(f"{first}\n{ast.unparse(candidate)}\n")

    changed = still(tree)
    while changed and tries <= MOST:
        changed = False
        for place in range(len(bodies(tree))):
            if place >= len(bodies(tree)):
                break
            changed |= _shrunk(tree, place, still)
    return f"{first}\n{ast.unparse(tree)}\n"


def bodies(tree: ast.AST) -> list[list[ast.stmt]]:
    """Every list of statements, the outer ones first."""
    found = []
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and statements:
                found.append(statements)
    return found


def _shrunk(tree: ast.Module, place: int, still: Callable[[ast.Module], bool]) -> bool:
    """Take stretches out of one body, each half as long as those before."""
    changed = False
    length = len(bodies(tree)[place])
    while length:
        start = 0
        while start < len(bodies(tree)[place]):
            kept = copy.copy(body := bodies(tree)[place])
            if body[start : start + length] == [] or (len(body) == 1 and isinstance(body[0], ast.Pass)):
                break
            del body[start : start + length]
            if not body:
                body.append(ast.Pass())
            if still(tree):
                changed = True
                continue
            body[:] = kept
            start += length
        length //= 2
    return changed
