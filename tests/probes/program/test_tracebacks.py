"""Exceptions of the program, shown as without us."""

from __future__ import annotations

import sys
import traceback

import pytest

from gradscope.probes.program import tracebacks
from tests.workshop import Workshop


def raising(file: str) -> object:
    """A function that fails, of a file of that name."""
    scope: dict[str, object] = {}
    exec(compile("def fail():\n    raise RecursionError", file, "exec"), scope)
    return scope["fail"]


@pytest.mark.parametrize("ours", [True, False])
def test_what_was_raised_within_our_frames_alone_is_not_shown(ours: bool) -> None:
    """An exception that the program never saw is no context of its own; one of the program's stays."""
    fail = raising(f"{tracebacks.FOLDER}made_up.py" if ours else "train.py")
    assert callable(fail)
    try:
        fail()
    except RecursionError as error:
        first = error
        first.__traceback__ = error.__traceback__.tb_next if error.__traceback__ is not None else None
        second = ValueError("the program's own")
        second.__context__ = first
    tracebacks.clean(second)
    assert second.__context__ is (None if ours else first)


CAUGHT = """
    import logging
    import sys
    import threading
    import traceback
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x)

    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if x.dim() > 1:
                raise ValueError("forward")
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            raise ValueError("backward")

    class Passing(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def through_mode():
        with Passing():
            F.cross_entropy(torch.ones(2, 3), torch.ones(5))

    def hook(gradient):
        raise ValueError("hook")

    def in_hook():
        w = torch.ones(2, requires_grad=True)
        w.register_hook(hook)
        w.sum().backward()

    def closure():
        raise ValueError("closure")

    def wrapped():
        try:
            torch.ones(2) @ torch.ones(3)
        except RuntimeError as error:
            raise KeyError("wrapped") from error

    def twice():
        w = torch.ones(2, requires_grad=True)
        loss = w.exp().sum()
        loss.backward()
        loss.backward()

    net = Net()
    w = torch.ones(2, requires_grad=True)
    ways = [
        lambda: net(torch.ones(3, 5)),
        lambda: torch.ones(2) @ torch.ones(3),
        lambda: F.dropout(torch.ones(2), p=3.0),
        lambda: F.mse_loss(torch.ones(2, 3), torch.ones(5)),
        lambda: F.max_pool2d(torch.ones(2), 2),
        lambda: torch.ones(2).split("x"),
        lambda: torch.unique("x"),
        lambda: torch.einsum("ij,jk", torch.ones(2, 2)),
        lambda: Refuses.apply(torch.ones(2, 2)),
        lambda: Refuses.apply(w).sum().backward(),
        lambda: nn.Parameter(torch.ones(2, dtype=torch.long)),
        lambda: torch.optim.SGD([w * 2], lr=0.1),
        lambda: torch.optim.LBFGS([w], lr=0.1).step(closure),
        lambda: torch.optim.SGD([w], lr=0.1).zero_grad(1, 2, 3),
        lambda: net.train("often"),
        in_hook,
        wrapped,
        twice,
        through_mode,
        lambda: w.backward(),
        lambda: torch.func.vmap(lambda x: x @ torch.ones(7))(torch.ones(2, 2)),
    ]

    def told(entry):
        return entry.name, entry.lineno

    for way in ways:
        try:
            way()
        except Exception as error:
            print(type(error).__name__)
            print(list(map(told, traceback.extract_tb(error.__traceback__))))
            print(traceback.format_exc().count("File "), len(traceback.TracebackException.from_exception(error).stack))
            kept = error
    try:
        net(torch.ones(3, 5))
    except RuntimeError as error:
        trace = error.__traceback__
        while trace is not None:
            print(trace.tb_frame.f_code.co_name, trace.tb_lineno)
            trace = trace.tb_next
    print(sys.excepthook is sys.__excepthook__, sys.excepthook.__name__)
    for way in ways[:7]:
        try:
            way()
        except Exception:
            sys.excepthook(*sys.exc_info())
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    try:
        net(torch.ones(3, 5))
    except RuntimeError:
        logging.exception("caught")

    class Looks(nn.Module):
        def forward(self, x):
            traceback.print_stack(file=sys.stdout)
            print([entry.name for entry in traceback.StackSummary.extract(traceback.walk_stack(None))])
            return x

    Looks()(torch.ones(1))

    def in_thread():
        try:
            net(torch.ones(3, 5))
        except RuntimeError:
            traceback.print_exc(file=sys.stdout)
        traceback.print_stack(file=sys.stdout)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        loss = torch.sqrt(net(torch.ones(3, 2)) * 0).sum() * 0
        loss.backward()
"""


def test_what_a_program_prints_of_tracebacks_is_as_without_us(workshop: Workshop) -> None:
    """Caught, logged, printed as a stack, read off by anomaly mode, or followed by hand: no frame of ours shows."""
    before = traceback.walk_tb, traceback.walk_stack, traceback.extract_stack, sys.excepthook, sys.__excepthook__
    workshop.write(CAUGHT)
    bare, seen = workshop.pair("script.py", options=("--format", "json", "-o", "report.json"))
    assert seen.out == bare.out
    assert seen.err == bare.err
    assert "sqrt" in bare.err
    after = traceback.walk_tb, traceback.walk_stack, traceback.extract_stack, sys.excepthook, sys.__excepthook__
    assert after == before
