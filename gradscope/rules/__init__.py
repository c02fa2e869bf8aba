"""What may be wrong with a program, read from the facts of its run.

One rule is one function from a `Run` to its findings; the function's docstring is the rule's page. The order of
`RULES` is the precedence: what comes first is the better explanation of the same trouble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gradscope.graph.facts import Finding, Run
from gradscope.rules.cut import detach, left_torch, missing_create_graph, no_grad, non_differentiable_op, rebuilt_tensor
from gradscope.rules.not_reached import frozen_parameter, non_leaf, unregistered_parameter, unused_parameter

Rule = Callable[[Run], Iterable[Finding]]

RULES: tuple[Rule, ...] = (
    detach,
    no_grad,
    rebuilt_tensor,
    left_torch,
    missing_create_graph,
    non_differentiable_op,
    unused_parameter,
    unregistered_parameter,
    frozen_parameter,
    non_leaf,
)

_WEIGHT = {"error": 0, "warning": 1, "info": 2}


def rule_name(rule: Rule) -> str:
    """The name by which users know a rule: `unused-parameter`."""
    return rule.__name__.replace("_", "-")


def judge(run: Run, rules: Iterable[Rule] = RULES) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """All findings, most important first, and a line for each rule that failed."""
    findings: list[Finding] = []
    failures: list[str] = []
    for rule in rules:
        try:
            findings += rule(run)
        except Exception as error:
            failures.append(f"rule {rule_name(rule)} failed: {type(error).__name__}: {error}")
    findings.sort(key=lambda finding: _WEIGHT[finding.severity])
    return tuple(findings), tuple(failures)
