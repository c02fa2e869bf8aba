"""Pictures of hand-made runs, read back with pygraphviz."""

from __future__ import annotations

import html
import re
import time
from dataclasses import replace
from itertools import pairwise

import pygraphviz  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.graph.facts import Node, Run
from gradscope.reports.dot import to_dot
from tests.runs import Book


def forum() -> Run:
    """The step of `examples/forum.py`."""
    book = Book()
    tensor = book.leaf("tensor", (3, 5), grad=True, optimizer=0)
    cte1, cte2 = book.leaf("cte1", (5, 3)), book.leaf("cte2", (5, 5))
    product = book.op("Tensor.__matmul__", cte1, tensor, line=12)
    output = book.op("Tensor.add", product, cte2, result="output", line=12)
    book.step(book.op("Tensor.sum", output, result="loss", shape=(), line=13))
    return book.run()


def words(label: str) -> str:
    """What a reader sees of a label: one line of text for each line of the box."""
    text = re.sub(r"</TR><TR>", "\n", label)
    return html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\\\\", "\\")


class Drawn:
    """A picture's boxes by the words in them, without the legend."""

    def __init__(self, run: Run) -> None:
        self.graph = pygraphviz.AGraph(string=to_dot(run))
        self.legend = {words(node.attr["label"]): node for node in self.graph.nodes() if node.startswith("legend")}
        self.nodes = {node: node for node in self.graph.nodes() if not node.startswith("legend")}
        self.words = {node: words(node.attr["label"]) for node in self.nodes}
        self.titles = {text.split("\n")[0]: node for node, text in self.words.items()}
        self.note = words(self.graph.graph_attr["label"] or "")

    def edges(self) -> dict[tuple[str, str], str]:
        """The style of each arrow, by the titles of its ends."""
        first = {node: text.split("\n")[0] for node, text in self.words.items()}
        return {
            (first[a], first[b]): self.graph.get_edge(a, b).attr["style"] or "solid"
            for a, b in self.graph.edges()
            if a in first and b in first
        }


def test_tensors_of_the_forum_script_are_drawn_with_name_and_shape() -> None:
    """`tensor`, `cte1`, `cte2`, `output` and the loss all stand in the picture with their shapes."""
    shown = set(Drawn(forum()).words.values())
    assert {"tensor\n3x5", "cte1\n5x3", "cte2\n5x5", "loss\nscalar"} <= shown
    assert "add\noutput 5x5\nline 12" in shown


def test_arrows_go_with_the_data_and_tell_where_gradient_flows() -> None:
    """Arrows run from inputs to results; those without gradient are dashed."""
    assert Drawn(forum()).edges() == {
        ("cte1", "matmul"): "dashed",
        ("tensor", "matmul"): "solid",
        ("matmul", "add"): "solid",
        ("cte2", "add"): "dashed",
        ("add", "sum"): "solid",
        ("sum", "loss"): "solid",
    }


def all_roles() -> Run:
    """A step in which each role occurs."""
    book = Book()
    total = book.op("add", book.leaf("w", (2,), grad=True, nn_parameter=True), book.leaf("c", (2,)))
    total = book.op("add", total, book.leaf("image", (2,), grad=True))
    total = book.op("add", total, book.leaf("mean", (2,), registered="buffer"))
    book.step(book.op("sum", total, result="loss", shape=()))
    return book.run()


def test_roles_differ_in_shape_and_in_lightness() -> None:
    """No two roles share a shape or a grey, so the picture reads without colours too."""
    drawn = Drawn(all_roles())
    nodes = [drawn.titles[name] for name in ("w", "c", "image", "mean", "loss")]
    assert len({node.attr["shape"] for node in nodes}) == 5
    assert min(b - a for a, b in pairwise(sorted(_grey(node.attr["fillcolor"]) for node in nodes))) > 0.06


def test_text_has_contrast_on_every_fill() -> None:
    """The small text keeps a contrast of at least 4.5 to 1 on each fill."""
    drawn = Drawn(all_roles())
    for node in drawn.nodes.values():
        ink = re.findall(r'COLOR="(#\w+)"', node.attr["label"])[0]
        fill = node.attr["fillcolor"]
        assert (_luminance(fill) + 0.05) / (_luminance(ink) + 0.05) >= 4.5


def test_frozen_parameter_is_dashed() -> None:
    """A parameter that asks for no gradient has a dashed outline, and the legend says so."""
    book = Book()
    live, frozen = book.leaf("w", (2,), grad=True, nn_parameter=True), book.leaf("f", (2,), nn_parameter=True)
    book.step(book.op("dot", live, frozen, result="loss", shape=()))
    drawn = Drawn(book.run())
    assert "dashed" in drawn.titles["f"].attr["style"]
    assert "dashed" not in drawn.titles["w"].attr["style"]
    assert "frozen parameter" in drawn.legend


def test_legend_shows_only_what_occurs() -> None:
    """The legend has one box for each role of the picture and none for others."""
    assert set(Drawn(forum()).legend) == {
        "parameter",
        "constant",
        "operation and result",
        "output",
    }


def test_what_led_to_a_constant_is_not_drawn() -> None:
    """Operations that only prepare data, like `torch.rand` and a scaling, stay out of the picture."""
    book = Book()
    data = book.op("div", book.op("rand", result="raw"), result="data")
    book.step(book.op("mul", data, book.leaf("w", (5, 5), grad=True), result="loss"))
    assert set(Drawn(book.run()).titles) == {"data", "w", "mul", "loss"}


def test_operations_that_lead_nowhere_are_not_drawn() -> None:
    """Only what leads to a root of backward is drawn; a metric beside it is not."""
    book = Book()
    w = book.leaf("w", (2,), grad=True)
    book.op("argmax", w, result="metric", cut=True)
    book.step(book.op("sum", w, result="loss"))
    assert set(Drawn(book.run()).titles) == {"w", "sum", "loss"}


def test_data_flow_is_drawn_across_a_cut() -> None:
    """Behind a `detach` the operations and their parameters are drawn, though no gradient gets there."""
    book = Book()
    hidden = book.op("nn.functional.linear", book.leaf("w", (3, 5), grad=True), line=3)
    cut = book.op("Tensor.detach", hidden, result="z", line=4, cut=True)
    book.step(book.op("mul", cut, book.leaf("v", (5, 5), grad=True), result="loss"))
    edges = Drawn(book.run()).edges()
    assert edges["w", "linear"] == "solid"
    assert edges["linear", "detach"] == "solid"
    assert edges["detach", "mul"] == "dashed"


def test_the_latest_step_with_a_backward_is_drawn() -> None:
    """Earlier steps are left out, and so is a step that only evaluates."""
    book = Book()
    w = book.leaf("w", (2,), grad=True)
    book.step(book.op("sum", w, result="first"))
    book.step(book.op("mean", w, result="second"))
    book.op("max", w, result="best")
    book.step()
    assert set(Drawn(book.run()).titles) == {"w", "mean", "second"}


def test_a_differentiable_value_is_followed_into_an_earlier_step() -> None:
    """A state that was carried over with its history shows the step that it came from."""
    book = Book()
    w = book.leaf("w", (2,), grad=True)
    state = book.op("tanh", w, result="state")
    running = book.op("detach", w, result="running", cut=True)
    book.step(book.op("sum", state, result="first"))
    book.step(book.op("add", state, running, result="loss"))
    titles = set(Drawn(book.run()).titles)
    assert titles == {"w", "tanh", "running", "add", "loss"}


def test_without_backward_the_unused_results_are_drawn() -> None:
    """A step that never calls backward shows what leads to its results that nothing used."""
    book = Book()
    book.op("relu", book.leaf("w", (2,), grad=True), result="out")
    book.step()
    assert Drawn(book.run()).edges() == {("w", "relu"): "solid", ("relu", "out"): "solid"}


def test_nothing_with_a_gradient_is_drawn_all_the_same() -> None:
    """Where no tensor asks for a gradient, the operations are drawn with dashed arrows."""
    book = Book()
    book.step(book.op("sum", book.op("mul", book.leaf("a", (2,)), book.leaf("b", (2,))), result="loss"))
    assert set(Drawn(book.run()).edges().values()) == {"dashed"}
    assert "mul" in Drawn(book.run()).titles


def test_inside_of_a_custom_function_is_one_operation() -> None:
    """What runs in a custom Function's forward is drawn as one call of that Function."""
    book = Book()
    w = book.leaf("w", (2,), grad=True)
    inner = book.op("exp", w, within=1)
    book.op("Exp.apply", w)
    book.operations[-1] = replace(book.operations[-1], outputs=(inner,))
    book.step(book.op("sum", inner, result="loss"))
    assert set(Drawn(book.run()).titles) == {"w", "apply", "sum", "loss"}


def test_a_call_that_hands_its_input_back_makes_no_circle() -> None:
    """`x.contiguous()`, which returns `x`, leaves the picture as it would be without it."""
    book = Book()
    w = book.leaf("w", (2,), grad=True)
    hidden = book.op("relu", w)
    book.op("contiguous", hidden)
    book.operations[-1] = replace(book.operations[-1], outputs=(hidden,))
    book.step(book.op("sum", hidden, result="loss"))
    assert set(Drawn(book.run()).edges()) == {("w", "relu"), ("relu", "sum"), ("sum", "loss")}


def test_lines_of_other_files_name_the_file() -> None:
    """A line of the script is `line 7`, one of another file `model.py:7`, followed by the module."""
    book = Book()
    hidden = book.op("relu", book.leaf("w", (), True), file="/home/me/model.py", line=7, module="net.0")
    book.step(book.op("sum", hidden, result="loss", line=7))
    shown = set(Drawn(book.run()).words.values())
    assert {"relu\n5x5\nmodel.py:7 \N{MIDDLE DOT} net.0", "sum\nline 7"} <= shown


def test_walked_nodes_are_drawn_where_no_operation_was_recorded() -> None:
    """After the fact, when only the autograd graph is left, its nodes and leaves are drawn."""
    book = Book()
    w = book.leaf("w", (2,), grad=True)
    loss = book._value("loss", (), True, leaf=False, requires_grad=True, grad_fn="SumBackward0")
    nodes = [Node(0, "SumBackward0", ((1, 0),)), Node(1, "AccumulateGrad", (), tensor=0)]
    book.step(loss, nodes=nodes)
    assert w == 0
    assert Drawn(book.run()).edges() == {
        ("w", "SumBackward0"): "solid",
        ("SumBackward0", "loss"): "solid",
    }


def test_an_empty_run_gives_a_picture_that_says_so() -> None:
    """Without operations and nodes, the picture says that there is nothing to draw."""
    assert "nothing to draw" in Drawn(Run("0", "2")).note


def test_large_runs_fold_by_line() -> None:
    """100,000 operations of a loop become a few boxes with counts, in seconds, and the picture says so."""
    book = Book()
    state = book.leaf("w", (2,), grad=True)
    for _ in range(50_000):
        state = book.op("nn.functional.linear", state, line=5)
        state = book.op("tanh", state, line=6)
    book.step(book.op("sum", state, result="loss"))
    run, before = book.run(), time.process_time()
    drawn = Drawn(run)
    assert time.process_time() - before < 20
    assert {"50,000 x linear", "50,000 x tanh", "w", "loss"} <= set(drawn.titles)
    assert "folded: 100,001 operations in 3 groups" in drawn.note


def test_large_models_fold_by_module() -> None:
    """Blocks of a deep model fold into one box a module, named by it."""
    book = Book()
    state = book.leaf("x", (2,))
    for block in range(100):
        for part in ("q", "k", "v", "out"):
            module = f"model.blocks.{block}.{part}"
            weight = book.leaf(f"{module}.weight", (2,), True, nn_parameter=True, registered="parameter", module=module)
            state = book.op("linear", state, weight, module=module, line=block)
    book.step(book.op("sum", state, result="loss"))
    drawn = Drawn(book.run())
    shown = set(drawn.words.values())
    assert "4 x linear\n5x5\nline 7 \N{MIDDLE DOT} model.blocks.7" in shown
    assert "model.blocks.7\n4 parameters" in shown
    assert len(drawn.nodes) <= 300


@st.composite
def dags(draw: st.DrawFn) -> Run:
    """A run of operations on random earlier values, with cuts, modules and results of many names."""
    book = Book()
    for index in range(draw(st.integers(1, 5))):
        book.leaf(f"leaf{index}", (2,), grad=draw(st.booleans()))
    for index in range(draw(st.integers(1, 400))):
        inputs = draw(st.lists(st.integers(0, len(book.values) - 1), max_size=3))
        module = draw(st.sampled_from([None, "a", "a.b", f"m{index}"]))
        name = draw(st.sampled_from(["add", "mul", f"op{index}"]))
        book.op(name, *inputs, module=module, line=draw(st.integers(1, 500)), cut=draw(st.booleans()))
    book.step(len(book.values) - 1)
    return book.run()


@settings(max_examples=40, deadline=None)
@given(dags())
def test_any_graph_stays_within_the_limit(run: Run) -> None:
    """However a run looks, at most 300 boxes are drawn, and every arrow joins two of them."""
    drawn = Drawn(run)
    declared = set(re.findall(r"^ +(\w+) \[\w+=", to_dot(run), re.MULTILINE))
    assert len(drawn.nodes) <= 300
    assert set(drawn.nodes) <= declared


@settings(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=40) | st.from_regex(r"[\\NGLlrn<>\"&;{}|\s#x0-9]{1,20}", fullmatch=True))
def test_any_name_is_drawn_letter_by_letter(name: str) -> None:
    """Whatever a tensor is called, the DOT parses and the box shows that name."""
    book = Book()
    book.step(book.op("sum", book.leaf(name, (7,), True), result="loss", file=f"/{name}/{name}.py"))
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
    assert f"{shown}\n7" in Drawn(book.run()).words.values()


def test_long_names_keep_their_ends() -> None:
    """A name of thousands of letters is shortened in the middle."""
    book = Book()
    book.step(book.op("sum", book.leaf("a" * 5000 + ".weight", (7,), True), result="loss"))
    title = next(title for title in Drawn(book.run()).titles if title.startswith("aaa"))
    assert len(title) < 70
    assert title.endswith(".weight")


def _channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def _grey(colour: str) -> float:
    """What a printer makes of a colour, between 0 (black) and 1 (white)."""
    return sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), _channels(colour), strict=True))


def _luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))
