"""Backwards that checkpointing, DDP or a compiled graph refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Crash, Help, Label, Operation, Recomputed, Span, Tensor
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.recomputes import Departure, departure, joins
from gradscope.graph.refusals import RefusedBackward, refused_backward
from gradscope.rules.claim import Claim, Story, Trouble, rule


class _Departed(NamedTuple):
    backward: Span | None
    crash: Crash
    recomputed: Recomputed
    departure: Departure | None


@rule("error", [Trouble.REFUSED])
def checkpoint_mismatch(ask: Ask) -> Iterator[Claim[_Departed]]:
    """A function under `checkpoint` runs otherwise when backward runs it again.

    Checkpointing saves nothing of a function and computes it once more in backward. What decides there has to be as it
    was: a cache that the first run has filled, a counter, a number drawn by Python or NumPy, a mode that was switched
    in between lead the second run another way.

    Bad:

        import torch
        from torch import nn
        from torch.utils.checkpoint import checkpoint

        class Memory(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.seen = nn.Linear(4, 4), []

            def forward(self, x):
                self.seen.append(self.layer(x))
                return torch.cat(self.seen).tanh().mean(0)

        net = Memory()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            net.seen.clear()
            loss = checkpoint(net, torch.rand(8, 4), use_reentrant=False).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn
        from torch.utils.checkpoint import checkpoint

        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 4)

            def forward(self, x):
                return self.layer(x).tanh().mean(0)

        net = Layer()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = checkpoint(net, torch.rand(8, 4), use_reentrant=False).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    backwards = [backward for step in ask.run.steps for backward in step.backwards]
    crash = ask.run.crash
    if crash is None or not backwards or not backwards[-1].failed or backwards[-1].refused is None:
        return
    recomputed = backwards[-1].refused.recomputed
    if recomputed is None:
        return
    departed = departure(ask, RefusedBackward(backwards[-1], crash))
    # Whatever a second run raises by itself is no trouble of checkpointing while it goes the way of the first.
    if departed is not None or crash.symptom == "recomputed otherwise":
        yield Claim(recomputed.span, _Departed(backwards[-1].span, crash, recomputed, departed))


@checkpoint_mismatch.words
def _(told: Sequence[Claim[_Departed]], ask: Ask) -> Story:
    backward, crash, recomputed, departed = told[0].evidence
    call = recomputed.span
    labels = []
    switched = recomputed.switched
    span: Span | None
    if departed is not None:
        span, caret = departed.told.span, _caret(departed)
        message = f"{_subject(departed)} when backward runs what is under `checkpoint` again"
    elif switched is not None:
        span, caret = switched, "switches modules between training and evaluation"
        message = "modules are in another mode when backward runs what is under `checkpoint` again"
    else:
        span, caret = call, "backward runs this again"
        message = "what runs under `checkpoint` is not the same when backward runs it again"
    if switched is not None and switched != span:
        labels.append(Label(switched, "modules were switched between training and evaluation here"))
    if call is not None and call != span:
        labels.append(Label(call, "what runs under `checkpoint` here runs twice: now, and in backward"))
    if backward is not None and backward != span:
        labels.append(Label(backward, f"it runs again here, and torch raises {crash.type}"))
    return Story(
        message,
        span,
        caret,
        (),
        tuple(labels),
        (f"torch says: {crash.message}",),
        (Help(_mend(recomputed, departed)),),
        raised=True,
    )


_MEND = (
    "let it decide by its arguments alone: no counter and no cache that the first run changes, random numbers drawn by"
    " torch, and the same modes in backward as in forward"
)
_MEND_OF_MODE = "call backward before the mode is switched, or switch it back first: it has to be that of forward"
_MEND_OF_CACHE = (
    "keep nothing from the first run that the second one meets: no cache while checkpointing, or one made anew inside"
)


def _mend(recomputed: Recomputed, departed: Departure | None) -> str:
    if departed is not None and joins(departed.again):
        return _MEND_OF_CACHE
    # A mode adds or leaves out no operation by itself where the program does not ask for it.
    return _MEND_OF_MODE if recomputed.switched is not None else _MEND


def _subject(departed: Departure) -> str:
    name = f"`{short_name(departed.told.name)}`"
    if departed.first is None:
        return f"{name} runs only the second time,"
    if departed.again is None:
        return f"{name} ran the first time and not"
    if departed.first.span == departed.again.span:
        return f"{name} gives another shape"
    return f"`{short_name(departed.first.name)}` ran the first time, and {name} runs instead"


def _caret(departed: Departure) -> str:
    if departed.first is None:
        return "not run the first time"
    if departed.again is None:
        return "run the first time only"
    if departed.first.span == departed.again.span:
        shapes = [shape_text(each.shape) for each in departed if each is not None and each.shape is not None]
        return f"{shapes[0]} the first time, {shapes[-1]} the second" if len(shapes) == 2 else "of another shape"
    return "run the second time only"


class _Marked(NamedTuple):
    """A parameter of a DDP that was done with twice, as far as the record tells how."""

    flow: StepFlow
    crash: Crash
    backward: Span | None
    tensors: tuple[Tensor, ...] = ()
    reentrant: Operation | None = None
    sinks: tuple[Operation, ...] = ()
    outside: Operation | None = None


@rule("error", [Trouble.REFUSED])
def ready_twice(ask: Ask) -> Iterator[Claim[_Marked]]:
    """A DistributedDataParallel is told twice in one backward that the gradient of a parameter is there.

    DDP sends a gradient as soon as it is complete. With `find_unused_parameters=True` each forward counts those
    parameters as complete that its own result does not need: what an earlier forward of the same step uses, or the
    program uses outside of `forward`, then comes a second time. Reentrant checkpointing hides what it uses, and goes
    back in passes of its own.

    Bad:

        import os
        import socket
        import torch
        import torch.distributed as dist
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

            def forward(self, x, classify):
                return self.head(self.body(x)) if classify else self.other(self.body(x))

        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.setdefault("MASTER_PORT", str(free.getsockname()[1]))
        dist.init_process_group("gloo", rank=0, world_size=1)
        net = nn.parallel.DistributedDataParallel(Net(), find_unused_parameters=True)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        try:
            for _ in range(3):
                first, second = net(torch.rand(8, 4), True), net(torch.rand(8, 4), False)
                loss = first.square().mean() + second.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finally:
            dist.destroy_process_group()

    Good:

        import os
        import socket
        import torch
        import torch.distributed as dist
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

            def forward(self, x, y):
                return self.head(self.body(x)), self.other(self.body(y))

        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.setdefault("MASTER_PORT", str(free.getsockname()[1]))
        dist.init_process_group("gloo", rank=0, world_size=1)
        net = nn.parallel.DistributedDataParallel(Net())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        try:
            for _ in range(3):
                first, second = net(torch.rand(8, 4), torch.rand(8, 4))
                loss = first.square().mean() + second.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finally:
            dist.destroy_process_group()
    """
    refused = refused_backward(ask, "ready twice")
    all_flows = ask(flows)
    if refused is None or not all_flows:
        return
    flow, span = all_flows[-1], refused.backward.span
    held = [tensor for tensor in ask.run.tensors if tensor.leaf and tensor.requires_grad and tensor.nn_parameter]
    reentrant = [operation for operation in flow.operations if ops.is_a(operation, ops.REENTRANT)]
    if reentrant:
        runs = {operation.id for operation in reentrant}
        used = {flow.holder[v] for operation in flow.operations if operation.within in runs for v in operation.inputs}
        tensors = tuple(tensor for tensor in held if tensor.id in used)
        yield Claim(span, _Marked(flow, refused.crash, span, tensors, reentrant[-1]))
        return
    sinks = tuple(operation for operation in flow.operations if ops.is_a(operation, ops.DDP_SINKS))
    tensors = tuple(tensor for tensor in held if sinks and _twice(flow, tensor, sinks[-1]))
    yield Claim(span, _Marked(flow, refused.crash, span, tensors, None, sinks, _outside(flow, tensors, sinks)))


def _twice(flow: StepFlow, tensor: Tensor, last: Operation) -> bool:
    """Whether the loss needs a parameter which the latest forward does not."""
    values = set(flow.values_of.get(tensor.id, ()))
    return bool(values & flow.behind_roots) and values.isdisjoint(flow.behind(last.outputs))


def _outside(flow: StepFlow, tensors: Sequence[Tensor], sinks: Sequence[Operation]) -> Operation | None:
    """The first operation that takes what no forward has used."""
    behind = flow.behind([value for sink in sinks for value in sink.outputs])
    lone = {tensor.id for tensor in tensors if behind.isdisjoint(flow.values_of.get(tensor.id, ()))}
    for operation in flow.operations:
        taken = {flow.holder[value] for value in operation.inputs}
        made = {value for value in operation.outputs if flow.holder[value] not in taken}
        if taken & lone and made & flow.behind_roots:
            return operation
    return None


@ready_twice.words
def _(told: Sequence[Claim[_Marked]], ask: Ask) -> Story:
    marked = told[0].evidence
    names = tuple(tensor.name for tensor in marked.tensors if tensor.name) or _named_by(marked.crash)
    said = f"`{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else "a parameter"
    labels = []
    if marked.reentrant is not None:
        span, caret = marked.reentrant.span, "computed again in a backward of its own, which DDP does not know of"
        message = f"{said} is used under reentrant checkpointing, and DDP counts it as ready twice"
        mend = "call `checkpoint` with `use_reentrant=False`, and leave out `find_unused_parameters`"
    elif marked.outside is not None:
        span, caret = marked.outside.span, "used outside of `forward` here"
        message = f"{said} is used outside of DDP's `forward`, which has counted it as unused"
        mend = "compute with it inside of `forward`: DDP sees nothing else"
    elif len(marked.sinks) > 1 and names:
        span, caret = marked.sinks[-1].span, f"this forward does not use {said}, so DDP counts it as ready"
        message = f"{said} is used by an earlier forward and not by the last one, and DDP counts it as ready twice"
        mend = "make one forward of them, which returns all results; then `find_unused_parameters` can be left out"
        first = _user(marked.flow, marked.tensors, marked.sinks)
        if first is not None and first.span is not None and first.span != span:
            labels.append(Label(first.span, "this one uses it"))
    else:
        span, caret = marked.backward, "torch raises here"
        message = f"DDP counts {said} as ready twice in one backward"
        mend = "use each parameter in one forward of DDP for each backward, or set `static_graph=True`"
    if marked.backward is not None and marked.backward != span:
        labels.append(Label(marked.backward, f"it gets its gradient here, and torch raises {marked.crash.type}"))
    # torch tells all its reasons at once: only the name is about this program.
    return Story(message, span, caret, names, tuple(labels), (), (Help(mend),), raised=True)


def _user(flow: StepFlow, tensors: Sequence[Tensor], sinks: Sequence[Operation]) -> Operation | None:
    """The forward that uses these."""
    values = {value for tensor in tensors for value in flow.values_of.get(tensor.id, ())}
    return next((sink for sink in sinks if values & flow.behind(sink.outputs)), None)


def _named_by(crash: Crash) -> tuple[str, ...]:
    found = re.search(r"with name (\S+) has been marked", crash.message)
    return (found[1],) if found is not None else ()


@rule("error", [Trouble.REFUSED])
def compiled_backward(ask: Ask) -> Iterator[Claim[RefusedBackward]]:
    """A compiled graph is gone through more than once.

    The backward that `torch.compile` makes runs once: it computes in the memory of what forward saved, so the graph
    cannot be kept by `retain_graph=True`; and it cannot be differentiated itself, as `create_graph=True` asks for.

    Bad:

        import torch
        from torch import nn

        body = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))
        net = torch.compile(body, backend="aot_eager_decomp_partition")
        optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
        for step in range(3):
            out = net(torch.rand(8, 4))
            loss = out.square().mean()
            if step > 0:
                slope, = torch.autograd.grad(loss, body[4].weight, retain_graph=True)
                loss = loss + slope.norm() * out.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        body = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
        for step in range(3):
            out = body(torch.rand(8, 4))
            loss = out.square().mean()
            if step > 0:
                slope, = torch.autograd.grad(loss, body[4].weight, retain_graph=True)
                loss = loss + slope.norm() * out.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_backward(ask, "compiled for one pass")
    if refused is not None:
        yield Claim(refused.backward.span, refused)


@compiled_backward.words
def _(told: Sequence[Claim[RefusedBackward]], ask: Ask) -> Story:
    backward, crash = told[0].evidence
    compiled = [op for step in ask.run.steps for op in step.operations if op.name == "compiled" and op.grad_enabled]
    before = [operation for operation in compiled if operation.id <= backward.began]
    span, labels = backward.span or crash.span, []
    if before and before[-1].span is not None and before[-1].span != span:
        labels.append(Label(before[-1].span, "this runs what `torch.compile` has made"))
    if "donated" in crash.message:
        message = "the graph is to be kept for another backward, and a compiled backward uses up what forward saved"
        caret = "asks to keep the graph"
        helps: tuple[Help, ...] = (
            Help("set `torch._functorch.config.donated_buffer = False` before the model is compiled"),
        )
        if backward.kind == "backward":
            helps = (*helps, Help("or add the losses and go back once; a last pass needs no `retain_graph`"))
    else:
        message = "a gradient is to be differentiated, and a compiled backward has no derivative"
        caret = "needs the derivative of a backward"
        helps = (Help("leave the model uncompiled where its gradient is a part of the loss, or use `backend='eager'`"),)
    facts = (f"torch says: {crash.message}",)
    return Story(message, span, caret, (), tuple(labels), facts, helps, raised=True)
