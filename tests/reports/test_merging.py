"""Reports of several ranks as one, without any process."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from gradscope.graph.facts import Crash, Finding, Optimizer, Received, Run, Span
from gradscope.graph.facts import Tensor as TensorFacts
from gradscope.reports.merging import Others, RankReport, rank_report, ranks_text, read_rank
from gradscope.reports.report import Report
from tests.reports.test_document import valid

DETACH = Finding("detach", "error", "`a` never learns", Span("net.py", 3, 5, 3, 9), "cut here", ("a",))
UNUSED = Finding("unused-parameter", "warning", "`b` is never trained", Span("net.py", 7, 1, 7, 4), "made here", ("b",))
LINES = {"net.py": {number: f"line {number} of the file" for number in range(1, 400)}}


def tensor(number: int, name: str, steps: int, predicted: bool = True) -> TensorFacts:
    """A parameter that got a gradient in so many of 3 steps."""
    return TensorFacts(
        number, name, (2,), "float32", "cpu", True, True, nn_parameter=True, registered="parameter", optimizer=1,
        received=Received(steps, 3), predicted=predicted, gradient_norms=(1.0,) * 200, made=Span("net.py", 7),
    )  # fmt: skip


def report(*findings: Finding, a: int = 3, b: int = 3, b_predicted: bool = True, crash: Crash | None = None) -> Report:
    """The report of one rank on two parameters."""
    run = Run(
        "0", "2", "train.py", step_count=3, backward_count=3, crash=crash, sources=LINES,
        ended="end" if crash is None else "exception",
        tensors=(tensor(1, "a", a), tensor(2, "b", b, b_predicted)), optimizers=(Optimizer(1, "SGD", (1, 2), 3),),
    )  # fmt: skip
    return Report(run, findings)


def posted(rank: int, of: Report) -> RankReport:
    """What rank 0 reads of another rank."""
    return read_rank(rank_report(rank, of.document, of.findings, of.run.sources))


def test_what_all_ranks_found_is_told_once() -> None:
    """Findings at the same line are one, without a word on ranks in the text."""
    whole = report(DETACH).with_ranks(Others(2, (posted(1, report(DETACH)),)))
    assert whole.findings == (structs.replace(DETACH, ranks=(0, 1)),)
    assert "found on" not in str(whole)
    assert valid(whole)["findings"][0]["ranks"] == [0, 1]


def test_what_some_ranks_found_says_on_which() -> None:
    """A finding of another rank is told with its code, errors first, and fails rank 0."""
    whole = report(UNUSED).with_ranks(Others(3, (posted(1, report(DETACH)), posted(2, report(DETACH, UNUSED)))))
    assert [(finding.rule, finding.ranks) for finding in whole.findings] == [
        ("detach", (1, 2)),
        ("unused-parameter", (0, 2)),
    ]
    assert "= found on ranks 1 and 2 of 3" in str(whole)
    assert "3 | line 3 of the file" in str(whole)
    assert whole.at_least("error")


def test_sources_of_other_ranks_come_along() -> None:
    """Rank 0 may never have read the file that only another rank ran."""
    elsewhere = structs.replace(DETACH, span=Span("other.py", 9, 1, 9, 4))
    own = report()
    other = Report(replace(report().run, sources={"other.py": {9: "only there"}}), (elsewhere,))
    assert "9 | only there" in str(own.with_ranks(Others(2, (posted(1, other),))))


def test_a_tensor_that_some_ranks_reach_is_told() -> None:
    """None arrived on rank 1, or one arrived which only the average of DDP can have brought."""
    for other in (report(b=0), report(b=3, b_predicted=False)):
        whole = report().with_ranks(Others(2, (posted(1, other),)))
        assert {row.name: row.ranks for row in whole.tensors} == {"a": (0, 1), "b": (0,)}
        assert "reached by backward on rank 0 of 2 and not on rank 1 of 2: b (made at net.py:7)" in str(whole)
    assert "reached by" not in str(report().with_ranks(Others(2, (posted(1, report()),))))


def test_a_rank_that_raised_too_early_cannot_tell() -> None:
    """A parameter that was counted on some ranks only is not compared."""
    early = report()
    early = Report(replace(early.run, tensors=tuple(replace(row, received=None) for row in early.run.tensors)), ())
    whole = early.with_ranks(Others(2, (posted(1, report()),)))
    assert {row.ranks for row in whole.tensors} == {None}
    assert "reached by" not in str(whole)


def test_ranks_that_failed_or_are_silent_are_told() -> None:
    """Rank 1 raised, rank 2 did not report; the rest stands."""
    crash = Crash("ValueError", "no", Span("net.py", 5))
    whole = report().with_ranks(Others(3, (posted(1, report(crash=crash)),)))
    said = str(whole)
    assert "no report came from rank 2 of 3" in said
    assert "rank 1 raised ValueError at net.py:5" in said
    assert "train.py, 3 ranks, 3 steps" in said
    rows = valid(whole)["ranks"]
    assert [(row["rank"], row["reported"], row["ended"]) for row in rows] == [
        (0, True, "end"),
        (1, True, "exception"),
        (2, False, None),
    ]
    assert "no report came from rank 2 of 3" in whole.to_html()


def test_a_single_process_has_no_ranks() -> None:
    """Nothing of it shows where there is one process."""
    document = valid(report(DETACH))
    assert document["ranks"] == []
    assert document["findings"][0]["ranks"] == []
    assert {row["ranks"] for row in document["tensors"]} == {None}


def test_what_travels_is_small() -> None:
    """Neither the series of gradients nor lines far from the findings go to rank 0."""
    of = report(DETACH)
    data = rank_report(1, of.document, of.findings, of.run.sources)
    assert len(data) < 5_000 < len(of.to_json()) + 20 * 400
    assert max(read_rank(data).sources["net.py"]) < 20


def test_many_ranks_are_counted() -> None:
    """Eight numbers are enough."""
    assert ranks_text(range(8), 16) == "on ranks 0, 1, 2, 3, 4, 5, 6 and 7 of 16"
    assert ranks_text(range(12), 16) == "on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more of 16"
