"""Where data goes in a step, where its gradient is lost, and how the way is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Backward, Operation, Run, Span, Step, Tensor, Value
from gradscope.graph.flow import Reach, StepFlow, flows, trains_nothing
from tests.runs import Book


def flow_of(book: Book, *roots: int) -> StepFlow:
    """The data flow of a book with one step, which backward starts from these roots."""
    book.step(*roots)
    return flows(Ask(book.run()))[0]


def reach_of(flow: StepFlow, leaf: int) -> Reach:
    """Where the data of a leaf goes on the way to the loss."""
    tensor = flow.holder[leaf]
    return flow.reach(flow.values_of[tensor], flow.behind(flow.roots, tensor))


def cuts_of(flow: StepFlow, leaf: int) -> list[str]:
    """The names of the operations at which a leaf's gradient is lost."""
    return [cut.name for cut in reach_of(flow, leaf).cuts]


# --- by hand -------------------------------------------------------------------------------------------------------


def test_whole_way_is_alive() -> None:
    """Where every operation keeps the history, all that the data touches is alive and nothing is cut."""
    book = Book()
    w, x = book.leaf("w", grad=True), book.leaf("x")
    h = book.op("linear", x, w)
    loss = book.op("mean", h)
    reach = reach_of(flow_of(book, loss), w)
    assert reach == Reach(frozenset({w, h, loss}), frozenset({w, h, loss}), (), ())


def test_cut_is_where_history_ends() -> None:
    """The cut is the operation that takes an alive value and gives a dead one; what follows it is touched only."""
    book = Book()
    w, v = book.leaf("w", grad=True), book.leaf("v", grad=True)
    h = book.op("linear", w)
    z = book.op("Tensor.detach", h, cut=True)
    y = book.op("relu", z)
    loss = book.op("linear", y, v)
    flow = flow_of(book, loss)
    reach = reach_of(flow, w)
    assert [cut.name for cut in reach.cuts] == ["Tensor.detach"]
    assert reach.alive == {w, h}
    # The last operation has a history again, and it is that of `v`: nothing of it goes back to `w`.
    assert flow.history[loss]
    assert reach.touched == {w, h, z, y, loss}
    assert cuts_of(flow, v) == []


def test_one_of_two_branches_is_cut() -> None:
    """Of two branches that meet again, the cut one is named, and the gradient comes back through the other."""
    book = Book()
    w = book.leaf("w", grad=True)
    h = book.op("linear", w)
    left, right = book.op("relu", h), book.op("Tensor.detach", h, cut=True)
    loss = book.op("add", left, book.op("tanh", right))
    reach = reach_of(flow_of(book, loss), w)
    assert [cut.name for cut in reach.cuts] == ["Tensor.detach"]
    assert loss in reach.alive


def test_cuts_beside_the_way_do_not_count() -> None:
    """What is detached for a log, and leads to no loss, is no cut."""
    book = Book()
    w = book.leaf("w", grad=True)
    h = book.op("linear", w)
    log = book.op("Tensor.detach", h, cut=True)
    book.op("mean", log)
    loss = book.op("mean", h)
    reach = reach_of(flow_of(book, loss), w)
    assert reach.cuts == ()
    assert log in reach.touched - reach.alive


def test_two_cuts_in_a_row_are_the_first() -> None:
    """Behind a cut nothing is alive, so that nothing is cut there again."""
    book = Book()
    w = book.leaf("w", grad=True)
    first = book.op("Tensor.detach", book.op("linear", w), cut=True)
    loss = book.op("argmax", first, cut=True)
    assert cuts_of(flow_of(book, loss), w) == ["Tensor.detach"]


def test_frozen_start_is_cut_nowhere() -> None:
    """A start without history is touched and not alive: there is nothing to lose on its way."""
    book = Book()
    x, w = book.leaf("x"), book.leaf("w", grad=True)
    loss = book.op("linear", x, w)
    assert reach_of(flow_of(book, loss), x) == Reach(frozenset({x, loss}), frozenset(), (), ())


def test_in_place_value_carries_on() -> None:
    """What is written into a buffer lives on in the buffer's new value, and in that alone."""
    book = Book()
    w, buffer = book.leaf("w", grad=True), book.leaf("buffer")
    filled = book.op("Tensor.copy_", buffer, w, into=buffer)
    book.tensors[book.values[buffer].tensor] = replace(book.tensors[book.values[buffer].tensor], leaf=False)
    loss = book.op("mean", filled)
    flow = flow_of(book, loss)
    reach = reach_of(flow, w)
    assert reach.cuts == ()
    assert reach.alive == {w, filled, loss}
    assert buffer not in reach.touched
    assert flow.values_of[flow.holder[buffer]] == [buffer, filled]


def test_in_place_detach_is_the_cut() -> None:
    """`h.detach_()` is the cut, though it leaves a leaf behind, which `h` was not when it was computed."""
    book = Book()
    w = book.leaf("w", grad=True)
    h = book.op("linear", w)
    book.operations[-1] = replace(book.operations[-1], nodes=(7, 8))
    kept = book.op("Tensor.detach_", h, cut=True, into=h)
    holder = book.values[h].tensor
    book.tensors[holder] = replace(book.tensors[holder], leaf=True, requires_grad=False)
    loss = book.op("mean", kept)
    assert cuts_of(flow_of(book, loss), w) == ["Tensor.detach_"]


@pytest.mark.parametrize("nodes", [(7, 7), (7, 8)])
def test_leaf_that_is_filled_takes_the_gradient(nodes: tuple[int, int]) -> None:
    """A leaf that requires grad keeps what is written into it and the gradient too: the writing is the cut."""
    book = Book()
    w, target = book.leaf("w", grad=True), book.leaf("target", grad=True)
    filled = book.op("Tensor.copy_", target, w, into=target)
    book.operations[-1] = replace(book.operations[-1], nodes=nodes)
    loss = book.op("mean", filled)
    assert cuts_of(flow_of(book, loss), w) == ["Tensor.copy_"]


@pytest.mark.parametrize("nodes", [(7, 7), (7, 8)])
def test_new_leaf_takes_the_gradient(nodes: tuple[int, int]) -> None:
    """`nn.Parameter(computed)` has a history in its own right, and none that leads back."""
    book = Book()
    w = book.leaf("w", grad=True)
    copy = book.op("nn.Parameter", book.op("linear", w))
    book.operations[-1] = replace(book.operations[-1], nodes=nodes)
    holder = book.values[copy].tensor
    book.tensors[holder] = replace(book.tensors[holder], leaf=True, requires_grad=True, nn_parameter=True)
    loss = book.op("mean", copy)
    flow = flow_of(book, loss)
    assert cuts_of(flow, w) == ["nn.Parameter"]
    assert cuts_of(flow, copy) == []


def test_own_values_are_not_followed() -> None:
    """How a parameter comes to hold what it holds is no part of its way to the loss."""
    book = Book()
    w, x = book.leaf("w", grad=True), book.leaf("x", grad=True)
    scaled = book.op("Tensor.mul_", w, x, cut=True, into=w)
    loss = book.op("mean", scaled)
    flow = flow_of(book, loss)
    assert reach_of(flow, w).cuts == ()
    assert x not in flow.behind(flow.roots, flow.holder[w])
    assert flow.behind_roots == {w, x, scaled, loss}
    assert cuts_of(flow, x) == ["Tensor.mul_"]


def test_view_shares_its_way() -> None:
    """Through a view a gradient comes back; a write into the view gives base and view new values at once."""
    book = Book()
    w, base = book.leaf("w", grad=True), book.leaf("base")
    view = book.op("Tensor.__getitem__", base)
    row = book.op("Tensor.add_", view, w, into=view)
    whole = len(book.values)
    book.values.append(Value(whole, book.values[base].tensor, True))
    book.operations[-1] = replace(book.operations[-1], outputs=(row, whole))
    for held in (view, base):
        holder = book.values[held].tensor
        book.tensors[holder] = replace(book.tensors[holder], leaf=False, requires_grad=True)
    flat = book.op("Tensor.view", whole)
    loss = book.op("mean", flat)
    reach = reach_of(flow_of(book, loss), w)
    assert reach.cuts == ()
    assert reach.alive == {w, row, whole, flat, loss}


def test_inside_of_a_function_is_alive() -> None:
    """Inside a custom Function history is off by design: its call, and not what runs in it, says whether it carries."""

    def function(carries: bool) -> tuple[StepFlow, int]:
        book = Book()
        w = book.leaf("w", grad=True)
        inner = book.op("mul", w, cut=True, within=9)
        result = book.op("Scale", w, inner, cut=not carries)
        return flow_of(book, book.op("mean", result)), w

    assert cuts_of(*function(carries=True)) == []
    assert cuts_of(*function(carries=False)) == ["Scale"]


def test_exits_are_told_apart() -> None:
    """Where a touched value leaves torch is an exit; other operations without results are none."""
    book = Book()
    w, x = book.leaf("w", grad=True), book.leaf("x")
    h = book.op("linear", w)
    for name, value in (("Tensor.item", h), ("Tensor.grad", w), ("Tensor.item", x)):
        book.operations.append(Operation(book.count, name, (value,), (), True, (0, 0)))
        book.count += 1
    flow = flow_of(book, book.op("mean", h))
    assert [exit_.inputs for exit_ in reach_of(flow, w).exits] == [(h,)]


def test_result_that_was_given_is_not_made() -> None:
    """An operation that hands back what it was given, as `requires_grad_` does, made nothing and cuts nothing."""
    book = Book()
    w = book.leaf("w", grad=True)
    h = book.op("linear", w)
    book.operations.append(Operation(book.count, "Tensor.requires_grad_", (h,), (h,), True, (0, 0)))
    flow = flow_of(book, book.op("mean", h))
    assert flow.maker[h].name == "linear"
    assert cuts_of(flow, w) == []


def test_a_backward_that_trains_nothing() -> None:
    """A backward has no way to go where it was refused for want of history, or where it started from leaves."""
    book = Book()
    dead, alive = book.leaf("dead"), book.leaf("alive", grad=True)
    made = book.op("mul", alive)
    flow = flow_of(book, dead, alive, made)
    assert trains_nothing(flow, Backward("backward", (dead,), (), failed=True))
    assert trains_nothing(flow, Backward("backward", (alive,), ()))
    assert not trains_nothing(flow, Backward("backward", (made,), ()))
    assert not trains_nothing(flow, Backward("backward", (dead, alive), (), failed=True))


# --- against a plain reference, on graphs of any shape -------------------------------------------------------------


@st.composite
def steps(draw: st.DrawFn) -> StepFlow:
    """A step of any shape: several results, results that change a tensor in place, leaves, custom Functions."""
    leaves = draw(st.integers(1, 3))
    tensors = [Tensor(i, f"t{i}", (), "float32", "cpu", True, True) for i in range(leaves)]
    values = [Value(i, i, draw(st.booleans()) or i == 0) for i in range(leaves)]
    operations = []
    for number in range(draw(st.integers(1, 9))):
        inputs = draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3, unique=True))
        outputs = []
        for _ in range(draw(st.integers(0, 2)) if number else 1):
            target = draw(st.sampled_from([None, None, None, *(values[i].tensor for i in inputs)]))
            if target is None:
                target = len(tensors)
                leaf = draw(st.sampled_from([False, False, False, True]))
                tensors.append(Tensor(target, None, (), "float32", "cpu", leaf, True))
            outputs.append(len(values))
            values.append(Value(len(values), target, draw(st.sampled_from([True, True, True, False]))))
        within = draw(st.sampled_from([None, None, None, 99]))
        operations.append(
            Operation(number, f"op{number}", tuple(inputs), tuple(outputs), True, (0, 0), None, None, within)
        )
    roots = draw(st.lists(st.integers(leaves, len(values) - 1), min_size=1, max_size=2, unique=True))
    backwards = (Backward("backward", tuple(roots), ()),)
    step = Step(0, tuple(operations), backwards)
    return StepFlow(Run("0", "2", tensors=tuple(tensors), values=tuple(values), steps=(step,)), step)


class Reference:
    """The same questions, asked of each value on its own and answered from its neighbours."""

    def __init__(self, flow: StepFlow, tensor: int) -> None:
        self.flow, self.tensor = flow, tensor
        self.starts = flow.values_of[tensor]

    def maker(self, value: int) -> Operation | None:
        """The operation that made a value."""
        return next((op for op in self.flow.operations if value in op.outputs), None)

    def is_on_the_way(self, value: int) -> bool:
        """Whether a root was computed from it, other than by filling the tensor itself."""
        return value in self.flow.roots or any(
            self.flow.holder[result] != self.tensor and self.is_on_the_way(result)
            for op in self.flow.operations
            if value in op.inputs
            for result in op.outputs
        )

    def is_alive(self, value: int) -> bool:
        """Whether a gradient that arrives at it travels on to the tensor."""
        if self.flow.holder[value] == self.tensor:
            return self.flow.history[value]
        op = self.maker(value)
        if op is None or not any(map(self.is_alive, op.inputs)):
            return False
        holder = self.flow.tensors[self.flow.holder[value]]
        return op.within is not None or (self.flow.history[value] and not holder.leaf)

    def cuts(self) -> list[Operation]:
        """Alive before, dead behind, on the way to a root, and no other result of it carries on."""
        found = []
        for op in self.flow.operations:
            results = [
                value for value in op.outputs if self.flow.holder[value] != self.tensor and self.is_on_the_way(value)
            ]
            if results and any(map(self.is_alive, op.inputs)) and not any(map(self.is_alive, results)):
                found.append(op)
        return found


def tensors_of(flow: StepFlow) -> Iterable[int]:
    """The leaves of a step that it computes with."""
    return [tensor for tensor in flow.values_of if flow.tensors[tensor].name is not None]


@settings(max_examples=300)
@given(steps())
def test_cuts_are_the_frontier(flow: StepFlow) -> None:
    """Cuts are exactly the operations at which what is alive ends on the way to a root."""
    for tensor in tensors_of(flow):
        reference = Reference(flow, tensor)
        ends = flow.behind(flow.roots, tensor)
        assert ends - set(flow.roots) == {
            value for value in flow.holder if reference.is_on_the_way(value) and value not in flow.roots
        }
        reach = flow.reach(flow.values_of[tensor], ends)
        assert list(reach.cuts) == reference.cuts()
        assert reach.alive == {value for value in reach.touched if reference.is_alive(value)}


@settings(max_examples=300)
@given(steps())
def test_path_is_connected_and_goes_through_the_cut(flow: StepFlow) -> None:
    """A path starts with the tensor, hands a value from each operation to the next, and ends with a root."""
    for tensor in tensors_of(flow):
        starts = flow.values_of[tensor]
        for cut in flow.reach(starts, flow.behind(flow.roots, tensor)).cuts:
            path = flow.path(starts, cut, frozenset(flow.roots))
            assert [operation for operation, lost in path if lost] == [cut]
            way = [operation for operation, _ in path]
            assert len(set(way)) == len(way)
            assert not set(starts).isdisjoint(way[0].inputs)
            assert not set(flow.roots).isdisjoint(way[-1].outputs)
            for one, next_one in pairwise(way):
                assert not set(one.outputs).isdisjoint(next_one.inputs)


def test_path_is_a_shortest_one() -> None:
    """Of two ways around, the shorter one is told."""
    book = Book()
    w = book.leaf("w", grad=True)
    short, around = book.op("abs", w), book.op("tanh", book.op("relu", w))
    z = book.op("Tensor.detach", book.op("add", short, around), cut=True)
    short, around = book.op("exp", z), book.op("sin", book.op("cos", z))
    loss = book.op("mul", short, around)
    flow = flow_of(book, loss)
    cut = reach_of(flow, w).cuts[0]
    assert [(op.name, lost) for op, lost in flow.path([w], cut, frozenset([loss]))] == [
        ("abs", False),
        ("add", False),
        ("Tensor.detach", True),
        ("exp", False),
        ("mul", False),
    ]


# --- told ----------------------------------------------------------------------------------------------------------


def told(flow: StepFlow, leaf: int, start: str = "w", end: str = "loss") -> str:
    """How the way from a leaf through its first cut is told."""
    cut = reach_of(flow, leaf).cuts[0]
    return flow.told(start, flow.path([leaf], cut, frozenset(flow.roots)), end)


def test_told_with_names_and_lines() -> None:
    """A path is told by operations and names; a line is told where the path comes to it."""
    book = Book()
    w = book.leaf("w", grad=True)
    h = book.op("nn.functional.linear", w, line=4)
    h = book.op("Tensor.__mul__", h, line=4, result="h")
    z = book.op("Tensor.detach", h, line=5, result="z", cut=True)
    z = book.op("Tensor.requires_grad_", z, line=6, into=z)
    loss = book.op("mean", z, line=5, result="loss")
    assert told(flow_of(book, loss), w) == "w -> linear:4 -> mul -> h -/- detach:5 -> z -> mean -> loss"


def test_told_names_that_are_too_long_or_said_already_are_left_out() -> None:
    """A name is not said twice, and one that would fill the line is not said; what ends elsewhere is said to."""
    book = Book()
    w = book.leaf("w", grad=True)
    h = book.op("linear", w, result="w")
    h = book.op("relu", h, result="relu")
    h = book.op("tanh", h, result="a_name_that_would_fill_a_line")
    loss = book.op("argmax", h, result="choice", cut=True)
    text = told(flow_of(book, loss), w, end="a plain number")
    assert text == "w -> linear:1 -> relu -> tanh -/- argmax -> choice -> a plain number"


def long_way(before: int, behind: int) -> tuple[StepFlow, int]:
    """A cut with so many operations before it and behind it, each on a line of its own."""
    book = Book()
    w = h = book.leaf("w", grad=True)
    for line in range(before):
        h = book.op(f"before{line}", h, line=line + 1)
    h = book.op("detach", h, line=500, cut=True)
    for line in range(behind):
        h = book.op(f"behind{line}", h, line=line + 1000)
    return flow_of(book, h), w


@pytest.mark.parametrize(
    ("before", "behind"), [(0, 0), (0, 60), (60, 0), (2, 60), (5, 60), (6, 60), (30, 30), (60, 3), (60, 6), (7, 7)]
)
def test_told_shortens_long_paths(before: int, behind: int) -> None:
    """However long a path is, its ends and the cut with its neighbours are told, in some fifteen stations."""
    text = told(*long_way(before, behind))
    words = text.split(" ")
    stations, marks = words[::2], words[1::2]
    assert len(stations) <= 17
    assert marks.count("-/-") == 1
    assert set(marks) <= {"->", "-/-"}
    cut = marks.index("-/-")
    whole = ["w", *(f"before{i}:{i + 1}" for i in range(before)), "detach:500"]
    whole += [*(f"behind{i}:{i + 1000}" for i in range(behind)), "loss"]
    assert stations[cut] == whole[before]
    assert stations[cut + 1 : cut + 3] == whole[before + 1 : before + 3]
    assert (stations[0], stations[-1], stations[-2]) == ("w", "loss", whole[-2])
    # What is told is told in its order, and something is left out exactly where three dots stand.
    assert [station for station in whole if station in stations] == [s for s in stations if s != "..."]
    assert len(stations) <= len(whole)
    for one, next_one in pairwise(stations):
        if "..." not in (one, next_one):
            assert whole.index(next_one) == whole.index(one) + 1
    for gap in (i for i, station in enumerate(stations) if station == "..."):
        assert whole.index(stations[gap + 1]) > whole.index(stations[gap - 1]) + 1


def test_told_without_a_cut() -> None:
    """A path on which nothing is lost is shortened in the same way."""
    book = Book()
    h = book.leaf("w", grad=True)
    for number in range(40):
        h = book.op(f"op{number}", h)
    flow = flow_of(book, h)
    way: Sequence[tuple[Operation, bool]] = [(operation, False) for operation in flow.operations]
    text = flow.told("w", list(way), "loss")
    assert text.startswith("w -> op0:1 -> op1 -> op2 -> ... -> op")
    assert text.endswith("-> op39 -> loss")


def test_told_without_lines() -> None:
    """An operation whose line is not known is told without one."""
    book = Book()
    w = book.leaf("w", grad=True)
    loss = book.op("detach", w, cut=True)
    book.operations[-1] = replace(book.operations[-1], span=None)
    book.operations.append(Operation(1, "mean", (loss,), (loss,), True, (0, 0), span=Span("train.py", 3)))
    flow = flow_of(book, loss)
    assert told(flow, w) == "w -/- detach -> loss"


@pytest.mark.parametrize("young", [False, True])
def test_a_way_from_a_tensor_does_not_lead_through_its_own_making(young: bool) -> None:
    """What is written into a tensor is no part of its way to the loss, be it older than the tensor or made of it."""
    book = Book()
    data = book.leaf("data")
    start = book.op("mul", data)
    w = book.leaf("w", grad=True)
    source = book.op("detach", w, cut=True) if young else start
    w2 = book.op("Tensor.copy_", w, source, into=w)
    flow = flow_of(book, book.op("sum", w2))
    reach = flow.reach(flow.values_of[flow.holder[w]], flow.behind_roots_of(flow.holder[w]))
    assert reach.cuts == reach_of(flow, w).cuts == ()
    assert (flow.behind_roots_of(flow.holder[w]) == flow.behind_roots) is not young


def test_the_way_to_the_cut_keeps_its_history() -> None:
    """Of two ways to the operation that cuts, the one that carries the gradient is told, though it is longer."""
    book = Book()
    w = book.leaf("w", grad=True)
    kept = book.op("exp", book.op("mul", w))
    both = book.op("add", kept, book.op("detach", w, cut=True))
    loss = book.op("floor", both, cut=True)
    flow = flow_of(book, loss)
    way = flow.path([w], flow.maker[loss], frozenset({loss}))
    assert [operation.name for operation, _ in way] == ["mul", "exp", "add", "floor"]
