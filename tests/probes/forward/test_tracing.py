"""`torch.jit.trace` at the end of a training: nothing of ours shows in the trace, and nothing of it in the report."""

from __future__ import annotations

import pytest

from gradscope.graph.storage import decode, encode
from tests.workshop import Workshop, named, operations

SOURCE = """
    import warnings
    import torch
    from torch import nn
    warnings.simplefilter("ignore")

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        net(torch.ones(5, 4)).sum().backward()
        optimizer.step()

    for _ in range(4):
        step()

    def by_size(x):
        return x.view(x.shape[0], -1).reshape(x.size(0), 2, 2).sum()

    graphs = [
        str(torch.jit.trace(net, torch.ones(2, 4)).inlined_graph),
        str(torch.jit.trace(by_size, torch.ones(2, 4)).graph),
        str(torch.jit.trace_module(net, {"forward": torch.ones(2, 4)}).inlined_graph),
    ]
    try:
        torch.jit.trace(lambda x: x @ torch.ones(9, 9), torch.ones(2, 4))
    except RuntimeError:
        step()
    print("".join(graphs))
"""


def test_a_trace_is_left_alone(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """Operations before and after a trace are recorded, those of the trace are not, and the run can be kept."""
    run = workshop.run(SOURCE)
    traced = capsys.readouterr().out
    assert run.step_count == 5
    assert named(run, "net.0.weight").received is not None
    assert all(type(size) is int for tensor in run.tensors for size in tensor.shape)
    assert [operation.name for operation in operations(run)].count("Tensor.view") == 0
    assert decode(encode(run)) == run
    namespace: dict[str, object] = {"__name__": "bare"}
    workshop.write(SOURCE)
    exec((workshop.folder / "script.py").read_text(), namespace)
    assert capsys.readouterr().out.count("aten::size") == traced.count("aten::size")


def test_nothing_is_looked_at_in_a_trace_after_a_step_that_failed(workshop: Workshop) -> None:
    """Whatever was left of the step, and whatever modes the program has on: torch would crash over our questions."""
    run = workshop.run(
        """
        import warnings
        import torch
        from torch import nn
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
        optimizer = torch.optim.Adadelta(net.parameters(), differentiable=True)
        net(torch.ones(2, 3)).sum().backward()
        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return 2 * x
            @staticmethod
            def backward(ctx, gradient):
                return 2 * gradient
        def scaled(x):
            return Doubled.apply(net(x)) * x.shape[0]
        raised = 0
        for _ in range(2):
            try:
                optimizer.step()
            except RuntimeError:
                raised += 1
            try:
                torch.jit.trace(scaled, torch.ones(2, 3))
            except RuntimeError as error:
                assert "requires grad as a constant" in str(error)
                raised += 1
        assert raised == 4
        net.requires_grad_(False)
        with torch.device("cpu"):
            traced = torch.jit.trace(scaled, torch.ones(2, 3))
        assert str(traced.graph).count("aten::size") == 1
        """
    )
    assert not {"linear", "Doubled"} & {operation.name.rpartition(".")[2] for operation in operations(run)[-3:]}
