"""Edits that are computed from the syntax tree of a source."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Run, Span
from gradscope.graph.rewriting import Edits, Text, applied, text_of

SOURCE = """\
import torch

def train(model, data):
    for x in data:
        with torch.no_grad():
            # the features
            h = model(x)

            note = '''kept
  as it is'''
        optimizer.zero_grad()  # each time
        loss = (h - "ü".count("ü")).detach().sum()
        if loss > 3:
            loss.backward()
        optimizer.step(); count += 1


@torch.no_grad()
@other
def look(model): return model()
"""


def text(source: str = SOURCE) -> Text:
    """A source as the text of a file."""
    return Text("train.py", source.splitlines())


def after(edits: Edits, source: str = SOURCE) -> str:
    """The source with edits, which must still be Python."""
    found = "\n".join(applied(edits, source.splitlines())) + "\n"
    ast.parse(found)
    return found


def find(source: Text, kind: type[ast.AST], code: str) -> ast.AST:
    """The first node of a kind with a text."""
    return next(
        node
        for node in ast.walk(source.tree)
        if isinstance(node, kind) and isinstance(node, (ast.expr, ast.stmt)) and source.source(node).startswith(code)
    )


def statement(source: Text, code: str) -> ast.stmt:
    """The first statement that begins with a text."""
    found = find(source, ast.stmt, code)
    assert isinstance(found, ast.stmt)
    return found


def test_a_with_goes_and_its_block_stays() -> None:
    """The statements of a block stand where the `with` stood, with their comments, blank lines and strings."""
    source = text()
    block = statement(source, "with")
    assert isinstance(block, ast.With)
    assert (
        after(source.unwrapped(block, block.items[0])).split("optimizer.zero")[0]
        == """\
import torch

def train(model, data):
    for x in data:
        # the features
        h = model(x)

        note = '''kept
  as it is'''
        """
    )


def test_one_item_of_a_with_goes() -> None:
    """The others stay."""
    source = text("with a(), torch.no_grad(), open('x') as f:\n    pass\n")
    block = statement(source, "with")
    assert isinstance(block, ast.With)
    assert after(source.unwrapped(block, block.items[1]), "\n".join(source.lines)).startswith(
        "with a(), open('x') as f:\n"
    )


def test_a_with_on_one_line_gives_no_edit() -> None:
    """Where the block begins on the line of the `with`, nothing is changed."""
    source = text("with torch.no_grad(): h = 1\n")
    block = statement(source, "with")
    assert isinstance(block, ast.With)
    assert source.unwrapped(block, block.items[0]) == ()


def test_statements_go_come_and_move() -> None:
    """Whole lines go; the only statement of a block becomes `pass`; what is moved takes the indent of its new place."""
    source = text()
    clear, backward, loss = (statement(source, code) for code in ("optimizer.zero", "loss.backward", "loss ="))
    assert "zero_grad" not in after(source.left_out(clear))
    assert "            pass\n" in after(source.left_out(backward))
    assert "        a = 1\n        b = 2\n        loss = " in after(source.before(loss, "a = 1", "b = 2"))
    assert ".sum()\n        print(loss)\n" in after(source.after(loss, "print(loss)"))
    moved = after(source.moved(clear, after=backward))
    assert "            loss.backward()\n            optimizer.zero_grad()  # each time\n" in moved
    assert moved.count("zero_grad") == 1


def test_statements_that_share_a_line_stay() -> None:
    """What stands on a line with something else gives no edit."""
    source = text()
    step = statement(source, "optimizer.step")
    assert source.left_out(step) == source.before(step, "a") == source.after(step, "a") == ()
    assert source.moved(step, after=statement(source, "loss =")) == ()


def test_a_decorator_goes() -> None:
    """The other one stays."""
    source = text()
    look = statement(source, "def look")
    assert isinstance(look, ast.FunctionDef)
    assert after(source.undecorated(look.decorator_list[0])).endswith("\n\n@other\ndef look(model): return model()\n")


def test_places_count_characters() -> None:
    """Columns count characters where bytes are more, and a span finds the smallest node that holds it."""
    source = text()
    call = find(source, ast.Call, '(h - "ü".count("ü")).detach()')
    assert isinstance(call, ast.expr)
    span = source.span(call)
    assert source.lines[span.line - 1][(span.column or 0) - 1 : (span.end_column or 0) - 1].endswith(".sum()")
    inner = source.at(Span("train.py", 12, 17, 12, 45), ast.Call)
    assert inner is not None
    assert source.source(inner) == '(h - "ü".count("ü")).detach()'
    assert source.at(Span("train.py", 12), ast.Assign) is statement(source, "loss =")
    assert source.at(Span("train.py", 99), ast.Assign) is None
    assert [type(node) for node in source.around(inner, ast.For, ast.FunctionDef)] == [ast.For, ast.FunctionDef]


def test_only_whole_texts_that_are_python_are_read() -> None:
    """A file of which some lines were kept, or that is no Python, gives nothing."""
    kept = {"a.py": {1: "x = 1"}, "b.py": {1: "x ="}, "c.py": {1: "x"}}
    ask = Ask(Run("0", "2", sources=kept, whole=("a.py", "b.py")))
    found = ask(text_of, "a.py")
    assert found is not None
    assert found.lines == ["x = 1"]
    assert ask(text_of, "b.py") is ask(text_of, "c.py") is ask(text_of, "d.py") is None


@given(st.lists(st.text("ab\u00fc ", max_size=5), min_size=1, max_size=5), st.data())
def test_edits_change_what_they_name(lines: list[str], data: st.DataObject) -> None:
    """Edits that do not overlap give what cutting and joining the whole text gives, whatever their order."""
    whole = "\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    edits, expected, done = [], "", 0
    for number, (first, last) in enumerate(pairs):
        places = [(whole.count("\n", 0, at) + 1, at - (whole.rfind("\n", 0, at) + 1) + 1) for at in (first, last)]
        edits.append(Edit(Span("f", *places[0], *places[1]), f"<{number}>"))
        expected += whole[done:first] + f"<{number}>"
        done = last
    expected += whole[done:]
    assert applied(edits, lines) == expected.split("\n")


def test_edits_that_overlap_are_refused() -> None:
    """They cannot both be what is meant."""
    with pytest.raises(ValueError, match="overlap"):
        applied([Edit(Span("f", 1, 1, 1, 4), ""), Edit(Span("f", 1, 2, 1, 3), "")], ["abcd"])


CHAIN = """\
import torch as t
from torch import nn as layers

loss = f(a + b, (c),  # why
         reduction="none",
)
g = f(x for x in y)
h = (a - b) \\
    .detach()
"""


def call(source: Text, code: str) -> ast.Call:
    """The first call with a text."""
    found = find(source, ast.Call, code)
    assert isinstance(found, ast.Call)
    return found


def test_arguments_come_change_and_go() -> None:
    """A new argument stands behind the last one and its comma; one that goes takes its comma along."""
    source = text(CHAIN)
    loss = call(source, "f(a + b")
    more = after(source.with_keyword(loss, "weight", "w"), CHAIN)
    assert 'reduction="none", weight=w\n)' in more
    assert 'reduction="sum"' in after(source.with_keyword(loss, "reduction", '"sum"'), CHAIN)
    assert "(c),  # why\n)" not in after(source.without_keyword(loss, "reduction"), CHAIN)
    assert "reduction" not in after(source.without_keyword(loss, "reduction"), CHAIN)
    assert source.without_keyword(loss, "weight") == ()
    assert source.with_keyword(call(source, "f(x for"), "weight", "w") == ()
    assert "f(weight=w)" in after(text("f()\n").with_keyword(call(text("f()\n"), "f()"), "weight", "w"), "f()\n")
    first = "f(a=1, b=2)\n"
    assert after(text(first).without_keyword(call(text(first), "f("), "a"), first) == "f(b=2)\n"


def test_links_of_chains_go_and_come() -> None:
    """A link goes with its dot, also from the line before; behind an operator, a new one needs brackets."""
    source = text(CHAIN)
    chain = call(source, "(a - b)")
    link = source.link(chain)
    assert link is not None
    assert after((Edit(link, ""),), CHAIN).endswith("h = (a - b) \\\n    \n")
    assert source.link(call(source, "f(a + b")) is None
    total = find(source, ast.BinOp, "a + b")
    assert isinstance(total, ast.BinOp)
    assert "f((a + b).mean(), (c)," in after(source.appended(total, ".mean()"), CHAIN)
    assert "f((a + b), (c)," in after((source.replaced(total, source.bracketed(total)),), CHAIN)


def test_statements_are_put_under_a_head() -> None:
    """They move to the right, with the comments above them and not with what a string holds."""
    source = text()
    features, note = statement(source, "h ="), statement(source, "note =")
    wrapped = after(source.wrapped(features, note, "with look():"))
    assert "        with look():\n                # the features\n                h = model(x)\n" in wrapped
    assert "'''kept\n  as it is'''\n" in wrapped
    step = statement(source, "optimizer.step")
    assert source.wrapped(step, step, "with look():") == ()


def test_modules_are_called_as_they_are_imported() -> None:
    """`torch` and `torch.nn` by the names that the file gives them."""
    assert (text(CHAIN).torch, text(CHAIN).nn) == ("t", "layers")
    assert (text().torch, text().nn) == ("torch", "torch.nn")
    assert (text("import torch.nn as nn\n").torch, text("import torch.nn as nn\n").nn) == (None, "nn")
    assert text("x = 1\n").nn is None
