"""What may be wrong with a program, read from the facts of its run.

One rule is one function that claims what some subjects suffer from, and the words for it (`gradscope.rules.claim`);
its docstring is the rule's page. One pass asks them in the order of `RULES` (`gradscope.rules.engine`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from gradscope.errors import GradscopeError
from gradscope.graph.comments import comments_in
from gradscope.graph.facts import Finding, Run
from gradscope.graph.garbage import uncollected
from gradscope.rules import engine
from gradscope.rules.axes import reshape_mixes_axes, softmax_dim
from gradscope.rules.batches import batch_leak
from gradscope.rules.clips import misplaced_clip
from gradscope.rules.constant import constant_loss
from gradscope.rules.custom import custom_function
from gradscope.rules.cut import detach, left_torch, missing_create_graph, no_grad, non_differentiable_op, rebuilt_tensor
from gradscope.rules.engine import AnyRule, Judgement
from gradscope.rules.freed import freed_graph
from gradscope.rules.identical import identical_units
from gradscope.rules.inplace import inplace_modified
from gradscope.rules.losses import target_gradient, weights_after_reduction
from gradscope.rules.masking import mask_after_softmax
from gradscope.rules.memory import graph_growth
from gradscope.rules.modes import eval_mode, train_mode
from gradscope.rules.movement import frozen_but_updated, no_update
from gradscope.rules.nonfinite import nonfinite_forward, nonfinite_gradient
from gradscope.rules.not_reached.frozen import frozen_parameter
from gradscope.rules.not_reached.inputs import unused_input
from gradscope.rules.not_reached.non_leaf import non_leaf
from gradscope.rules.not_reached.unregistered import unregistered_parameter
from gradscope.rules.not_reached.unused import unused_parameter
from gradscope.rules.order import missing_zero_grad, never_stepped, step_without_backward, zero_grad_before_step
from gradscope.rules.overwriting import overwritten_update
from gradscope.rules.ownership import not_in_optimizer, stale_optimizer
from gradscope.rules.padding import padding_row
from gradscope.rules.raised import inference_tensor, integer_requires_grad, leaf_inplace, non_scalar_backward
from gradscope.rules.refused.history import deepcopy_non_leaf, non_differentiable_argument, vmap_inplace
from gradscope.rules.refused.indices import index_range
from gradscope.rules.refused.passes import checkpoint_mismatch, compiled_backward, ready_twice
from gradscope.rules.refused.shapes import shape_mismatch
from gradscope.rules.refused.types import device_mismatch, dtype_mismatch
from gradscope.rules.scaling import scaler_skips
from gradscope.rules.semantics import double_softmax, loss_broadcast
from gradscope.rules.sharing import rebuilt_optimizer, shared_module
from gradscope.rules.squashed import squashed_output
from gradscope.rules.step_size import step_size
from gradscope.rules.values import exploding_gradient, vanishing_gradient
from gradscope.rules.zero import zero_gradient

# What comes first is the better explanation of the same trouble.
RULES: tuple[AnyRule, ...] = (
    checkpoint_mismatch,
    ready_twice,
    vmap_inplace,
    compiled_backward,
    deepcopy_non_leaf,
    non_differentiable_argument,
    inplace_modified,
    leaf_inplace,
    non_leaf,
    freed_graph,
    non_scalar_backward,
    inference_tensor,
    integer_requires_grad,
    custom_function,
    device_mismatch,
    dtype_mismatch,
    shape_mismatch,
    index_range,
    frozen_parameter,
    stale_optimizer,
    detach,
    no_grad,
    rebuilt_tensor,
    left_torch,
    missing_create_graph,
    non_differentiable_op,
    unused_input,
    not_in_optimizer,
    rebuilt_optimizer,
    step_without_backward,
    zero_grad_before_step,
    unused_parameter,
    unregistered_parameter,
    misplaced_clip,
    missing_zero_grad,
    never_stepped,
    overwritten_update,
    frozen_but_updated,
    step_size,
    exploding_gradient,
    no_update,
    shared_module,
    graph_growth,
    target_gradient,
    nonfinite_forward,
    nonfinite_gradient,
    scaler_skips,
    squashed_output,
    zero_gradient,
    padding_row,
    identical_units,
    constant_loss,
    vanishing_gradient,
    double_softmax,
    weights_after_reduction,
    loss_broadcast,
    mask_after_softmax,
    reshape_mixes_axes,
    softmax_dim,
    eval_mode,
    train_mode,
    batch_leak,
)

_ALLOW = re.compile(r"#\s*gradscope:\s*allow\[([\w\s,-]+)\]")


class UnknownRule(GradscopeError):
    """There is no rule of this name."""


def rule_named(name: str) -> AnyRule:
    """The rule of a name. Raises UnknownRule, with names that are near."""
    known = {rule.name: rule for rule in RULES}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`gradscope rules` lists them"
        raise UnknownRule(f"there is no rule {name!r}: {hint}")
    return known[name]


def chosen(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> tuple[AnyRule, ...]:
    """The rules that are to run, in their order. Raises UnknownRule."""
    wanted = {rule_named(name) for name in select} or set(RULES)
    unwanted = {rule_named(name) for name in ignore}
    return tuple(rule for rule in RULES if rule in wanted and rule not in unwanted)


def judge(run: Run, rules: Iterable[AnyRule] = RULES) -> Judgement:
    """What is to be told of a run. A finding is left out where its line ends with `# gradscope: allow[RULE]`."""
    with uncollected():
        return engine.judge(run, rules, _is_allowed)


def next_causes(run: Run, finding: Finding, rules: Iterable[AnyRule] = RULES) -> tuple[Finding, ...]:
    """What else would explain the trouble of a finding, the likeliest first."""
    with uncollected():
        return engine.next_causes(run, finding, rules)


def _is_allowed(run: Run, finding: Finding) -> bool:
    if finding.span is None:
        return False
    first, last = finding.span.line, finding.span.end_line or finding.span.line
    comments = _comments(run, finding.span.file, first, last)
    for number in {first, last}:
        found = _ALLOW.search(comments.get(number, ""))
        if found is not None and finding.rule in re.split(r"[\s,]+", found[1].strip()):
            return True
    return False


def _comments(run: Run, file: str, first: int, last: int) -> Mapping[int, str]:
    if run.comments is not None:
        return run.comments.get(file, {})
    # Kept before comments were looked for: the expression's own lines are all that tell.
    lines = run.sources.get(file, {})
    text = "\n".join(["(", *(lines.get(number, "") for number in range(first, min(last, first + len(lines)) + 1))])
    return {number + first - 2: comment for number, comment in comments_in(text).items()}
