"""The one pass over the rules: who explains whom, what is told of it, and what is not asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Finding, Run, Tensor
from gradscope.rules.claim import Claim, Need, Story, Trouble, names_of, rule
from gradscope.rules.engine import AnyRule, Judgement, judge
from tests.runs import Book

LEARNS = (Trouble.NEVER_LEARNS,)


def run_of(*names: str) -> Run:
    """A run that knows these tensors."""
    book = Book()
    for name in names:
        book.leaf(name, grad=True)
    return book.run()


def blaming(title: str, *names: str, severity: str = "error", explains: Sequence[Trouble] = LEARNS) -> AnyRule:
    """A rule that has one cause for these tensors."""

    def claims(ask: Ask) -> Iterator[Claim[str]]:
        for tensor in ask.run.tensors:
            if tensor.name in names:
                yield Claim("cause", title, tensor)

    claims.__name__ = title.replace("-", "_")
    made = rule(severity, explains)(claims)  # type: ignore[arg-type]
    made.words(lambda told, ask: Story(f"{title}: {', '.join(names_of(told))}", None))
    return made


def told(judgement: Judgement) -> list[tuple[str, tuple[str, ...]]]:
    """The rules that speak, and of which tensors."""
    return [(finding.rule, finding.tensors) for finding in judgement.findings]


def never(run: Run, finding: Finding) -> bool:
    """No comment allows anything."""
    return False


def test_what_is_explained_is_not_told_again() -> None:
    """A later rule speaks of those tensors only that no rule before it has explained."""
    first, second = blaming("first", "a", "b"), blaming("second", "a", "b", "c")
    judgement = judge(run_of("a", "b", "c"), [first, second], never)
    assert told(judgement) == [("first", ("a", "b")), ("second", ("c",))]
    assert [(rule.name, claim.tensor.name) for rule, claim in judgement.explained if claim.tensor] == [
        ("second", "a"),
        ("second", "b"),
    ]
    assert told(judge(run_of("a", "b", "c"), [second, first], never)) == [("second", ("a", "b", "c"))]


def test_a_warning_hides_no_error() -> None:
    """What is explained by a lesser severity is told nevertheless, unless the lesser rule takes it over."""
    warning, error = blaming("warning", "a", severity="warning"), blaming("error", "a")
    assert told(judge(run_of("a"), [warning, error], never)) == [("error", ("a",)), ("warning", ("a",))]
    warning.takes_over = True
    assert told(judge(run_of("a"), [warning, error], never)) == [("warning", ("a",))]


def test_what_explains_nothing_is_always_told() -> None:
    """A rule without troubles stands for itself, and keeps no other from speaking."""
    rules = [blaming("remark", "a", explains=()), blaming("cause", "a"), blaming("other", "a", explains=())]
    assert [name for name, _ in told(judge(run_of("a"), rules, never))] == ["remark", "cause", "other"]


def test_an_allowed_finding_still_explains() -> None:
    """A comment silences a cause together with its symptoms."""
    rules = [blaming("cause", "a"), blaming("symptom", "a")]
    assert told(judge(run_of("a"), rules, lambda run, finding: finding.rule == "cause")) == []
    assert told(judge(run_of("a"), rules[1:], never)) == [("symptom", ("a",))]


def test_a_rule_is_asked_where_its_needs_are_met() -> None:
    """A rule that needs what was not observed is not asked, and that is said."""
    counting = blaming("counting", "a")
    counting.needs = ()
    run = replace(run_of("a"), observed=("values",))
    judgement = judge(run, [blaming("walking", "a"), counting], never)
    assert told(judgement) == [("counting", ("a",))]
    assert [(rule.name, need) for rule, need in judgement.not_asked] == [("walking", Need.OPERATIONS)]


def test_a_question_is_answered_once() -> None:
    """An answer is kept for what it is about, and for this run only."""
    asked: list[object] = []

    def question(ask: Ask, about: int) -> Tensor:
        asked.append(about)
        return ask.run.tensors[about]

    ask = Ask(run_of("a", "b"))
    assert [ask(question, 0).name, ask(question, 1).name, ask(question, 0).name] == ["a", "b", "a"]
    assert asked == [0, 1]
    assert Ask(run_of("a"))(question, 0).name == "a"
    assert asked == [0, 1, 0]
