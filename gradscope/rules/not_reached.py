"""Not reached: tensors that no gradient can get to, since nothing computes with them."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from gradscope.graph.facts import Finding, Help, Label, Operation, Optimizer, Run, Span, Tensor
from gradscope.graph.naming import expression, loop_around, short_name, source_of
from gradscope.graph.paths import StepFlow, flows, rounds
from gradscope.rules.lost import frozen_out, lost, suffering
from gradscope.rules.order import undifferentiated
from gradscope.rules.replicas import lies_in, refusal_label, replica_note, waited_for
from gradscope.rules.successors import held_copies, replaced
from gradscope.rules.wording import listed, steps_text, times_text, who, whole_module


def unused_parameter(run: Run) -> Iterator[Finding]:
    """An optimizer holds a parameter that no operation of the program ever uses.

    The parameter is registered and updated, yet no line of the forward computes with it, so no gradient can reach
    it. Often a layer was made in `__init__` and forgotten in `forward`.

    Bad:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden = nn.Linear(4, 4)
                self.norm = nn.LayerNorm(4)
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                return self.out(torch.relu(self.hidden(x)))

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(8, 4)).mean().backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden = nn.Linear(4, 4)
                self.norm = nn.LayerNorm(4)
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                return self.out(torch.relu(self.norm(self.hidden(x))))

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(8, 4)).mean().backward()
            optimizer.step()
    """
    optimizers = {optimizer.id: optimizer for optimizer in run.optimizers}
    cut_off = {tensor.id for loss in lost(run) for tensor in loss.tensors}
    cut_off |= {number for optimizer, _ in undifferentiated(run) for number in optimizer.tensors}
    cut_off |= {old.id for old, _ in replaced(run)}.union(held_copies(run))
    # Another tensor of this name that learns has taken its place since: then it is not unused but superseded.
    waited = waited_for(run)
    superseded = {tensor.name for tensor in run.tensors if tensor.received is not None and tensor.received.steps}
    steps = [flow for flow in flows(run) if flow.roots]
    turns = {number: [flow for flow in rounds(run, number) if flow.roots] for number in optimizers}
    unused: list[Tensor] = []
    for tensor in suffering(run):
        if tensor.id in waited and tensor.id not in cut_off:
            if not _leads_to_loss(waited[tensor.id], tensor):
                unused.append(tensor)
            continue
        if tensor.optimizer is None or tensor.id in cut_off or not run.backward_count or tensor.name in superseded:
            continue
        if optimizers[tensor.optimizer].steps and not any(
            _leads_to_loss(flow, tensor) for flow in turns[tensor.optimizer]
        ):
            unused.append(tensor)
    idle = [tensor for tensor in unused if tensor.id not in waited and _is_one_of_turns(run, tensor)]
    for tensors in _by_origin(idle, run):
        yield _not_chosen(run, optimizers[tensors[0].optimizer or 0], tensors)
    for tensors in _by_origin([tensor for tensor in unused if tensor not in idle], run):
        span = tensors[0].made
        names = tuple(tensor.name or "" for tensor in tensors)
        if tensors[0].id in waited:
            yield _waited_for(run, steps, tensors)
            continue
        optimizer = optimizers[tensors[0].optimizer or 0]
        if _are_scripted(run, tensors):
            if not any(tensor.change for tensor in tensors):  # else gradients came that nobody saw
                yield _unreached_in_torchscript(run, optimizer, tensors)
            continue
        used = [use for tensor in tensors for use in _uses(steps, tensor)]
        those = who(names, run)
        made = Label(span, "made here") if span is not None else None
        elsewhere = [] if used else _evaluated(run, tensors)
        loop = _loop_that_ends_early(run, steps, names)
        place, caret = span or optimizer.made, "made here; no loss is computed from it"
        labels = _where_used(steps, tensors, used)
        labels += [Label(use.span, "used here, with grad mode off") for use in elsewhere[:1] if use.span]
        if loop is not None:
            place, caret = loop, f"this loop ends before it comes to {those.subject}"
            labels += [made] if made is not None else []
        yield Finding(
            rule="unused-parameter",
            severity="warning",
            message=f"{those.subject} {'is' if those.one else 'are'} never trained: "
            f"no loss was computed from {those.counted if those.counted != 'they' else 'them'} "
            f"in {steps_text(run, optimizer.steps)}",
            span=place,
            caret=caret,
            tensors=names,
            labels=tuple(labels),
            facts=(
                f"{_UNUSED[bool(used), bool(elsewhere)]}: {listed(names)}",
                f"note: {optimizer.name}, which holds {'it' if len(names) == 1 else 'them'}, "
                f"stepped {times_text(optimizer.steps)}",
                *replica_note(run, tensors),
            ),
            help=(
                Help("compute a loss from it as well")
                if elsewhere
                else Help("add its result to the loss, or delete it" if used else "use it in `forward`, or delete it"),
            ),
        )


def _is_one_of_turns(run: Run, tensor: Tensor) -> bool:
    """Whether a tensor has a twin at another place of its container that gets gradients in some steps, not in all.

    The program then chooses among them: experts by a router, heads by the task, layers by chance.
    """
    parts = (tensor.name or "").split(".")
    return any(
        other.received is not None
        and 0 < other.received.steps < other.received.of
        and other.optimizer == tensor.optimizer
        and _differ_in_one_place(parts, (other.name or "").split("."))
        for other in run.tensors
        if other.shape == tensor.shape and other.module == tensor.module and other.id != tensor.id
    )


def _differ_in_one_place(parts: list[str], others: list[str]) -> bool:
    """Whether two names differ in one part before the last: the place in a list, or the key in a dict."""
    return len(parts) == len(others) and parts[-1] == others[-1] and sum(map(str.__ne__, parts, others)) == 1


def _not_chosen(run: Run, optimizer: Optimizer, tensors: Sequence[Tensor]) -> Finding:
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    return Finding(
        rule="unused-parameter",
        severity="info",
        message=f"{those.subject} {'was' if those.one else 'were'} not chosen in {steps_text(run, optimizer.steps)}, "
        "as others of the same kind were in some",
        span=tensors[0].made or optimizer.made,
        caret="made here; no loss was computed from it so far",
        tensors=names,
        facts=(f"not chosen: {listed(names)}",),
        help=(Help("nothing to mend if its turn comes later; else balance the choice, as a load-balancing loss does"),),
    )


_UNUSED = {
    (False, False): "never used",
    (True, False): "used, but leads to no loss",
    (False, True): "used with grad mode off, and in no loss",
}


def _by_origin(tensors: Sequence[Tensor], run: Run) -> Iterator[list[Tensor]]:
    """Those that one line made together, and with them the others of a module of which nothing is among the rest."""
    names = [tensor.name or "" for tensor in tensors]
    groups: dict[object, list[Tensor]] = {}
    for tensor, name in zip(tensors, names, strict=True):
        whole = whole_module(name, names, run)
        keys = [_line(tensor.made) or name.rpartition(".")[0], *([whole] if whole is not None else ())]
        joined = list({id(groups[key]): groups[key] for key in keys if key in groups}.values())
        group = [*(member for part in joined for member in part), tensor]
        for key in [key for key, part in groups.items() if any(part is other for other in joined)] + keys:
            groups[key] = group
    yield from {id(group): group for group in groups.values()}.values()


def _evaluated(run: Run, tensors: Sequence[Tensor]) -> list[Operation]:
    """Operations of forwards that computed with one of these while grad mode was off, as in evaluation."""
    numbers = {tensor.id for tensor in tensors}
    return [
        operation
        for flow in flows(run)
        for operation in flow.operations
        if operation.module is not None
        and not operation.grad_enabled
        and any(flow.holder[value] in numbers for value in operation.inputs)
        and any(flow.holder[value] not in numbers for value in operation.outputs)
    ]


def _waited_for(run: Run, steps: list[StepFlow], tensors: Sequence[Tensor]) -> Finding:
    """DDP refused a forward since the backward before it did not reach these."""
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    used = [use for tensor in tensors for use in _uses(steps, tensor) if use.span is not None]
    ever = any(tensor.received is not None and tensor.received.steps for tensor in tensors)
    said = "used here, in other steps" if ever else "its result is computed here, and goes nowhere"
    labels = tuple(Label(use.span, said) for use in used[:1] if use.span is not None)
    when = "of the last step" if ever else "of any step" if run.step_count > 1 else "of the first step"
    return Finding(
        rule="unused-parameter",
        severity="error",
        message=f"no loss {when} was computed from {those.subject}, and DDP waits for "
        f"{'its gradient' if len(names) == 1 else 'their gradients' if those.them == 'them' else 'its gradients'}",
        span=tensors[0].made,
        caret="made here; no loss is computed from it" if not ever else "made here; not used in every step",
        tensors=names,
        labels=(*labels, *refusal_label(run)),
        facts=(f"without gradient in the last backward: {listed(names)}",),
        help=(
            Help("use it in every step or delete it; else `DistributedDataParallel(..., find_unused_parameters=True)`"),
        ),
        raised=True,
    )


def _loop_that_ends_early(run: Run, steps: list[StepFlow], names: Sequence[str]) -> Span | None:
    """The loop that runs over the numbered siblings of an unused module, and not as far as to it."""
    parts = [name.split(".") for name in names]
    place = next((i for i in range(len(parts[0]) - 1, -1, -1) if parts[0][i].isdigit()), None)
    if place is None or any(part[: place + 1] != parts[0][: place + 1] for part in parts):
        return None
    container, number = ".".join(parts[0][:place]), int(parts[0][place])
    siblings = [
        use
        for tensor in run.tensors
        if (tensor.name or "").startswith(f"{container}.") and tensor.received is not None and tensor.received.steps
        for use in _uses(steps, tensor)
    ]
    loops = {_loop_over_callee(use.span, run) for use in siblings if use.span is not None}
    found = next(iter(loops)) if len(loops) == 1 else None
    return found if number > 0 else None


def _loop_over_callee(span: Span, run: Run) -> Span | None:
    """The loop around a call whose variable says what is called: `layer(x)` for each `layer`, `layers[i](x)`."""
    loop = loop_around(span, run.sources)
    head = source_of(loop, run.sources) if loop is not None else None
    node = expression(span, run.sources)
    if head is None or not isinstance(node, ast.Call):
        return None
    called = {part.id for part in ast.walk(node.func) if isinstance(part, ast.Name)}
    variables = head.partition("for ")[2].partition(" in ")[0]
    return loop if called.intersection(re.findall(r"\w+", variables)) else None


def _line(span: Span | None) -> tuple[str, int] | None:
    return (span.file, span.line) if span is not None else None


def _leads_to_loss(flow: StepFlow, tensor: Tensor) -> bool:
    starts = flow.values_of.get(tensor.id)
    return bool(starts) and not flow.behind_roots_of(tensor.id).isdisjoint(starts or ())


def _where_used(steps: list[StepFlow], tensors: Sequence[Tensor], used: Sequence[Operation]) -> list[Label]:
    """Where what leads to no loss is computed, and where it is made a plain number, if it is."""
    if not used or used[0].span is None:
        return []
    reaches = (flow.reach(flow.values_of.get(tensor.id, ()), frozenset()) for tensor in tensors for flow in steps)
    left = next((exit_.span for reach in reaches for exit_ in reach.exits if exit_.span is not None), None)
    if left is None:
        return [Label(used[0].span, "its result is computed here, and goes nowhere")]
    if left.line == used[0].span.line:
        return [Label(left, "its result becomes a plain number here")]
    return [Label(used[0].span, "its result is computed here"), Label(left, "and becomes a plain number here")]


def _uses(steps: list[StepFlow], tensor: Tensor) -> list[Operation]:
    """Operations that computed something differentiable with a tensor."""
    return [
        operation
        for flow in steps
        for operation in flow.operations
        if any(flow.holder[value] == tensor.id for value in operation.inputs)
        and any(flow.history[value] and flow.holder[value] != tensor.id for value in operation.outputs)
    ]


def unregistered_parameter(run: Run) -> Iterator[Finding]:
    """A tensor of a module takes part in the forward and gets a gradient, and no `parameters()` knows it.

    Modules register what is assigned to them as `nn.Parameter`, `nn.Module`, `nn.ParameterList`, `nn.ModuleList` and so
    on. What sits in a plain list, dict or tensor attribute, in a dataclass or another object that is no module, or is
    made anew in every forward, is not registered: no optimizer gets it, `.to()` and `state_dict()` pass it by.

    Bad:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                for layer in self.layers:
                    x = torch.tanh(layer(x))
                return self.out(x)

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                for layer in self.layers:
                    x = torch.tanh(layer(x))
                return self.out(x)

        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.rand(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    if not any(optimizer.steps for optimizer in run.optimizers):
        return
    wanted = _gradient_wanted(run)
    groups: dict[object, list[Tensor]] = defaultdict(list)
    for tensor in run.tensors:
        # An input that the module keeps is another tensor in each step: it gets one gradient.
        got = tensor.received is not None and tensor.received.steps >= min(2, run.step_count)
        kept = tensor.registered == "attribute" and tensor.leaf and tensor.id not in wanted
        if kept and tensor.optimizer is None and got and not tensor.change:
            container = (tensor.name or "").partition("[")[0]
            groups[container if container != tensor.name else _line(tensor.made)].append(tensor)
    for tensors in groups.values():
        span = tensors[0].made
        yield _unregistered(
            run,
            tensors, span, "not registered: `parameters()` does not give it",
            "keep it in `nn.Parameter`, `nn.ParameterList`, `nn.ParameterDict`, `nn.ModuleList` or `nn.ModuleDict`",
        )  # fmt: skip
    for span, tensors in _made_in_forward(run).items():
        yield _unregistered(
            run,
            tensors, span, "made anew in every forward, after the optimizer was built",
            "make it once in `__init__`, where the optimizer finds it",
        )  # fmt: skip


def _unregistered(run: Run, tensors: list[Tensor], span: Span | None, caret: str, mend: str) -> Finding:
    names = tuple(dict.fromkeys(tensor.name for tensor in tensors if tensor.name is not None))
    if names:
        those = who(names, run)
        message = f"{those.subject} {those.learns}: {those.counted} got gradients, and no optimizer holds {those.them}"
    else:
        made = f" that `{span.function}` makes" if span is not None and span.function else ""
        message = f"the parameter{made} never learns: it got gradients, and no optimizer holds it"
    return Finding(
        rule="unregistered-parameter",
        severity="error",
        message=message,
        span=span,
        caret=caret,
        tensors=names,
        facts=(f"not registered: {listed(names)}",) if names else (),
        help=(Help(mend),),
    )


def _gradient_wanted(run: Run) -> set[int]:
    """Plain tensors whose gradient the program asks for, so that it is no slip that nobody moves them.

    These are inputs: an image whose saliency is read, the points at which a penalty or a differential equation is
    evaluated. Who reads `.grad` of what a constructor made may do so to find out why it does not learn.
    """
    tensors = {tensor.id: tensor for tensor in run.tensors if not tensor.nn_parameter}
    holder = run.holder
    found = set()
    for step in run.steps:
        for operation in step.operations:
            if operation.name not in ("Tensor.grad", "autograd.grad"):
                continue
            for tensor in [tensors[holder[value]] for value in operation.inputs if holder[value] in tensors]:
                own = tensor.made is not None and (tensor.made.function or "").endswith("__init__")
                if operation.name == "autograd.grad" or not own:
                    found.add(tensor.id)
    return found


def _made_in_forward(run: Run) -> dict[Span | None, list[Tensor]]:
    """Parameters that a forward makes again and again, by the line that does.

    One that is made of what has a history is a copy of that: the cut is told, and it has no use of its own.
    """
    tensors = run.tensor_by_id
    holder = run.holder
    steps: dict[Span | None, set[int]] = defaultdict(set)
    made: dict[Span | None, dict[int, Tensor]] = defaultdict(dict)
    for step in run.steps:
        for operation in step.operations:
            forward = operation.module is not None and operation.grad_enabled
            if (
                operation.name == "nn.Parameter"
                and forward
                and not any(run.history[value] for value in operation.inputs)
            ):
                for value in operation.outputs:
                    tensor = tensors[holder[value]]
                    if tensor.optimizer is None and tensor.requires_grad and tensor.consumed:
                        steps[operation.span].add(step.index)
                        made[operation.span][tensor.id] = tensor
    latest = {span: max(numbers) for span, numbers in steps.items() if len(numbers) > 1}
    return {
        span: [tensor for tensor in made[span].values() if tensor.name] or list(made[span].values()) for span in latest
    }


def frozen_parameter(run: Run) -> Iterator[Finding]:
    """A parameter does not require grad where somebody relies on its gradient.

    Either a backward is refused since all that it was to train is frozen, or `requires_grad` was set on a module, which
    is a plain attribute there: `module.requires_grad_(True)` is the method that reaches the parameters.

    Bad:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        for p in net.parameters():
            p.requires_grad = False
        net[2].requires_grad = True
        optimizer = torch.optim.SGD([*net.parameters(), scale := torch.ones(1, requires_grad=True)], lr=0.1)
        for _ in range(3):
            loss = (net(torch.rand(8, 4)) * scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        for p in net.parameters():
            p.requires_grad = False
        net[2].requires_grad_(True)
        optimizer = torch.optim.SGD([*net.parameters(), scale := torch.ones(1, requires_grad=True)], lr=0.1)
        for _ in range(3):
            loss = (net(torch.rand(8, 4)) * scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = [tensor for tensor, _ in frozen_out(run)]
    switched = _switched_on_in_vain(run)
    if refused:
        names = tuple(dict.fromkeys(tensor.name or "" for tensor in refused))
        those = who(names, run)
        froze = _who_froze(run, refused)
        crash = run.crash
        labels: tuple[Label, ...] = ()
        if crash is not None and crash.span is not None:
            labels = (Label(crash.span, f"so torch raises {crash.type} here"),)
        yield Finding(
            "frozen-parameter",
            "error",
            f"{those.subject} cannot learn: everything that this loss was to train is frozen",
            froze or refused[0].made,
            "frozen here" if froze else "made here, and frozen",
            names,
            labels,
            (f"frozen: {listed(names)}", *(f"note: `{path}.requires_grad = True` {_PLAIN}" for path in switched)),
            tuple(Help(f"call `{path}.requires_grad_(True)`") for path in switched)
            or (Help("set `requires_grad_(True)` again before this backward"),),
            raised=crash is not None,
        )
    for frozen, optimizer, when in (*_given_later(run), *_chosen(run)):
        names = tuple(tensor.name or "" for tensor in frozen)
        those = who(names, run)
        given = "this optimizer was given a group more later" if when == _ADDED else "given to an optimizer here"
        yield Finding(
            "frozen-parameter",
            "warning",
            f"{those.subject} {those.learns}: {those.counted if those.counted != 'they' else 'these'} "
            f"{'is' if those.counted == 'it' else 'are'} frozen, though {optimizer.name} was given {those.them}{when}",
            _who_froze(run, frozen),
            "frozen here, and never unfrozen",
            names,
            (Label(optimizer.made, given),) if optimizer.made is not None else (),
            (f"frozen: {listed(names)}",),
            (Help("set `requires_grad_(True)` before this optimizer steps"),),
        )
    for path, frozen in switched.items():
        if {tensor.id for tensor in refused}.issuperset(tensor.id for tensor in frozen):
            continue  # told above
        names = tuple(tensor.name or "" for tensor in frozen)
        yield Finding(
            "frozen-parameter",
            "warning",
            f"`{path}` stays frozen: `requires_grad = True` {_PLAIN}",
            _who_froze(run, frozen) or frozen[0].made,
            "its parameters were frozen here",
            names,
            (),
            (f"frozen: {listed(names)}",),
            (Help(f"call `{path}.requires_grad_(True)`"),),
        )


_PLAIN = "on a module is a plain attribute"


_SCRIPTED = frozenset({"ScriptModule", "RecursiveScriptModule", "TracedModule", "TopLevelTracedModule"})


def _are_scripted(run: Run, tensors: list[Tensor]) -> bool:
    """Whether only TorchScript computes with these, whose operations are not recorded."""
    paths = [module.path for module in run.modules if module.type in _SCRIPTED]
    return all(any(lies_in(tensor, path) for path in paths) for tensor in tensors)


def _unreached_in_torchscript(run: Run, optimizer: Optimizer, tensors: list[Tensor]) -> Finding:
    names = tuple(tensor.name or "" for tensor in tensors)
    those = who(names, run)
    return Finding(
        rule="unused-parameter",
        severity="warning",
        message=f"{those.subject} {those.learns}: {those.counted} got no gradient "
        f"in {steps_text(run, optimizer.steps)}, and only TorchScript computes with {those.them}",
        span=tensors[0].made or optimizer.made,
        caret="made here; no gradient comes back to it",
        tensors=names,
        facts=(f"without gradient: {listed(names)}", "note: what runs inside TorchScript is not recorded"),
        help=(Help("run it without `torch.jit` to be told where its gradient is lost, if it is used at all"),),
    )


def _switched_on_in_vain(run: Run) -> dict[str, list[Tensor]]:
    """Modules that somebody gave an attribute `requires_grad = True`, with their parameters that are frozen."""
    found = {}
    for module in run.modules:
        if not module.requires_grad_attribute:
            continue
        frozen = [
            tensor
            for tensor in run.tensors
            if tensor.registered == "parameter" and not tensor.requires_grad and lies_in(tensor, module.path)
        ]
        if frozen:
            found[module.path] = frozen
    return found


_SOME = 3  # steps of an optimizer
_LATER, _ADDED = " after a phase without", " in a group that was added later"


def _given_later(run: Run) -> Iterator[tuple[list[Tensor], Optimizer, str]]:
    """Tensors that the program froze and trained others without, then gave to a later optimizer, frozen as they were.

    That an optimizer holds frozen tensors is no slip by itself. But who builds an optimizer of a part of a model,
    trains it, and then builds one of more of it, means to train the rest from then on, and so does who adds a group.
    """
    tensors = run.tensor_by_id
    for place, optimizer in enumerate(run.optimizers):
        earlier = [other for other in run.optimizers[:place] if other.steps]
        mine = set(optimizer.tensors)
        if optimizer.steps and any(set(other.tensors) < mine for other in earlier):
            before, when = {tensor for other in earlier for tensor in other.tensors}, _LATER
        else:
            before, when = {number for number in mine if not _was_added(tensors[number], optimizer)}, _ADDED
        frozen = [
            tensor
            for number in optimizer.tensors
            if number not in before and not (tensor := tensors[number]).requires_grad and tensor.name is not None
        ]
        if frozen and _who_froze(run, frozen) is not None:
            yield frozen, optimizer, when


def _was_added(tensor: Tensor, optimizer: Optimizer) -> bool:
    """Whether an optimizer was given a tensor after its first steps, and has made some more since without it."""
    received = tensor.received
    return received is not None and not received.steps and _SOME <= received.of < optimizer.steps


def _chosen(run: Run) -> Iterator[tuple[list[Tensor], Optimizer, str]]:
    """Frozen tensors that an optimizer was given one by one, while others of the same module were left out.

    An optimizer of a whole module holds what is frozen in it as well, and means nothing by that.
    """
    for optimizer in run.optimizers:
        held = set(optimizer.tensors)
        if not optimizer.steps or not optimizer.fed:
            continue
        left_out = [
            tensor.name
            for tensor in run.tensors
            if tensor.registered == "parameter" and tensor.id not in held and not tensor.requires_grad and tensor.name
        ]
        frozen = [
            tensor
            for tensor in run.tensors
            if tensor.id in held
            and tensor.registered == "parameter"
            and not tensor.requires_grad
            and tensor.used
            and tensor.name is not None
            and (tensor.received is None or not tensor.received.steps)
            and (module := tensor.name.rpartition(".")[0])
            and any(other.startswith(f"{module}.") for other in left_out)
        ]
        if frozen and _who_froze(run, frozen) is not None:
            yield frozen, optimizer, ""


def _who_froze(run: Run, tensors: list[Tensor]) -> Span | None:
    """The latest line that set `requires_grad` of one of these to False."""
    wanted = {tensor.id for tensor in tensors}
    for step in reversed(run.steps):
        for operation in reversed(step.operations):
            if operation.name in ("Tensor.requires_grad_", "Tensor.requires_grad ="):
                for value in operation.outputs:
                    if run.holder[value] in wanted and not run.history[value]:
                        return operation.span
    return None


def non_leaf(run: Run) -> Iterator[Finding]:
    """A gradient is expected of a non-leaf: of the result of an operation.

    Backward fills `.grad` of leaves only. `.to()`, `* 0.01`, a slice or `w = w - lr * g` give a new tensor that is
    none: its `.grad` stays None, no optimizer takes it, and as a module's attribute it is not registered.

    Bad:

        import torch

        x = torch.rand(4, requires_grad=True).to(torch.float64)
        x.square().sum().backward()
        print(x.grad)

    Good:

        import torch

        x = torch.rand(4).to(torch.float64).requires_grad_()
        x.square().sum().backward()
        print(x.grad)
    """
    yield from _refused_by_optimizer(run)
    yield from _read_in_vain(run)
    for tensor, maker in kept_as_attribute(run):
        yield Finding(
            "non-leaf",
            "error",
            f"`{tensor.name}` never learns: it is a result of `{short_name(maker.name)}`, not the parameter",
            maker.span,
            "this gives a new tensor; the parameter inside is neither registered nor optimized",
            (tensor.name or "",),
            (),
            (),
            (Help("convert the values first, and make the `nn.Parameter` of the result"),),
        )


def _refused_by_optimizer(run: Run) -> Iterator[Finding]:
    tensors = run.tensor_by_id
    for optimizer in run.optimizers:
        offered = [tensors[number] for number in optimizer.tensors if not tensors[number].leaf]
        if optimizer.refused and offered:
            names = tuple(tensor.name or "unnamed" for tensor in offered)
            those = who(names, run)
            labels = (Label(optimizer.made, f"{optimizer.name} takes leaves only"),) if optimizer.made else ()
            yield Finding(
                "non-leaf",
                "error",
                f"{those.subject} cannot be optimized: not a leaf, but the result of an operation",
                offered[0].made or optimizer.made,
                "a non-leaf is made here" + (f", by `{offered[0].grad_fn}`" if offered[0].grad_fn else ""),
                names,
                labels,
                (f"non-leaf: {listed(names)}",),
                (Help("make it a leaf of its own: `.detach().clone().requires_grad_()`, and use that in the loss"),),
                raised=True,
            )


def _read_in_vain(run: Run) -> Iterator[Finding]:
    told: set[Span | None] = set()
    steps = flows(run)
    # A read has a result only where it met a new tensor: a second read of a retained gradient has none either.
    retained = {
        flow.holder[value]
        for flow in steps
        for operation in flow.operations
        if operation.name == "Tensor.grad" and operation.outputs
        for value in operation.inputs
    }
    for flow in steps:
        for operation in flow.operations:
            if operation.name != "Tensor.grad" or operation.outputs or len(operation.inputs) != 1:
                continue
            value = operation.inputs[0]
            tensor = flow.tensor(value)
            if tensor is None or tensor.leaf or tensor.id in retained:
                continue
            maker = flow.maker.get(value)
            cause = (maker.span if maker else None) or tensor.made
            if {cause, operation.span} & told:
                continue
            told |= {cause, operation.span} - {None}
            name = tensor.name or "this tensor"
            labels = (Label(operation.span, "`.grad` is None here"),) if operation.span else ()
            way = f"read the gradient of the leaf, or call `{name}.retain_grad()` before backward"
            if _has_taken_the_name(run, tensor):
                way = f"change it in place under `torch.no_grad()`, or go on with `{name}.detach().requires_grad_()`"
            yield Finding(
                "non-leaf",
                "error",
                f"`{name}` is no leaf: its `.grad` stays None, the gradient goes to what it was made from",
                cause,
                f"a new tensor is made here, by `{short_name(maker.name)}`" if maker else "a new tensor is made here",
                (name,),
                labels,
                (),
                (Help(way),),
            )


def _has_taken_the_name(run: Run, tensor: Tensor) -> bool:
    """Whether a result was assigned to the variable of a leaf, as in `w = w - lr * w.grad`."""
    return tensor.name is not None and any(
        other.leaf and other.requires_grad and other.name == tensor.name for other in run.tensors
    )


def kept_as_attribute(run: Run) -> Iterator[tuple[Tensor, Operation]]:
    """A module keeps the result of an operation where a parameter was meant: the parameter is out of reach."""
    steps = flows(run)
    makers = {value: operation for flow in steps for value, operation in flow.maker.items()}
    for flow in steps[1:2]:
        for tensor_id, values in flow.values_of.items():
            tensor = flow.tensors[tensor_id]
            maker = makers.get(values[0])
            if tensor.leaf or tensor.registered != "attribute" or maker is None or maker in flow.operations:
                continue
            sources = [source for value in maker.inputs if (source := flow.tensor(value)) is not None]
            if any(source.leaf and _is_out_of_reach(source) for source in sources):
                yield tensor, maker


def _is_out_of_reach(leaf: Tensor) -> bool:
    """Whether a leaf that was to learn is held by nobody: a parameter, or a nameless one that gradients come to."""
    if leaf.optimizer is not None or leaf.change:
        return False
    fed = leaf.requires_grad and leaf.name is None and leaf.received is not None and leaf.received.steps >= 2
    return leaf.nn_parameter or fed
