"""Names of operations and pieces of source."""

from __future__ import annotations

import ast
import textwrap

import pytest

from gradscope.graph.facts import Span
from gradscope.graph.naming import callee, expression, last_call, loop_around, shape_text, short_name, source_of, within

FILE = "train.py"


def lines(text: str) -> dict[str, dict[int, str]]:
    """A file as a run keeps it."""
    return {FILE: dict(enumerate(text.split("\n"), start=1))}


def place(text: str, piece: str) -> Span:
    """Where a piece of a text is."""
    start = text.index(piece)
    end = start + len(piece)
    first, last = text[:start].split("\n"), text[:end].split("\n")
    return Span(FILE, len(first), len(first[-1]) + 1, len(last), len(last[-1]) + 1)


@pytest.mark.parametrize(
    "piece",
    ["encoder(x)", "z = encoder(x)", "torch.stack([\n    a,\n    b,\n])", "größe * 2", "λ", "'日本'.join(n)"],
)
def test_source_of_a_span(piece: str) -> None:
    """The text of a span is what stands there: over several lines too, and columns count characters."""
    text = f"import torch\nñ = ß; y = {piece}; ä = 1\nlast = 2"
    assert source_of(place(text, piece), lines(text)) == piece


def test_source_of_what_was_not_kept() -> None:
    """Where a line of a span is missing, its file is, or the interpreter gave no columns, there is no text."""
    text = "y = f(\n    x,\n)"
    span, kept = place(text, text), lines(text)
    assert source_of(span, kept) == text
    assert source_of(span, {FILE: {number: line for number, line in kept[FILE].items() if number != 2}}) is None
    assert source_of(span, {"other.py": kept[FILE]}) is None
    assert source_of(Span(FILE, 1), kept) is None
    assert source_of(Span(FILE, 1, 1, 1, None), kept) is None


def test_expression_at_a_span() -> None:
    """A span gives the tree of an expression, however its lines are indented, of a statement, or of nothing."""
    text = "y = model(x,\n  t)  # why\nx += 1\nwith a:"
    kept = lines(text)
    assert ast.unparse(expression(place(text, "model(x,\n  t)"), kept) or ast.Pass()) == "model(x, t)"
    assert isinstance(expression(place(text, "x += 1"), kept), ast.AugAssign)
    assert expression(place(text, "with a:"), kept) is None
    assert expression(Span("gone.py", 1, 1, 1, 5), kept) is None


@pytest.mark.parametrize(
    ("piece", "end"),
    [
        ("self.encoder(x).detach()", ".detach()"),
        ("encoder(x).data", ".data"),
        ("größe(λ).mean().item()", ".item()"),
        ("zs[0].detach()", ".detach()"),
        ("z.detach()", ".detach()"),
        ("torch.tensor(z)", "torch.tensor(z)"),
        ("nn.functional.one_hot(z)", "nn.functional.one_hot(z)"),
        ("float(z)", "float(z)"),
        ("a + b", "a + b"),
        ("a.b(\n    c)", "a.b(\n    c)"),
    ],
)
def test_last_call_of_a_chain(piece: str, end: str) -> None:
    """Of a chain of calls on one line its last link is left; functions, sums and longer spans stay whole."""
    text = f"ü = 1\nout = ({piece}, 2)"
    assert source_of(last_call(place(text, piece), lines(text)), lines(text)) == end


def test_last_call_without_source() -> None:
    """A span whose text was not kept, or that has no columns, stays as it is."""
    for span in (Span(FILE, 3, 5, 3, 20), Span(FILE, 3)):
        assert last_call(span, {}) == span


@pytest.mark.parametrize(
    ("piece", "name"),
    [
        ("dist.sample()", "sample"),
        ("torch.distributions.Normal(a, b).sample((3,))", "sample"),
        ("tensor(x)", "tensor"),
        ("int(\n  x\n)", "int"),
        ("layers[0](x)", None),
        ("make()(x)", None),
        ("x.data", None),
        ("x + f(y)", None),
    ],
)
def test_callee(piece: str, name: str | None) -> None:
    """What is called is the last part of the function's name; only calls of something named have one."""
    text = f"y = {piece}"
    assert callee(place(text, piece), lines(text)) == name


def test_within() -> None:
    """A span lies within another of its file that starts no later and ends no earlier, by line and column."""
    text = "loss = a + reg.item()\nlog(\n    a,\n    reg.item())"
    whole, inner = place(text, "a + reg.item()"), place(text, "reg.item()")
    assert within(inner, whole)
    assert within(whole, whole)
    assert not within(whole, inner)
    over = place(text, "log(\n    a,\n    reg.item())")
    assert within(Span(FILE, 4, 5, 4, 15), over)
    assert within(Span(FILE, 3, 90, 3, 99), over)  # an end column counts on its own line only
    assert not within(Span(FILE, 4, 5, 4, 17), over)
    assert not within(inner, over)


def test_within_needs_positions_and_one_file() -> None:
    """Spans of two files, or without columns, lie in nothing."""
    whole = Span(FILE, 1, 1, 1, 50)
    assert not within(Span("other.py", 1, 5, 1, 9), whole)
    assert not within(Span(FILE, 1), whole)
    assert not within(Span(FILE, 1, 5, 1, 9), Span(FILE, 1))


LOOPS = {
    "plain": """
        for layer in layers:  # head
            x = layer(x)  # here
    """,
    "branches": """
        for i, layer in enumerate(layers):  # head
            if i:
                y = 1
            else:

                x = layer(x)  # here
    """,
    "inner": """
        for epoch in range(3):
            for batch in data:  # head
                x = batch  # here
    """,
    "after_inner": """
        for epoch in range(3):  # head
            for batch in data:
                x = batch
            y = epoch  # here
    """,
    "while_inside": """
        for epoch in range(3):  # head
            while x:
                x = f(x)  # here
    """,
    "in_function": """
        def forward(self, x):
            async for layer in self.layers:  # head
                x = layer(x)  # here
    """,
    "comment_left_of_it": """
        def forward(self, x):
            for layer in self.layers:  # head
                y = x
        # z = y
                x = layer(x)  # here
    """,
}
NO_LOOPS = {
    "none": """
        x = layer(x)  # here
    """,
    "after": """
        for layer in layers:
            y = layer
        x = y  # here
    """,
    "else": """
        for layer in layers:
            y = layer
        else:
            x = y  # here
    """,
    "outside_the_function": """
        for layer in layers:
            def call(x):
                return layer(x)  # here
    """,
    "outside_the_class": """
        for width in widths:
            class Net:
                size = width  # here
    """,
}


def marked(text: str, mark: str) -> int:
    """The number of the line that ends with a comment."""
    return next(number for number, line in lines(text)[FILE].items() if line.endswith(f"# {mark}"))


@pytest.mark.parametrize("case", LOOPS)
def test_loop_around(case: str) -> None:
    """The loop around a line is the innermost `for` whose body it is in; its head is shown from `for` to its end."""
    text = textwrap.dedent(LOOPS[case])
    found = loop_around(Span(FILE, marked(text, "here"), function="f"), lines(text))
    assert found is not None
    assert found.line == found.end_line == marked(text, "head")
    assert source_of(found, lines(text)) == lines(text)[FILE][found.line].strip()
    assert found.function == "f"


def test_loop_whose_head_has_several_lines() -> None:
    """A head that goes over several lines is found by its first one."""
    text = "for a, b in zip(\n    first,\n    second,\n):\n    use(a, b)"
    found = loop_around(Span(FILE, 5), lines(text))
    assert found is not None
    assert source_of(found, lines(text)) == "for a, b in zip("


@pytest.mark.parametrize("case", NO_LOOPS)
def test_no_loop_around(case: str) -> None:
    """A line after a loop, in its `else`, or in a function that a loop makes, is in no loop."""
    text = textwrap.dedent(NO_LOOPS[case])
    assert loop_around(Span(FILE, marked(text, "here")), lines(text)) is None


def test_loop_around_stops_where_source_ends() -> None:
    """Across a line that was not kept nothing is guessed."""
    kept = lines("for layer in layers:\n    y = x\n    x = layer(x)")
    assert loop_around(Span(FILE, 3), kept) is not None
    del kept[FILE][2]
    assert loop_around(Span(FILE, 3), kept) is None
    assert loop_around(Span("other.py", 3), kept) is None


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("Tensor.__matmul__", "matmul"),
        ("nn.functional.linear", "linear"),
        ("Tensor.requires_grad =", "requires_grad"),
        ("add", "add"),
        ("__", "__"),
        ("____", "____"),
    ],
)
def test_short_name(operation: str, said: str) -> None:
    """An operation is said by its last name, without the underscores of Python's own methods."""
    assert short_name(operation) == said


def test_shape_text() -> None:
    """A shape is written with `x`, and one without dimensions is a scalar."""
    assert [shape_text(shape) for shape in ((5, 3), (7,), ())] == ["5x3", "7", "scalar"]
