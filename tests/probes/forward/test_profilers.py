"""Programs that profile themselves."""

from __future__ import annotations

import sys

from gradscope.probes.forward.profilers import _kept
from tests.workshop import Workshop


def test_code_of_modules_imported_under_a_profiler_is_kept(workshop: Workshop) -> None:
    """The profiler reads the names of all code that it has seen at its end, when a module's own code may be gone."""
    workshop.write("value = 2.0\n", "imported_while_profiled.py")
    before = len(_kept)
    try:
        workshop.run(
            """
            import torch
            from torch.profiler import ProfilerActivity, profile

            w = torch.ones(2, requires_grad=True)
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_stack=True) as seen:
                import imported_while_profiled

                (w * imported_while_profiled.value).sum().backward()
            assert "aten::mul" in {event.key for event in seen.key_averages()}
            """
        )
    finally:
        sys.modules.pop("imported_while_profiled", None)
    assert "imported_while_profiled.py" in {code.co_filename.rpartition("/")[2] for code in _kept[before:]}
