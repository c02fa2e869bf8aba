"""One pass over the rules: what is claimed, what of it is explained already, and what is told.

The order of the rules is their precedence. A claim whose troubles other rules have explained before is dropped; it does
not matter whether what they claimed is told or allowed by a comment. A trouble counts as explained for claims that are
no graver than the explanation, so that no warning hides an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Finding, Run, Severity
from gradscope.rules.claim import Claim, Explained, Need, Rule, names_of

WEIGHT: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}
AnyRule: TypeAlias = "Rule[Any]"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules have to say of a run: the most important finding first.

    `explained` are claims of rules whose troubles others had explained before. `failures` has a line for each rule that
    failed, `not_asked` the rules whose needs the run does not meet.
    """

    findings: tuple[Finding, ...]
    failures: tuple[str, ...] = ()
    not_asked: tuple[tuple[AnyRule, Need], ...] = ()
    explained: tuple[tuple[AnyRule, Claim[Any]], ...] = ()


def judge(run: Run, rules: Iterable[AnyRule], is_allowed: Callable[[Run, Finding], bool]) -> Judgement:
    """Ask each rule in its order, and tell what no rule before it has explained, and the program does not allow."""
    work = _Pass(Ask(run), is_allowed)
    for rule in rules:
        missing = next((need for need in rule.needs if need.value not in run.observed), None)
        if missing is not None:
            work.not_asked.append((rule, missing))
            continue
        try:
            work.take(rule)
        except Exception as error:
            work.failures.append(f"rule {rule.name} failed: {type(error).__name__}: {error}")
    work.findings.sort(key=lambda finding: WEIGHT[finding.severity])
    return Judgement(tuple(work.findings), tuple(work.failures), tuple(work.not_asked), tuple(work.explained))


@dataclass(slots=True)
class _Pass:
    """A pass that is under way. `known` holds for each trouble how grave the gravest claim was that explained it."""

    ask: Ask
    is_allowed: Callable[[Run, Finding], bool]
    known: dict[Explained, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_asked: list[tuple[AnyRule, Need]] = field(default_factory=list)
    explained: list[tuple[AnyRule, Claim[Any]]] = field(default_factory=list)

    def take(self, rule: AnyRule) -> None:
        """Hear one rule."""
        open_: list[Claim[Any]] = []
        for claim in rule.claims(self.ask):
            if self._is_explained(rule, claim):
                self.explained.append((rule, claim))
            else:
                open_.append(claim)
        for claims in rule.grouped(open_, self.ask):
            finding = _told(rule, claims, self.ask)
            if not self.is_allowed(self.ask.run, finding):
                self.findings.append(finding)
            for claim in claims:
                self._explain(rule, claim)

    def _is_explained(self, rule: AnyRule, claim: Claim[Any]) -> bool:
        troubles = troubles_of(rule, claim)
        weight = WEIGHT[claim.severity or rule.severity]
        return bool(troubles) and all(self.known.get(trouble, weight + 1) <= weight for trouble in troubles)

    def _explain(self, rule: AnyRule, claim: Claim[Any]) -> None:
        weight = WEIGHT["error"] if rule.takes_over else WEIGHT[claim.severity or rule.severity]
        for trouble in (*troubles_of(rule, claim), *claim.besides):
            self.known[trouble] = min(weight, self.known.get(trouble, weight))


def next_causes(run: Run, finding: Finding, rules: Iterable[AnyRule]) -> tuple[Finding, ...]:
    """What else explains the trouble of a finding: what was claimed of the same tensors and not told, in its order."""
    work = _Pass(Ask(run), lambda *_: False)
    found: list[Finding] = []
    for rule in rules:
        if not all(need.value in run.observed for need in rule.needs):
            continue
        before = len(work.explained)
        work.take(rule)
        others = [
            claim for _, claim in work.explained[before:] if claim.tensor and claim.tensor.name in finding.tensors
        ]
        found += (_told(rule, claims, work.ask) for claims in rule.grouped(others, work.ask))
    return tuple(found)


def troubles_of(rule: AnyRule, claim: Claim[Any]) -> tuple[Explained, ...]:
    """What a claim explains: what it says itself, else the trouble of its rule with its tensor."""
    if claim.explains is not None:
        return claim.explains
    return tuple((trouble, claim.tensor.id if claim.tensor is not None else None) for trouble in rule.explains)


def _told(rule: AnyRule, claims: Sequence[Claim[Any]], ask: Ask) -> Finding:
    """The finding that some claims of one cause are, as grave as the gravest of them."""
    story = rule.tell(claims, ask)
    severity = min((claim.severity or rule.severity for claim in claims), key=WEIGHT.__getitem__)
    return Finding(
        rule.name,
        severity,
        story.message,
        story.span,
        story.caret,
        story.tensors or names_of(claims),
        story.labels,
        story.facts,
        story.help,
        story.operations,
        raised=story.raised,
    )
