"""The program's own source as syntax trees."""

from __future__ import annotations

import ast
import linecache
from types import CodeType
from typing import TypeAlias

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def tree_of(file: str) -> ast.Module | None:
    """The syntax tree of a file, None where its source is not at hand or is not Python."""
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return None


def definition_of(code: CodeType) -> Definition | None:
    """The definition that a code object was compiled from; None where the source is not at hand, or a lambda."""
    tree = tree_of(code.co_filename)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, Definition) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if code.co_firstlineno in (first, node.lineno):
                return node
    return None
