"""The report as text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from gradscope.graph.facts import Edit, Finding, Help, Label, Loss, Received, Run, Span
from gradscope.reports.document import document
from gradscope.reports.report import Report
from gradscope.reports.text import WIDTH, finding_text, text
from tests.hostile import Terminal
from tests.runs import Book


def table(run: Run, **options: Any) -> list[list[str]]:
    """The cells of the report's table, header first."""
    lines = Report.of(run).to_text(**options).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("tensor "))
    return [line.split() for line in lines[start:] if not line.startswith("(")]


def step(**facts: Any) -> Run:
    """A step with one parameter `w` of such facts."""
    book = Book()
    w = book.leaf("w", (3, 5), facts.pop("requires_grad", True), nn_parameter=True, **facts)
    book.step(book.op("sum", w, result="loss", shape=()))
    return replace(book.run(), step_count=20, backward_count=20)


def test_columns_of_the_table() -> None:
    """The table has name, shape, role, leaf, requires, received, median norm, movement and course, a row a tensor."""
    received = Received(20, 20)
    run = step(received=received, gradient_norms=(1.0, 0.5, 0.56), start=2.0, change=0.37)
    header, w, loss = table(run)
    assert header == ["tensor", "shape", "role", "leaf", "requires", "got", "grad", "|grad|", "moved", "course"]
    assert w == ["w", "3x5", "parameter", "yes", "yes", "20/20", "5.6e-01", "18.5%", "+::"]
    assert loss == ["loss", "scalar", "output", "no", "yes", "-", "-", "-"]


@pytest.mark.parametrize(
    ("norms", "ascii_marks", "unicode_marks"),
    [
        ((1.0,) * 12, "======", "\u2585" * 6),
        ((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), "_.-=*#", "\u2581\u2582\u2584\u2585\u2587\u2588"),
        ((1.0, 0.0, None), "= !", "\u2585 !"),
        ((0.0, 0.0, 0.0), "", ""),
        ((1.0, 2.0), None, None),
    ],
    ids=["flat", "growing", "zero_and_infinite", "zero", "too_short"],
)
def test_course_of_the_gradient(
    norms: tuple[float | None, ...], ascii_marks: str | None, unicode_marks: str | None
) -> None:
    """Rows end with a chart of |grad|, in ASCII or in blocks; a course of two steps is none."""
    run = step(received=Received(20, 20), gradient_norms=norms, start=2.0, change=0.37)
    report = Report.of(run)
    for marks, unicode in ((ascii_marks, False), (unicode_marks, True)):
        lines = report.to_text(unicode=unicode).splitlines()
        header, row = (next(line for line in lines if line.startswith(word)) for word in ("tensor ", "w "))
        if marks is None:
            assert not header.endswith("course")
        else:
            assert row[header.index("course") :] == marks


def test_course_is_left_out_where_there_is_no_room() -> None:
    """A table that is as wide as it may be has no charts, and stays within the width."""
    book = Book()
    norms = (0.5, 0.25, 0.125)
    w = book.leaf(
        "a_tensor_with_a_long_name", (1024, 1024, 128, 128), True, gradient_norms=norms, change=1.0, start=1e-9
    )
    book.step(book.op("sum", w, result="loss", shape=()), book.op("neg", w, result="other", shape=()))
    lines = Report.of(book.run()).to_text().splitlines()
    assert not any("course" in line for line in lines)
    assert max(map(len, lines)) <= WIDTH


def test_a_row_names_the_grad_fn() -> None:
    """The row of a non-leaf names its grad_fn in the place of counts, which it has none of."""
    book = Book()
    w = book.leaf("w", (2,), True, nn_parameter=True)
    book.step(book.op("sum", w, result="loss", shape=(), grad_fn="SumBackward0"))
    header, row, loss = table(book.run())
    assert (header[-1], row[-1], loss[-1]) == ("moved", "-", "SumBackward0")


@pytest.mark.parametrize(
    ("facts", "cell"),
    [
        ({"start": 2.0, "change": 0.0}, "no"),
        ({"start": 0.0, "change": 0.5}, "from 0"),
        ({"start": 0.0, "change": 0.0}, "no"),
        ({}, "-"),
        ({"requires_grad": False}, "frozen"),
        ({"requires_grad": False, "start": 2.0, "change": 1.0}, "50.0%"),
    ],
)
def test_movement_in_words(facts: dict[str, Any], cell: str) -> None:
    """A parameter that did not move says `no`, one that began at zero `from 0`, and a frozen one `frozen`."""
    assert Report.of(step(**facts)).to_text().splitlines()[3].endswith(f"  {cell}")


@pytest.mark.parametrize(
    ("received", "cell"),
    [
        (Received(0, 20), "0/20"),
        (Received(20, 20, zero=20), "z20/20"),
        (Received(20, 20, zero=3), "20/20 z3"),
        (Received(20, 20, nonfinite=3), "20/20 !3"),
        (Received(20, 20, nonfinite=20), "!20/20"),
        (None, "-"),
    ],
)
def test_zero_and_nonfinite_are_told_apart(received: Received | None, cell: str) -> None:
    """Gradients that were zero, not finite or never came are told apart."""
    assert " ".join(table(step(received=received))[1][5:]).startswith(f"{cell} ")


def layers(count: int) -> Run:
    """A run with a parameter in each of so many layers."""
    book = Book()
    total = book.leaf("x", (2,), True)
    for layer in range(count):
        name = f"net.{layer}.weight"
        facts: dict[str, Any] = {"received": Received(int(layer > 2), 1), "start": 1.0, "change": float(layer > 2)}
        weight = book.leaf(name, (2,), True, nn_parameter=True, registered="parameter", **facts)
        total = book.op("mul", total, weight)
    book.step(book.op("sum", total, result="loss", shape=()))
    return book.run()


def test_up_to_20_rows_are_shown_whole() -> None:
    """A table of 20 rows is not folded."""
    rows = table(layers(18))
    assert len(rows) == 1 + 20
    assert "--all" not in Report.of(layers(18)).to_text()


def test_over_20_rows_fold_by_module() -> None:
    """Over 20 rows, those of one module become one with counts, and the report says how to unfold them."""
    report = Report.of(layers(19))
    rows = table(report.run)
    assert [row[0] for row in rows[1:]] == ["x", "net.*", "loss"]
    assert "19 tensors" in report.to_text()
    assert "16 of 19" in report.to_text()
    assert "(19 tensors are folded by module; --all shows each)" in report.to_text()
    assert [row[0] for row in table(report.run, every_row=True)[1:]] == [
        "x",
        *(f"net.{layer}.weight" for layer in range(19)),
        "loss",
    ]


def test_a_long_name_is_shortened_in_the_middle() -> None:
    """A long name keeps its beginning and its end."""
    book = Book()
    name = "encoder." + "blocks." * 20 + "weight"
    book.step(book.op("sum", book.leaf(name, (2,), True, nn_parameter=True), result="loss", shape=()))
    shown = table(book.run())[1][0]
    assert len(shown) <= 32
    assert shown.startswith("encoder.")
    assert shown.endswith(".weight")


def names(run: Run, **options: Any) -> list[str]:
    """The first cells of the rows."""
    return [row[0] for row in table(run, **options)[1:]]


@pytest.mark.parametrize("width", [60, 72, 88, 120])
@pytest.mark.parametrize(
    "pattern",
    [
        "transformer.h.{}.attn.c_proj.weight_of_the_projection",
        "a_model_with_a_very_long_name_indeed.blocks.{}.norm.weight",
        "model.encoder.layers.inside.of.layers.which_are_many.{}",
        "{}_is_what_tells_these_apart_and_nothing_else_does_so.weight",
        "x.y_{}_z_and_more_letters_than_any_column_of_a_table_has_room_for_in_it_alone",
    ],
)
def test_no_two_rows_read_alike(pattern: str, width: int) -> None:
    """Names are shortened from what they have in common, and stay apart."""
    book = Book()
    leaves = [
        book.leaf(pattern.format(place), (3, 5), True, nn_parameter=True, registered="parameter") for place in range(12)
    ]
    book.step(book.op("sum", *leaves, result="loss", shape=()))
    shown = names(book.run(), every_row=True, width=width)
    assert len(set(shown)) == 13
    if pattern.startswith("transformer") and width >= 88:
        assert shown[:12] == sorted(shown[:12], key=lambda name: int(name.split(".")[-4].strip(".")))


def test_a_wide_terminal_shows_whole_names() -> None:
    """The table takes the columns that there are."""
    run = layers(3)
    book = Book()
    name = "transformer.layers.0.attention.self.query.weight"
    w = book.leaf(name, (3, 5), True, nn_parameter=True, registered="parameter")
    book.step(book.op("sum", w, result="loss", shape=()))
    assert names(book.run(), width=140)[0] == name
    assert "..." in names(book.run())[0]
    assert max(map(len, Report.of(run).to_text(width=72).splitlines()[2:])) <= 72


def test_buffers_of_a_module_and_frozen_rows_fold() -> None:
    """Running statistics are one row, and a frozen module says that it is frozen."""
    book = Book()
    leaves = [book.leaf(f"bn.{name}", (3,), False, registered="buffer") for name in ("running_mean", "running_var")]
    leaves += [
        book.leaf(f"net.0.w{place}", (3,), False, nn_parameter=True, received=Received(0, 4)) for place in range(12)
    ]
    leaves += [
        book.leaf(f"head.0.w{place}", (3,), True, nn_parameter=True, received=Received(4, 4)) for place in range(12)
    ]
    book.step(book.op("sum", *leaves, result="loss", shape=()))
    rows = {row[0]: row[1:] for row in table(book.run())}
    assert rows["bn.*"][:3] == ["2", "tensors", "buffer"]
    assert rows["net.0.*"][3:] == ["yes", "no", "-", "-", "frozen"]
    assert rows["head.0.*"][3:] == ["yes", "yes", "12", "of", "12", "-", "-"]
    assert "running_mean" in Report.of(book.run()).to_text(every_row=True)
    assert "(72 parameters in 24 tensors, 36 of them frozen)" in Report.of(book.run()).to_text()


def test_the_headline_draws_the_loss_and_says_since_when_it_is_lost() -> None:
    """On a terminal the loss has a chart; where it is not finite to the end, the step since when is told."""
    falling = Loss("loss", 8.0, 1.0, series=(8.0, 4.0, 2.0, 1.0), steps=4)
    report = Report.of(replace(step(), losses=(falling,)))
    assert "loss 8 -> 1, no" in report.to_text()
    assert "loss 8 -> 1 \u2588\u2584\u2582\u2581, no" in report.to_text(unicode=True)
    lost = Loss("loss", 8.0, None, series=(8.0, 4.0, None, None), steps=4)
    assert "loss 8 -> not finite since step 3," in Report.of(replace(step(), losses=(lost,))).to_text()
    once = Loss("loss", 3.0, 3.0, series=(3.0,), steps=1)
    assert ", loss 3, no findings" in Report.of(replace(step(), losses=(once,))).to_text()
    ended = replace(step(), step_count=0, backward_count=0, ended="interrupt")
    assert "no backward (interrupted)" in Report.of(ended).to_text()


def test_the_headline_tells_how_it_went() -> None:
    """One line tells the script, the steps, the loss and the findings."""
    run = replace(step(), losses=(Loss("loss", 1.46, 1.094),), script="healthy.py")
    assert Report.of(run).to_text().startswith("gradscope: healthy.py, 20 steps, loss 1.46 -> 1.09, no findings\n")
    run = replace(run, losses=(Loss("loss", 1.46, None),), ended="interrupt", step_count=1)
    assert "1 step (interrupted), loss 1.46 -> not finite" in Report.of(run).to_text()


SOURCES = {
    "detached.py": {
        10: "",
        11: "    def forward(self, x):",
        12: "        z = self.encoder(x).detach()",
        13: "        return self.decoder(z)",
        23: "    loss.backward()",
    }
}
FINDING = Finding(
    rule="detach",
    severity="error",
    message="`encoder` never learns: its 4 parameters got no gradient in 20 steps",
    span=Span("detached.py", 12, 28, 12, 37),
    caret="the path to the loss is cut here",
    tensors=("encoder.weight",),
    labels=(Label(Span("detached.py", 23, 5, 23, 20), "backward starts here"),),
    facts=("path: x -> linear",),
    help=(Help("keep it attached", (Edit(Span("detached.py", 12, 28, 12, 37), ""),)),),
)


def test_a_finding_in_full() -> None:
    """A finding has its line, the caret under the very expression, labels, facts, the mend and where to read more."""
    lines = finding_text(FINDING, SOURCES).splitlines()
    for expected in (
        "error[detach]: `encoder` never learns: its 4 parameters got no gradient in 20 steps",
        "  --> detached.py:12:28",
        "11 |     def forward(self, x):",
        "12 |         z = self.encoder(x).detach()",
        "   |                            ^^^^^^^^^ the path to the loss is cut here",
        "13 |         return self.decoder(z)",
        "...",
        "23 |     loss.backward()",
        "   |     --------------- backward starts here",
        "   = path: x -> linear",
        "help: keep it attached",
        "12 -         z = self.encoder(x).detach()",
        "12 +         z = self.encoder(x)",
        "   = more: gradscope rule detach",
    ):
        assert expected in lines
    assert any("# gradscope: allow[detach]" in line for line in lines)


def test_colour_is_only_where_it_is_asked_for() -> None:
    """Without colour the text is plain ASCII; with it, the same once the colours are taken out."""
    plain = finding_text(FINDING, SOURCES)
    painted = finding_text(FINDING, SOURCES, colour=True)
    assert "\x1b" not in plain
    assert plain.isascii()
    assert painted != plain
    assert painted.replace("\x1b[31;1m", "").replace("\x1b[0m", "") == plain


def test_a_finding_without_source_is_told_all_the_same() -> None:
    """Where the lines are not at hand, the place and the words stand alone."""
    lines = finding_text(FINDING, {}).splitlines()
    assert lines[0].startswith("error[detach]: ")
    assert "  --> detached.py:12:28" in lines
    assert finding_text(structs.replace(FINDING, span=None), {}).count("\n") >= 2


def test_findings_come_before_the_table() -> None:
    """The report is the findings, the headline, the table."""
    run = step(received=Received(20, 20))
    whole = text(run, (FINDING,), document(run, (FINDING,)))
    assert whole.index("error[detach]") < whole.index("gradscope: train.py") < whole.index("tensor  ")
    assert ", 1 finding\n" in whole


def test_lines_stay_within_88_columns() -> None:
    """The table of the design's size fits into 88 columns."""
    whole = Report.of(layers(19)).to_text(every_row=True)
    assert max(map(len, whole.splitlines())) <= WIDTH == 88


def test_a_long_headline_breaks_between_its_parts() -> None:
    """Where the script's path leaves too little room, the line goes on below, and no part of it is torn."""
    book = Book()
    w = book.leaf("w", (2,), True, nn_parameter=True)
    book.step(book.op("sum", w, result="loss", shape=()))
    for length in range(40, 90):
        run = replace(book.run(), script="s" * length)
        lines = str(Report.of(run)).partition("\n\n")[0].splitlines()
        assert " ".join(line.strip() for line in lines).endswith(", no findings")
        assert any("no findings" in line for line in lines)
        assert len(lines[0]) <= max(88, length + len("gradscope: ,"))


def test_a_very_long_line_is_shown_around_the_place() -> None:
    """Of a line of thousands of characters only the part around the pointer is shown, in the frame and in the edit."""
    code = "loss = (" + "w + " * 1000 + "h.detach()).sum()" + " + w" * 1000
    column = code.index(".detach()") + 1
    span = Span("train.py", 3, column, 3, column + len(".detach()"))
    cut = Finding("detach", "error", "lost", span, "cut here", help=(Help("leave it out", (Edit(span, ""),)),))
    lines = finding_text(cut, {"train.py": {3: code}}).splitlines()
    assert max(map(len, lines)) < 200
    place = next(number for number, line in enumerate(lines) if "^" in line)
    pointer = lines[place]
    assert lines[place - 1][pointer.index("^") : pointer.rindex("^") + 1] == ".detach()"
    assert any(line.startswith("3 + ...") and "+ h).sum()" in line for line in lines)


PIECES = [
    "w",
    "'a'",
    "'\u6f22\u5b57'",
    "'e\u0301'",
    "'\x1b[2J'",
    "'\u202e'",
    "'\U0001f600'",
    "'::x ##[y'",
    "\t\t",
    "\uff41",
]


@pytest.mark.parametrize("piece", PIECES)
def test_pointers_stand_in_the_cells_of_what_they_point_at(piece: str) -> None:
    """Wide letters, marks, tabs and what is spelled out shift no pointer, in a line of any length."""
    for filling in (1, 60):
        code = f"\tz = f({piece * filling}).detach()  # {piece}"
        column = code.index(".detach()") + 1
        finding = Finding("detach", "error", "lost", Span("train.py", 3, column, 3, column + 9), "cut here")
        lines = Terminal(finding_text(finding, {"train.py": {3: code}})).lines()
        place = next(number for number, line in enumerate(lines) if line.lstrip(" |").startswith("^"))
        start, end = lines[place].index("^"), lines[place].rindex("^") + 1
        assert lines[place - 1][start:end] == ".detach()"
        assert lines[place][end : end + 9] in (" cut here", "")


def test_a_pointer_is_as_wide_as_what_it_points_at() -> None:
    """The pointer under a wide name has two cells a letter."""
    span = Span("train.py", 3, 1, 3, 3)
    lines = finding_text(Finding("detach", "error", "lost", span, "cut here"), {"train.py": {3: "\u6f22\u5b57.x"}})
    assert "\n  | ^^^^ cut here\n" in lines


def test_columns_of_the_table_are_counted_in_cells() -> None:
    """Names in wide letters, with marks or with what is spelled out leave the columns below each other."""
    book = Book()
    names = ["w", "\u91cd\u307f", "e\u0301te\u0301", "a\x1bb", "\ud55c" * 40, "e\u0301" * 40, "\u6f22x" * 20]
    leaves = [book.leaf(name, (3, 5), True, nn_parameter=True) for name in names]
    book.step(book.op("sum", *leaves, result="loss", shape=()))
    report = Report.of(book.run())
    lines = Terminal(report.to_text()).lines()
    start = next(place for place, line in enumerate(lines) if line.startswith("tensor "))
    column = lines[start].index("role")
    rows = lines[start + 1 : start + 1 + len(names)]
    assert [row[column : column + 10] for row in rows] == ["parameter "] * len(names)
    assert max(map(len, lines)) <= WIDTH


def test_wide_words_are_broken_at_the_same_width() -> None:
    """A message in wide letters takes no more columns than one in narrow ones."""
    finding = Finding("detach", "error", "\u6f22\u5b57 " * 60, None, facts=("\u6f22\u5b57 " * 60,))
    lines = Terminal(finding_text(finding, {})).lines()
    assert WIDTH - 5 < max(map(len, lines)) <= WIDTH
