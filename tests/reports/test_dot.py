"""Pictures of hand-made runs, read back with pygraphviz."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pygraphviz  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.graph.facts import Finding, Module, Node, Received, Run, Span
from gradscope.reports.dot import to_dot
from gradscope.reports.escaping import spelled
from gradscope.reports.folding import Wish
from gradscope.reports.report import Report
from tests.runs import Book
from tests.workshop import Workshop


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
    text = re.sub(r"</TR><TR>|<BR[^>]*>", "\n", label)
    return html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\\\\", "\\")


class Drawn:
    """A picture's boxes by the words in them, without the legend, and the words on its frames."""

    def __init__(self, run: Run, depth: int | None = None, opened: Sequence[str] = ()) -> None:
        dot = to_dot(run, wish=Wish(depth, tuple(opened)))
        self.graph = pygraphviz.AGraph(string=dot)
        self.frames = [words(text).strip() for text in re.findall(r"cluster_g.*\n.*label=<(.*)> labelloc", dot)]
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
    assert drawn.note == "100,003 boxes folded into 5"


def deep(blocks: int, cut: int | None = None, frozen: int | None = None) -> Run:
    """A model of blocks that each hold a norm, a part with two layers, and a sum with what came in."""
    book = Book()
    modules = [Module("model", "Net", True), Module("model.blocks", "ModuleList", True)]
    state = book.leaf("x", (2,))
    for block in range(blocks):
        path = f"model.blocks.{block}"
        inner = state
        modules.append(Module(path, "Block", True))
        for part, kind in (("norm", "Norm"), ("mlp.up", "Linear"), ("mlp.down", "Linear")):
            module = f"{path}.{part}"
            modules.append(Module(module, kind, True))
            weight = book.leaf(
                f"blocks.{block}.{part}.weight",
                (2,),
                block != frozen,
                nn_parameter=True,
                registered="parameter",
                module="model",
                received=Received(3, 3),
                gradient_norms=(block + 1.0,),
            )
            shape = (5, 7) if part == "mlp.up" else (5, 5)
            inner = book.op("linear", inner, weight, module=module, line=4, cut=block == cut, shape=shape)
        modules.append(Module(f"{path}.mlp", "Mlp", True))
        state = book.op("add", state, inner, module=path, line=9)
    book.step(book.op("sum", state, result="loss", shape=(), line=20))
    return replace(book.run(), modules=tuple(modules))


def test_blocks_that_are_alike_are_drawn_once_with_their_count() -> None:
    """Twelve blocks become one frame that shows what each of them holds, with the range of their gradients."""
    drawn = Drawn(deep(12))
    assert drawn.frames == ["12 x Block\nmodel.blocks.0 .. 11", "mlp: Mlp"]
    assert "*.weight\n2\n|grad| 1.0e+00 .. 1.2e+01" in drawn.words.values()
    assert "linear\n5x7\nline 4 \N{MIDDLE DOT} up" in drawn.words.values()
    assert ("x", "add") in drawn.edges()
    assert ("add", "sum") in drawn.edges()
    assert ("add", "linear") not in drawn.edges()


def test_a_closed_group_says_what_is_inside() -> None:
    """Its operations, parameters and their size, the shape that it gives, and the range of |grad|."""
    drawn = Drawn(deep(12), depth=4)
    assert "mlp: Mlp\n2 x linear, 2 parameters (4)\ngives 5x5\n|grad| 1.0e+00 .. 1.2e+01" in drawn.words.values()


def test_depth_closes_and_opens_groups() -> None:
    """At depth 1 the model is one box; each further level shows what is inside of it."""
    assert set(Drawn(deep(12), depth=1).titles) == {"x", "model: Net", "sum", "loss"}
    assert "12 x Block" in Drawn(deep(12), depth=3).titles
    assert "mlp: Mlp" in Drawn(deep(12), depth=4).titles
    assert {"up: Linear", "down: Linear"} <= set(Drawn(deep(12), depth=5).titles)
    assert Drawn(deep(12), depth=6).titles.keys() == Drawn(deep(12), depth=60).titles.keys()


def test_a_depth_that_is_too_deep_is_cut_short_and_said() -> None:
    """More than 300 boxes are not laid out: the picture is less deep, and its note says so."""
    book = Book()
    state = book.leaf("x", (2,), True)
    for block in range(40):
        for part in range(10):
            # No two blocks are alike.
            state = book.op("linear", state, module=f"model.{block}", shape=(block, part), line=part)
    book.step(book.op("sum", state, result="loss"))
    drawn = Drawn(book.run(), depth=9)
    assert len(drawn.nodes) == 43
    assert drawn.note.endswith("depth 9 would be too many to lay out, this is 2")


def test_a_path_opens_its_group_apart_from_the_row() -> None:
    """`--open` takes one block out of its row and shows what is inside; the others stay folded around it."""
    drawn = Drawn(deep(12), depth=3, opened=("model.blocks.5",))
    assert {"5 x Block", "6 x Block", "mlp: Mlp", "norm: Norm"} <= set(drawn.titles)
    assert "5: Block" in drawn.frames
    assert ("5 x Block", "norm: Norm") in drawn.edges()
    assert ("add", "6 x Block") in drawn.edges()


def test_a_star_opens_every_group_that_matches() -> None:
    """`model.blocks.*.mlp` opens that part of each block."""
    drawn = Drawn(deep(3), depth=1, opened=("model.blocks.*.mlp",))
    assert [words.split("\n")[0] for words in drawn.words.values()].count("up: Linear") == 3


def test_a_path_that_opens_nothing_is_told() -> None:
    """A path without a group is named in the picture's note."""
    assert "no group is called model.block.5" in Drawn(deep(12), opened=("model.block.5",)).note


def test_a_frozen_block_stands_apart_and_is_greyed() -> None:
    """The one block of a row that is frozen is drawn by itself, dashed and grey."""
    drawn = Drawn(deep(12, frozen=4), depth=3)
    box = drawn.titles["4: Block"]
    assert "dashed" in box.attr["style"]
    assert box.attr["fillcolor"] == "#dddddd"
    assert "3 parameters (6, frozen)" in drawn.words[box]
    assert {"4 x Block", "7 x Block"} <= set(drawn.titles)


def test_a_cut_inside_of_groups_is_opened() -> None:
    """However deep it lies, the red arrow is seen, with its line."""
    run = deep(12, cut=7)
    lost = [op.id for op in run.steps[0].operations if op.module == "model.blocks.7.norm"]
    finding = Finding("no-grad", "error", "m", None, operations=tuple(lost))
    dot = to_dot(run, findings=[finding], wish=Wish(depth=2))
    assert 'label=<&#160;line 4> class="cut"' in dot


def test_operations_outside_of_modules_fold_by_function_and_line() -> None:
    """A function is a group; at depth 1 it is one box, opened it shows each line once."""
    book = Book()
    state = book.leaf("w", (2,), True)
    for _ in range(50):
        for line, name in ((5, "linear"), (6, "tanh")):
            state = book.op(name, state, line=line)
            span = Span("train.py", line, function="unroll")
            book.operations[-1] = replace(book.operations[-1], span=span)
    book.step(book.op("sum", state, result="loss", line=9))
    assert set(Drawn(book.run(), depth=1).titles) == {"w", "unroll()", "sum", "loss"}
    drawn = Drawn(book.run())
    assert set(drawn.titles) == {"w", "50 x linear", "50 x tanh", "sum", "loss"}
    assert drawn.frames == ["unroll()"]
    parts = Drawn(book.run(), depth=1, opened=("unroll()/tanh:6",))
    assert list(parts.words.values()).count("tanh\n5x5\nline 6") == 50


def test_lines_are_thicker_where_gradients_are_larger() -> None:
    """The arrows of parameters tell the size of their gradient; without figures all are the same."""
    run = deep(1)
    norms = {0: 1e-3, 1: 1.0, 2: 1e3}
    leaves = [tensor for tensor in run.tensors if tensor.gradient_norms]
    figures = {tensor.id: (norms[place],) for place, tensor in enumerate(leaves)}
    known = replace(
        run, tensors=tuple(replace(t, gradient_norms=figures.get(t.id, t.gradient_norms)) for t in run.tensors)
    )
    drawn = Drawn(known)
    widths = [
        float(drawn.graph.get_edge(drawn.titles[f"blocks.0.{part}.weight"], user).attr["penwidth"])
        for part in ("norm", "mlp.up", "mlp.down")
        for user in drawn.graph.successors(drawn.titles[f"blocks.0.{part}.weight"])
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2]
    assert "blocks.0.mlp.down.weight\n2\n|grad| 1.0e+03" in drawn.words.values()


@pytest.mark.parametrize(
    ("received", "said"),
    [
        (Received(0, 3), "no gradient in 3 steps"),
        (Received(3, 3, zero=3), "|grad| 0 in every step"),
        (Received(3, 3, nonfinite=1), "|grad| not finite"),
    ],
)
def test_a_gradient_in_trouble_is_said_and_outlined(received: Received, said: str) -> None:
    """A parameter whose gradient never came, was zero or not finite says so, with a red outline."""
    book = Book()
    w = book.leaf("w", (2,), True, nn_parameter=True, received=received, gradient_norms=(0.0,))
    book.step(book.op("sum", w, result="loss"))
    drawn = Drawn(book.run())
    assert drawn.words[drawn.titles["w"]] == f"w\n2\n{said}"
    assert drawn.titles["w"].attr["color"] == "#c40000"


def test_bytes_saved_for_backward_are_shown() -> None:
    """Where they were read, the bytes that an operation keeps for backward stand in its box, and add up in groups."""
    run = deep(2)
    nodes = tuple(Node(op.id, "N", (), operation=op.id, saved=1500) for op in run.steps[0].operations)
    step = run.steps[0]
    known = replace(run, steps=(replace(step, backwards=(replace(step.backwards[0], nodes=nodes),)),))
    assert "add\n5x5\nline 9 \N{MIDDLE DOT} model.blocks.0\nsaves 1.5 kB" in Drawn(known).words.values()
    closed = Drawn(known, depth=1)
    assert closed.words[closed.titles["model: Net"]].endswith("saves 12 kB")


def test_nodes_without_operations_fold_by_the_modules_of_their_parameters() -> None:
    """Where only the autograd graph is known, nodes stand in the module whose parameters they take."""
    book = Book()
    nodes = []
    names = [f"layers.{block}.{kind}" for block in range(20) for kind in ("weight", "bias")]
    for name in names:
        book.leaf(name, (2,), True, nn_parameter=True, registered="parameter", module="model")
    loss = book._value("loss", (), True, leaf=False, requires_grad=True, grad_fn="SumBackward0")
    nodes.append(Node(0, "SumBackward0", ((1, 0),), sequence=100))
    for block in range(20):
        first = 1 + 4 * block
        below = [(first + 1, 0), (first + 2, 0)]
        inner = [] if block == 19 else [(first + 4, 0)]
        nodes.append(Node(first, "MulBackward0", ((first + 3, 0),), sequence=99 - 2 * block))
        nodes.append(Node(first + 1, "AccumulateGrad", (), tensor=2 * (19 - block)))
        nodes.append(Node(first + 2, "AccumulateGrad", (), tensor=2 * (19 - block) + 1))
        nodes.append(Node(first + 3, "AddmmBackward0", (*below, *inner), sequence=98 - 2 * block))
    book.step(loss, nodes=nodes)
    layers = tuple(Module(f"model.layers.{block}", "Linear", True) for block in range(20))
    run = replace(book.run(), modules=(Module("model", "Net", True), Module("model.layers", "List", True), *layers))
    drawn = Drawn(run, depth=1)
    assert set(drawn.titles) == {"model: Net", "MulBackward0", "SumBackward0", "loss"} or "model: Net" in drawn.titles
    assert len(drawn.titles) < 6


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


@settings(max_examples=40)
@given(dags())
def test_any_graph_stays_within_the_limit(run: Run) -> None:
    """However a run looks, at most 300 boxes are drawn, and every arrow joins two of them."""
    drawn = Drawn(run)
    declared = set(re.findall(r"^ +(\w+) \[\w+=", to_dot(run), re.MULTILINE))
    assert len(drawn.nodes) <= 300
    assert set(drawn.nodes) <= declared


@settings(max_examples=150)
@given(st.text(min_size=1, max_size=40) | st.from_regex(r"[\\NGLlrn<>\"&;{}|\s#x0-9]{1,20}", fullmatch=True))
def test_any_name_is_drawn_letter_by_letter(name: str) -> None:
    """Whatever a tensor is called, the DOT parses and the box shows that name."""
    book = Book()
    book.step(book.op("sum", book.leaf(name, (7,), True), result="loss", file=f"/{name}/{name}.py"))
    assert f"{spelled(name)}\n7" in Drawn(book.run()).words.values()


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


def test_what_torch_refused_is_red(workshop: Workshop) -> None:
    """Of a forward that raised, the picture shows what led to the refused operation, and that in red."""
    run = workshop.observe(
        """
        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(4, 2))
        net(torch.rand(6, 3)).sum().backward()
        """
    ).run
    boxes = [line for line in to_dot(run, findings=Report.of(run).findings).splitlines() if "[shape=" in line]
    (red,) = [line for line in boxes if 'class="refused"' in line and "legend" not in line]
    assert 'color="#c40000"' in red
    assert "linear" in red
    assert sum("relu" in line for line in boxes) == 1
    assert not any('class="cutoff"' in line for line in boxes)
