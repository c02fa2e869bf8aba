"""Programs that look at the stack of function modes, and take modes off it."""

from __future__ import annotations

from tests.workshop import Workshop, operations


def test_the_stack_of_modes_is_the_programs(workshop: Workshop) -> None:
    """Ours is neither counted nor shown nor taken off, by whatever name the program asks; and it stays on."""
    run = workshop.run(
        """
        import torch
        from torch.overrides import (
            TorchFunctionMode, _get_current_function_mode, _get_current_function_mode_stack, _len_torch_function_stack,
            _pop_mode, _pop_mode_temporarily, _push_mode,
        )
        def refused(call, *args):
            try:
                call(*args)
            except Exception as error:
                return type(error).__name__
        assert _len_torch_function_stack() == torch._C._len_torch_function_stack() == 0
        assert _get_current_function_mode() is None and _get_current_function_mode_stack() == []
        assert refused(_pop_mode) == refused(torch._C._pop_torch_function_stack) == "RuntimeError"
        assert refused(torch._C._get_function_stack_at, 0) == "RuntimeError"
        class Own(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                return function(*args, **(kwargs or {}))
        with Own() as outer, Own() as inner:
            assert _get_current_function_mode_stack() == [outer, inner]
            assert torch._C._get_function_stack_at(0) is outer and _get_current_function_mode() is inner
            assert _pop_mode() is inner and torch._C._len_torch_function_stack() == 1
            with _pop_mode_temporarily() as popped:
                assert popped is outer and _get_current_function_mode() is None
            _push_mode(inner)
        with torch.device("cpu"), Own():
            assert len(_get_current_function_mode_stack()) == 2
            torch.ones(2)
        assert _get_current_function_mode_stack() == []
        w = torch.ones(2, requires_grad=True)
        w.sum().backward()
        """
    )
    assert "sum" in {operation.name.rpartition(".")[2] for operation in operations(run)}
