"""The mends of the rules' pages: what the Bad program of a page is told to change makes it silent."""

from __future__ import annotations

import pytest

from gradscope.rules import RULES
from gradscope.rules.engine import AnyRule
from gradscope.rules.pages import page_of
from tests.rules.mending import mended
from tests.workshop import Workshop

# Rules whose pages are mended by no edit, and why.
WITHOUT_EDIT = {
    "non-differentiable-op": "what is to be learned instead, scores or a relaxation, is for the author to say",
    "unused-input": "which of two tensors was meant is not in the source",
    "unused-parameter": "where in the forward a layer belongs is not in the source",
    "non-differentiable-argument": "a constant, or another formula",
    "vmap-inplace": "the whole function is written otherwise",
    "deepcopy-non-leaf": "whether the copy is needed, and with what",
    "device-mismatch": "a device that one machine has is none of another",
    "dtype-mismatch": "which side converts",
    "exploding-gradient": "an architecture",
    "vanishing-gradient": "an architecture",
    "no-update": "another type, or another learning rate",
    "scaler-skips": "what is not finite is told by other rules",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_edits_of_a_page_mend_it(rule: AnyRule, workshop: Workshop) -> None:
    """The first edits of the first finding make the Bad program silent; pages without edits stand in the list."""
    page = page_of(rule)
    result = mended(workshop, page.bad, ["batch"] if "--check batch" in page.why else [])
    has_edits = any(help_.edits for help_ in result.finding.help)
    assert has_edits != (page.name in WITHOUT_EDIT), result.finding.help
    if has_edits:
        assert result.then == [], result.more
