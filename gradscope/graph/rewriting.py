"""Edits of the user's source, computed from its syntax tree: what a mend is made of.

A `Text` is the whole source of a file, as it was when it ran. Edits are exact: what they do not name stays as it is,
comments and blanks too. What cannot be changed for sure gives no edit.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias, TypeVar

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Span

_Node = TypeVar("_Node", bound=ast.AST)
Edits: TypeAlias = tuple[Edit, ...]


class Text:
    """The source of one file, with the questions that edits are made of. Raises SyntaxError where it is no Python."""

    def __init__(self, file: str, lines: Sequence[str]) -> None:
        self.file = file
        self.lines = lines
        self.tree = ast.parse("\n".join(lines) + "\n")

    @cached_property
    def parents(self) -> Mapping[ast.AST, ast.AST]:
        """The node that each node stands in."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @cached_property
    def _in_strings(self) -> frozenset[int]:
        """The lines that begin inside of a string: their blanks are a part of it."""
        found: set[int] = set()
        start: int | None = None
        for token in tokenize.generate_tokens(io.StringIO("\n".join(self.lines) + "\n").readline):
            kind = tokenize.tok_name[token.type]
            if kind == "STRING":
                found.update(range(token.start[0] + 1, token.end[0] + 1))
            elif kind == "FSTRING_START":
                start = token.start[0] if start is None else start
            elif kind == "FSTRING_END" and start is not None:
                found.update(range(start + 1, token.end[0] + 1))
                start = None
        return frozenset(found)

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> Span:
        """Where a node stands."""
        return Span(self.file, *self._box(node))

    def _box(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int, int, int]:
        """The line and the column at which a node begins, and those at which it ends."""
        last, end = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
        return node.lineno, self._column(node.lineno, node.col_offset), last, self._column(last, end)

    def _column(self, line: int, offset: int) -> int:
        """The column of a byte of a line: columns count characters, from 1."""
        return len(self.lines[line - 1].encode()[:offset].decode(errors="ignore")) + 1

    def source(self, node: ast.expr | ast.stmt) -> str:
        """The text of a node."""
        line, column, last, end = self._box(node)
        found = list(self.lines[line - 1 : last])
        found[-1] = found[-1][: end - 1]
        found[0] = found[0][column - 1 :]
        return "\n".join(found)

    def at(self, span: Span, *kinds: type[_Node]) -> _Node | None:
        """The smallest node of some kinds in which a span lies; without columns, the first that begins on its line."""
        found: list[tuple[tuple[int, int], int, _Node]] = []
        for number, node in enumerate(ast.walk(self.tree)):
            box = self._box(node) if isinstance(node, (ast.expr, ast.stmt)) else None
            if isinstance(node, kinds) and box is not None and _holds(box, span):
                found.append(((box[2] - box[0], box[3] - box[1] if box[2] == box[0] else 0), number, node))
        return min(found, key=lambda entry: entry[:2])[2] if found else None

    def statement(self, node: ast.AST) -> ast.stmt | None:
        """The innermost statement that a node belongs to, itself included."""
        found: ast.AST | None = node
        while found is not None and not isinstance(found, ast.stmt):
            found = self.parents.get(found)
        return found

    def around(self, node: ast.AST, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        """The nodes of some kinds that a node stands in, from the inside out."""
        found = self.parents.get(node)
        while found is not None:
            if isinstance(found, kinds):
                yield found
            found = self.parents.get(found)

    def loops(self, node: ast.AST) -> Iterator[ast.For | ast.While]:
        """The loops around a node within its function, from the inside out."""
        for parent in self.around(node, ast.For, ast.While, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda):
            if not isinstance(parent, (ast.For, ast.While)):
                return
            yield parent

    def block(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statements among which one stands."""
        parent = self.parents[statement]
        for field in ("body", "orelse", "finalbody"):
            found = getattr(parent, field, None)
            if isinstance(found, list) and statement in found:
                return found
        return [statement]

    def is_alone(self, statement: ast.stmt) -> bool:
        """Whether nothing else stands on the lines of a statement but a comment behind it."""
        line, column, last, end = self._box(statement)
        behind = self.lines[last - 1][end - 1 :].strip()
        return not self.lines[line - 1][: column - 1].strip() and (not behind or behind.startswith("#"))

    def indent(self, statement: ast.stmt) -> str:
        """The blanks before a statement."""
        line = self.lines[statement.lineno - 1]
        return line[: len(line) - len(line.lstrip())]

    # --- what a program calls things -------------------------------------------------------------------------------

    @cached_property
    def torch(self) -> str | None:
        """What `torch` is imported as; None where it is not."""
        return self._imported("torch")

    @cached_property
    def nn(self) -> str | None:
        """What `torch.nn` is called; None where it is out of reach."""
        return self._imported("torch.nn") or (f"{self.torch}.nn" if self.torch is not None else None)

    @cached_property
    def functional(self) -> str | None:
        """What `torch.nn.functional` is called; None where it is out of reach."""
        named = self._imported("torch.nn.functional")
        return named or (f"{self.nn}.functional" if self.nn is not None else None)

    def _imported(self, module: str) -> str | None:
        package, _, last = module.rpartition(".")
        for node in self.tree.body:
            if isinstance(node, ast.Import):
                found = (alias.asname or alias.name for alias in node.names if alias.name == module)
                name = next(found, None)
            elif isinstance(node, ast.ImportFrom) and node.module == package and package:
                name = next((alias.asname or alias.name for alias in node.names if alias.name == last), None)
            else:
                continue
            if name is not None:
                return name
        return None

    # --- edits -----------------------------------------------------------------------------------------------------

    def replaced(self, node: ast.expr | ast.stmt | ast.keyword, text: str) -> Edit:
        """Another text for a node."""
        return Edit(self.span(node), text)

    def appended(self, node: ast.expr, link: str) -> Edits:
        """An expression with another link at its end: `.mean()` behind `f(x)`, and behind `a + b` in brackets."""
        if _is_closed(node):
            _, _, line, column = self._box(node)
            return (Edit(Span(self.file, line, column, line, column), link),)
        return (self.replaced(node, f"({self.source(node)}){link}"),)

    def appended_element(self, node: ast.expr, text: str) -> Edits:
        """Text right behind an element of a list, or behind an argument."""
        _, _, line, column = self._box(node)
        return (Edit(Span(self.file, line, column, line, column), text),)

    def bracketed(self, node: ast.expr) -> str:
        """The text of an expression, in brackets where something could come between its parts."""
        return self.source(node) if _is_closed(node) else f"({self.source(node)})"

    def link(self, node: ast.Call | ast.Attribute) -> Span | None:
        """The last link of a chain with its dot: `.detach()` of `f(x).detach()`, `.data` of `x.data`."""
        attribute = node.func if isinstance(node, ast.Call) else node
        if not isinstance(attribute, ast.Attribute):
            return None
        name = self.attribute(attribute)
        line = name.line
        before = self.lines[line - 1][: (name.column or 1) - 1].rstrip()
        while not before and line > attribute.lineno:
            line -= 1
            before = self.lines[line - 1].rstrip()
        last = self.span(node)
        return Span(self.file, line, len(before), last.end_line, last.end_column) if before.endswith(".") else None

    def attribute(self, node: ast.Attribute) -> Span:
        """Where the name of an attribute stands: `detach` of `f(x).detach`."""
        _, _, line, end = self._box(node)
        return Span(self.file, line, end - len(node.attr), line, end)

    def with_keyword(self, call: ast.Call, name: str, value: str) -> Edits:
        """A call with an argument of this name: a new one behind the others, or another value for the one it has."""
        for keyword in call.keywords:
            if keyword.arg == name:
                return (self.replaced(keyword.value, value),)
        if len(call.args) == 1 and isinstance(call.args[0], ast.GeneratorExp):
            return ()
        last = self._tokens(call)[-2]
        text = f"{name}={value}"
        text = text if last[0] == "(" else f" {text}" if last[0] == "," else f", {text}"
        return (Edit(Span(self.file, *last[2], *last[2]), text),)

    def without_keyword(self, call: ast.Call, name: str) -> Edits:
        """A call without its argument of this name, and without the comma that goes with it."""
        keyword = next((keyword for keyword in call.keywords if keyword.arg == name), None)
        if keyword is None:
            return ()
        line, column, end_line, end = self._box(keyword)
        tokens = self._tokens(call)
        place = next(number for number, token in enumerate(tokens) if token[1] == (line, column))
        after = next(number for number, token in enumerate(tokens) if token[1] >= (end_line, end))
        if tokens[place - 1][0] == ",":
            return (Edit(Span(self.file, *tokens[place - 1][1], end_line, end), ""),)
        last = tokens[after + 1][1] if tokens[after][0] == "," else (end_line, end)
        return (Edit(Span(self.file, line, column, *last), ""),)

    def without_argument(self, call: ast.Call, argument: ast.expr) -> Edits:
        """A call without one of its arguments by place, and without the comma that goes with it."""
        line, column, end_line, end = self._box(argument)
        tokens = self._tokens(call)
        before = [token for token in tokens if token[2] <= (line, column)]
        after = [token for token in tokens if token[1] >= (end_line, end)]
        if before[-1][0] == ",":
            return (Edit(Span(self.file, *before[-1][1], end_line, end), ""),)
        last = after[1][1] if after[0][0] == "," else (end_line, end)
        return (Edit(Span(self.file, line, column, *last), ""),)

    def renamed(self, node: ast.Attribute, name: str) -> Edits:
        """Another name for an attribute: `log_softmax` for `softmax` in `torch.softmax`."""
        return (Edit(self.attribute(node), name),)

    def cut_out(self, span: Span) -> Edits:
        """The text of a span less."""
        return (Edit(span, ""),)

    def _tokens(self, node: ast.expr) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
        """The tokens of an expression in brackets, with the places at which they begin and end; comments are none."""
        line, column, _, _ = self._box(node)
        found = []
        for token in tokenize.generate_tokens(io.StringIO(self.source(node)).readline):
            if token.string.strip() and token.type != tokenize.COMMENT:
                places = [(line + row - 1, at + (column if row == 1 else 1)) for row, at in (token.start, token.end)]
                found.append((token.string, places[0], places[1]))
        return found

    def wrapped(self, first: ast.stmt, last: ast.stmt, head: str) -> Edits:
        """Statements that follow each other under a new head, such as `with torch.no_grad():`."""
        block = self.block(first)
        body = block[block.index(first) : block.index(last) + 1]
        if not body or not all(self.is_alone(statement) for statement in body):
            return ()
        begin, end = self._first_line_of([first]), last.end_lineno or last.lineno
        outer = self.indent(first)
        inner = "\t" if outer.endswith("\t") else "    "
        lines = (self.lines[number - 1] for number in range(begin, end + 1))
        shifted = [
            line if number in self._in_strings or not line.strip() else inner + line
            for number, line in enumerate(lines, begin)
        ]
        return (self._lines(begin, end, [outer + head, *shifted]),)

    def left_out(self, statement: ast.stmt) -> Edits:
        """A statement less, with its lines; `pass` for the only one of a block. None where others share its line."""
        if not self.is_alone(statement):
            return ()
        if len(self.block(statement)) == 1:
            return (self.replaced(statement, "pass"),)
        return (self._lines(statement.lineno, statement.end_lineno or statement.lineno, ()),)

    def before(self, statement: ast.stmt, *code: str) -> Edits:
        """New statements before one, as far to the right; none where others share its line."""
        if not self.is_alone(statement):
            return ()
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", ()))])
        text = "".join(f"{self.indent(statement)}{line}\n" for line in code)
        return (Edit(Span(self.file, first, 1, first, 1), text),)

    def after(self, statement: ast.stmt, *code: str) -> Edits:
        """New statements behind one, as far to the right; none where others share its line."""
        if not self.is_alone(statement):
            return ()
        last = statement.end_lineno or statement.lineno
        end = len(self.lines[last - 1]) + 1
        text = "".join(f"\n{self.indent(statement)}{line}" for line in code)
        return (Edit(Span(self.file, last, end, last, end), text),)

    def moved(self, statement: ast.stmt, *, before: ast.stmt | None = None, after: ast.stmt | None = None) -> Edits:
        """A statement at another place of the file; it takes the indent of the place."""
        target = before or after
        if target is None or not self.is_alone(statement) or not self.is_alone(target):
            return ()
        code = self._shifted(statement, self.indent(target))
        if code is None:
            return ()
        taken = self.left_out(statement)
        put = self.before(target, *code) if before is not None else self.after(target, *code)
        return (*taken, *put) if taken and put else ()

    def _shifted(self, statement: ast.stmt, indent: str) -> list[str] | None:
        """The lines of a statement less the indent that it is to have; None where a string forbids another one."""
        own = self.indent(statement)
        numbers = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        if own != indent and any(number in self._in_strings for number in numbers):
            return None
        return [self.lines[number - 1].removeprefix(own) for number in numbers]

    def unwrapped(self, block: ast.With, item: ast.withitem) -> Edits:
        """A `with` without one of its items; with none left, its statements stand where it stood."""
        if len(block.items) > 1:
            others = [other for other in block.items if other is not item]
            first, last = block.items[0].context_expr, (block.items[-1].optional_vars or block.items[-1].context_expr)
            start, end = self.span(first), self.span(last)
            text = ", ".join(self._item(other) for other in others)
            return (Edit(Span(self.file, start.line, start.column, end.end_line, end.end_column), text),)
        inner = block.body[0]
        if not self.is_alone(block) or inner.lineno == block.lineno or item.optional_vars is not None:
            return ()
        less = len(self.indent(inner)) - len(self.indent(block))
        lines = []
        for number in range(self._first_line_of(block.body), (block.end_lineno or block.lineno) + 1):
            line = self.lines[number - 1]
            lines.append(line if number in self._in_strings or line[:less].strip() else line[less:])
        return (self._lines(block.lineno, block.end_lineno or block.lineno, lines),)

    def _first_line_of(self, body: Sequence[ast.stmt]) -> int:
        """The line at which a block begins: comments above its first statement belong to it."""
        first: int = min([body[0].lineno, *(node.lineno for node in getattr(body[0], "decorator_list", ()))])
        while self.lines[first - 2].strip().startswith("#"):
            first -= 1
        return first

    def _item(self, item: ast.withitem) -> str:
        called = f" as {self.source(item.optional_vars)}" if item.optional_vars is not None else ""
        return self.source(item.context_expr) + called

    def lines_left_out(self, first: int, last: int) -> Edits:
        """Whole lines less."""
        return (self._lines(first, last, ()),)

    def undecorated(self, decorator: ast.expr) -> Edits:
        """A definition without one of its decorators."""
        line = self.lines[decorator.lineno - 1]
        if not line.lstrip().startswith("@"):
            return ()
        return (self._lines(decorator.lineno, decorator.end_lineno or decorator.lineno, ()),)

    def _lines(self, first: int, last: int, lines: Sequence[str]) -> Edit:
        """Other lines in the place of whole ones."""
        text = "".join(f"{line}\n" for line in lines)
        if last < len(self.lines):
            return Edit(Span(self.file, first, 1, last + 1, 1), text)
        end = len(self.lines[last - 1]) + 1
        return Edit(Span(self.file, first, 1, last, end), text.removesuffix("\n"))


# What another link can follow as it stands. Numbers are none of these: `1.mean()` is no Python.
_CLOSED = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.List, ast.Dict, ast.ListComp, ast.DictComp)


def _is_closed(node: ast.expr) -> bool:
    return isinstance(node, _CLOSED)


def _holds(box: tuple[int, int, int, int], span: Span) -> bool:
    if span.column is None or span.end_column is None:
        return box[0] == span.line
    return box[:2] <= (span.line, span.column) and (span.end_line or span.line, span.end_column) <= box[2:]


def text_of(ask: Ask, file: str) -> Text | None:
    """A question: the whole text of a file, None where it was not kept, cannot be changed or is no Python."""
    if file not in ask.run.whole:
        return None
    kept = ask.run.sources.get(file, {})
    try:
        return Text(file, [kept.get(number, "") for number in range(1, max(kept, default=0) + 1)])
    except (SyntaxError, ValueError):
        return None


def head(function: ast.FunctionDef) -> ast.stmt:
    """The first statement of a function behind its docstring."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.body[1] if text and len(function.body) > 1 else first


def statement_at(ask: Ask, span: Span | None) -> tuple[Text | None, ast.stmt | None]:
    """The innermost statement in which a span lies, with the text of its file; None where that is not known."""
    text = ask(text_of, span.file) if span is not None else None
    return text, text.at(span, ast.stmt) if text is not None and span is not None else None


def node_at(ask: Ask, span: Span | None, *kinds: type[_Node]) -> tuple[Text, _Node] | None:
    """The text of the file of a span, with the smallest node of some kinds around that span."""
    text = ask(text_of, span.file) if span is not None else None
    node = text.at(span, *kinds) if text is not None and span is not None else None
    return (text, node) if text is not None and node is not None else None


def texts(ask: Ask) -> list[Text]:
    """The texts of all files that can be changed."""
    return [text for file in ask.run.whole if (text := ask(text_of, file)) is not None]


def called(node: ast.expr) -> str:
    """The last part of the name of what a call calls: `relu` of `F.relu(x)` and `F.relu`."""
    named = node.func if isinstance(node, ast.Call) else node
    return named.attr if isinstance(named, ast.Attribute) else named.id if isinstance(named, ast.Name) else ""


def applied(edits: Iterable[Edit], lines: Sequence[str]) -> list[str]:
    """The lines of a file after edits of it. Edits of one place are put in in their order."""
    text = "\n".join(lines)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    pieces: list[str] = []
    done = 0
    for edit in sorted(edits, key=lambda edit: _bounds(edit.span, starts)):
        first, last = _bounds(edit.span, starts)
        if first < done:
            raise ValueError("edits of one mend overlap")
        pieces += [text[done:first], edit.text]
        done = last
    return "".join([*pieces, text[done:]]).split("\n")


def _bounds(span: Span, starts: Sequence[int]) -> tuple[int, int]:
    end = span.end_line or span.line
    first = starts[span.line - 1] + (span.column or 1) - 1
    last = starts[end - 1] + span.end_column - 1 if span.end_column is not None else starts[end] - 1
    return min(first, starts[-1]), min(last, starts[-1])
