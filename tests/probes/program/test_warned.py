"""Warnings under observation: shown, raised and judged as without us."""

from __future__ import annotations

import warnings

import torch

from tests.workshop import Workshop

JUDGED = """
    import re
    import threading
    import traceback
    import warnings

    import torch
    import torch.nn.functional as F
    from torch import nn

    w = torch.ones(2, requires_grad=True)
    torch.set_warn_always(True)

    class Says(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            return x * 2

    ways = [
        lambda: torch.ones(2, 3, 4).T,
        lambda: F.mse_loss(torch.ones(2, 1), torch.ones(2)),
        lambda: F.softmax(torch.ones(2, 3)),
        lambda: torch.tensor(torch.ones(2)),
        lambda: (w * 2).grad,
        lambda: Says.apply(w),
    ]
    LINES = [way.__code__.co_firstlineno for way in ways[:-1]] + [Says.forward.__code__.co_firstlineno + 2]

    def shown(judge):
        with warnings.catch_warnings(record=True) as seen:
            warnings.resetwarnings()
            judge()
            globals().pop("__warningregistry__", None)
            for _ in range(3):
                for way in ways:
                    way()
        assert {warning.filename for warning in seen} <= {__file__}
        return [warning.lineno for warning in seen]

    def by_ours():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="__main__")
        assert warnings.filters[0][3] == re.compile("__main__")
        length = len(warnings.filters)
        warnings.filterwarnings("default", module="__main__")
        assert len(warnings.filters) == length

    def by_torch():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", module=r"torch\\.|gradscope\\.")

    def by_python():
        warnings.simplefilter("ignore")
        warnings.filters.insert(0, ("default", None, DeprecationWarning, "__main__", 0))

    assert shown(by_ours) == LINES
    assert shown(by_torch) == LINES
    assert shown(by_python) == LINES[-1:]
    assert shown(lambda: warnings.filterwarnings("ignore", module="__main__")) == []

    def raised(found):
        for way in ways:
            try:
                way()
            except Warning as warning:
                found.append(traceback.extract_tb(warning.__traceback__)[1].lineno)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="__main__")
        for found in ([], []):
            thread = threading.Thread(target=raised, args=[found])
            thread.start()
            thread.join()
            assert found == [way.__code__.co_firstlineno for way in ways]

    # What names the operations for the report must not have Python show a warning again.
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        changed = []
        mutated, warnings._filters_mutated = warnings._filters_mutated, lambda: changed.append(1)
        try:
            for _ in range(3):
                F.mse_loss((w * 2).exp().reshape(2, 1), torch.ones(2)).backward()
                w.data.add_(w.grad)
        finally:
            warnings._filters_mutated = mutated
    assert len(seen) == 1 and not changed
"""


def test_filters_judge_by_the_module_of_the_program(workshop: Workshop) -> None:
    """Whatever the filters ask for, a warning is shown or raised where it would be without us, and as often."""
    before = list(warnings.filters)
    try:
        workshop.run(JUDGED)
    finally:
        torch.set_warn_always(False)
    assert warnings.filters == before
    assert [type(item[3]) for item in warnings.filters] == [type(item[3]) for item in before]
