"""Programs that put functions of their own in the place of torch's."""

from __future__ import annotations

from tests.workshop import Workshop, operations


def test_a_wrapper_of_a_function_runs_once(workshop: Workshop) -> None:
    """The original is called, under its own name, and recorded once."""
    run = workshop.run(
        """
        import torch, torch.nn.functional as F
        real, calls = F.mse_loss, []
        def doubled(*args):
            calls.append(1)
            return real(*args) * 2
        w = torch.ones(3, requires_grad=True)
        F.mse_loss = doubled
        try:
            loss = F.mse_loss(w, torch.zeros(3))
        finally:
            F.mse_loss = real
        assert (loss.item(), len(calls)) == (2.0, 1)
        """
    )
    assert [operation.name for operation in operations(run)].count("nn.functional.mse_loss") == 1


def test_wrappers_of_methods_and_callables_without_a_hash_run_once(workshop: Workshop) -> None:
    """Methods are asked for from C code and from Python code; a callable need not be a function."""
    workshop.run(
        """
        import torch, torch.nn.functional as F
        class Counting:
            __hash__ = None
            def __init__(self, real):
                self.real, self.calls = real, 0
            def __call__(self, *args):
                self.calls += 1
                return self.real(*args)
        added, norm = [], F.normalize
        def add(self, other, real=torch.Tensor.add):
            added.append(1)
            return real(self, other)
        def backward(self, real=torch.Tensor.backward):
            added.append(2)
            real(self)
        was = torch.Tensor.backward
        w = torch.ones(3, requires_grad=True)
        F.normalize = counting = Counting(norm)
        torch.Tensor.add, torch.Tensor.backward = add, backward
        try:
            F.normalize(w.add(1), 2.0, 0).sum().backward()
        finally:
            del torch.Tensor.add
            torch.Tensor.backward, F.normalize = was, norm
        assert added == [1, 2] and counting.calls == 1
        """
    )


def test_a_view_is_left_alone_while_autograd_holds_its_lock(workshop: Workshop) -> None:
    """Its node is made anew inside of a lock that a question for `is_leaf` would wait for."""
    workshop.run(
        """
        import torch
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.mark_dirty(x)
                return x.mul_(2)
            @staticmethod
            def backward(ctx, g):
                return g * 2
        a = torch.ones(4, requires_grad=True) * 2
        v = Double.apply(a[:2])
        assert v.sum().item() == 8
        """
    )


def test_operators_of_torch_that_are_objects_are_called_as_such(workshop: Workshop) -> None:
    """A custom Function within a transform is one: its method asks, and it is the object that is to be called."""
    workshop.run(
        """
        import torch
        class Cubed(torch.autograd.Function):
            generate_vmap_rule = True
            @staticmethod
            def forward(x):
                return x**3
            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(*inputs)
            @staticmethod
            def backward(ctx, g):
                return 3 * ctx.saved_tensors[0] ** 2 * g
        x = torch.full((3,), 2.0)
        assert torch.vmap(Cubed.apply)(x).tolist() == [8, 8, 8]
        assert torch.func.grad(lambda x: Cubed.apply(x).sum())(x).tolist() == [12, 12, 12]
        """
    )
