"""Choosing rules, allowing a finding on its line, and a rule that fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from gradscope.graph.ask import Ask
from gradscope.reports.report import Report
from gradscope.rules import RULES, UnknownRule, chosen, judge
from gradscope.rules.claim import Claim, rule
from gradscope.rules.pages import page_of
from tests.workshop import Workshop

CUT = """
    import torch

    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    for _ in range(2):
        loss = (a.detach() * b).sum(){comment}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_bad_draws_its_rule_and_good_draws_nothing(rule: object, workshop: Workshop) -> None:
    """The Bad program of a page draws that rule first, with all rules on; the Good one draws nothing."""
    page = page_of(rule)  # type: ignore[arg-type]
    assert page.what.endswith(".")
    assert page.why
    checks = ["batch"] if "--check batch" in page.why else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some of these as well
        bad = workshop.observe(page.bad, checks=checks)
    assert [finding.rule for finding in Report.of(bad.run).findings][:1] == [page.name]
    good = workshop.observe(page.good, checks=checks)
    assert good.error is None
    assert Report.of(good.run).findings == ()


def test_comment_allows_a_finding(workshop: Workshop) -> None:
    """`# gradscope: allow[detach]` at the end of a line silences that rule there, and no other rule."""
    assert [f.rule for f in Report.of(workshop.run(CUT.format(comment=""))).findings] == ["detach"]
    assert Report.of(workshop.run(CUT.format(comment="  # gradscope: allow[detach]"))).findings == ()
    other = Report.of(workshop.run(CUT.format(comment="  # gradscope: allow[no-grad]")))
    assert [f.rule for f in other.findings] == ["detach"]


def test_select_and_ignore(workshop: Workshop) -> None:
    """Selected rules run alone, ignored ones do not, and an unknown name is refused with one that is near."""
    run = workshop.run(CUT.format(comment=""))
    assert Report.of(run, select=["no-grad"]).findings == ()
    assert Report.of(run, ignore=["detach"]).findings == ()
    with pytest.raises(UnknownRule, match="did you mean detach"):
        chosen(select=["detatch"])


def test_failing_rule_costs_one_line(workshop: Workshop) -> None:
    """A rule that raises is told in one line, and the other rules are heard."""

    @rule("error")
    def broken(ask: Ask) -> Iterator[Claim[None]]:
        raise ZeroDivisionError("no")

    told = judge(workshop.run(CUT.format(comment="")), [broken, *RULES])
    assert [finding.rule for finding in told.findings] == ["detach"]
    assert told.failures == ("rule broken failed: ZeroDivisionError: no",)


def test_rules_and_pages_on_the_command_line(workshop: Workshop) -> None:
    """`rules` gives every rule a line, `rule NAME` its page, and an unknown name one line and exit code 2."""
    listed = workshop.gradscope("rules")
    assert [line.split()[0] for line in listed.out.splitlines()] == [rule.name for rule in RULES]
    page = workshop.gradscope("rule", "no-grad")
    assert page.status == 0
    assert "Bad:" in page.out
    unknown = workshop.gradscope("rule", "nograd")
    assert unknown.status == 2
    assert unknown.err == "gradscope: there is no rule 'nograd': did you mean no-grad?\n"
