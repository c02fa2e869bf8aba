"""In place: a tensor that autograd saved for backward is changed before backward needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Operation, Refused, Run, Step, Tensor
from gradscope.graph.naming import changed_name, short_name
from gradscope.graph.refusals import RefusedBackward, refused_backward
from gradscope.graph.rewriting import Edits
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.mends.places import after_backward, constructed_otherwise, into_a_new_tensor


@rule("error", [Trouble.REFUSED])
def inplace_modified(ask: Ask) -> Iterator[Claim[RefusedBackward]]:
    """A tensor that an operation saved for backward was changed in place before backward needed it.

    Many gradients are computed from values of the forward: that of `tanh` from its result, that of a product from its
    factors. torch counts the changes of every tensor and refuses to go on with other values than those it saved. An
    optimizer's step changes parameters in place as well.

    Bad:

        import torch
        from torch import nn

        net = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4)
            h = torch.tanh(net(x))
            h += x
            loss = h.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.rand(8, 4)
            h = torch.tanh(net(x))
            h = h + x
            loss = h.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_backward(ask, "changed in place")
    if refused is not None:
        yield Claim(refused.backward.span, refused)


@inplace_modified.words
def _(told: Sequence[Claim[RefusedBackward]], ask: Ask) -> Story:
    run = ask.run
    backward, crash = told[0].evidence
    refused = backward.refused or Refused()
    operations = {operation.id: operation for step in run.steps for operation in step.operations}
    saver = operations.get(refused.operation) if refused.operation is not None else None
    tensors = run.tensor_by_id
    saved = tensors.get(refused.tensor) if refused.tensor is not None else None
    writer = _writer(run, refused, saver, operations, saved)
    step = _step(run, saver, saved)
    if step is not None and writer is not None and (not step.operations or step.operations[-1].id < writer.id):
        writer = None  # the first change is the cause
    if writer is not None:
        step = None
    written = _written(run, writer, tensors)
    names = [tensor.name for tensor in (saved, written) if tensor is not None and tensor.name is not None]
    if writer is not None and writer.span is not None and written is not None and written.registered is None:
        # The reader looks at the line that changes it, where a plain tensor may go by another name than later.
        there = changed_name(writer.span, run.sources)
        names = [there if there is not None and name == written.name else name for name in names]
    name = names[0] if names else None
    said = f"`{name}`" if name is not None else "a tensor"
    by = f"`{short_name(saver.name)}`" if saver is not None else "autograd"
    span = backward.span
    caret, help_ = "backward needs it as it was when it was saved", Help("change a copy: `.clone()` before the change")
    if writer is not None:
        span = writer.span or span
        caret = "changed in place here"
        if refused.version is not None and refused.expected == refused.version - 1:
            caret += f": now at version {refused.version}"
        help_ = Help(_IN_PARTS if short_name(writer.name) == "setitem" else _NEW, _apart(ask, writer, written))
    elif step is not None:
        span = step.span or span
        caret = "this step changes the parameters in place"
        help_ = Help(_STEP_LATER, after_backward(ask, step.span, backward.span))
    labels = []
    if saver is not None and saver.span is not None and saver.span != span:
        what = "its result" if refused.result else said
        labels.append(Label(saver.span, f"{by} saves {what} for backward here" + _at(refused.expected)))
    if backward.span is not None and backward.span != span:
        labels.append(Label(backward.span, f"needs it{_at(refused.expected)}, so torch raises {crash.type}"))
    facts = []
    if refused.node is not None and refused.version is not None:
        facts.append(
            f"{refused.node} saved it at version {refused.expected}; at backward it was at version {refused.version}"
        )
    return Story(
        f"{said} was changed after {by} saved it for backward",
        span,
        caret,
        tuple(dict.fromkeys(names)),
        tuple(labels),
        tuple(facts),
        (help_,),
        raised=True,
    )


_NEW = "write the result to a new tensor instead of changing this one in place"
_IN_PARTS = "make a new tensor instead: `torch.stack` of parts from a list, or `torch.where` with a mask"
_STEP_LATER = "call backward for all losses of a forward before the step, or compute the forward again after it"


def _apart(ask: Ask, writer: Operation, written: Tensor | None) -> Edits:
    """The edits that give the result of a change a tensor of its own; a parameter can be no other one."""
    if written is not None and written.registered is not None:
        return ()
    edits = into_a_new_tensor(ask, writer.span)
    kinds = {module.type for module in ask.run.modules if module.path == writer.module}
    return edits or (constructed_otherwise(ask, kinds.pop()) if len(kinds) == 1 else ())


def _at(version: int | None) -> str:
    return f", at version {version}" if version is not None else ""


def _writer(
    run: Run, refused: Refused, saver: Operation | None, operations: dict[int, Operation], saved: Tensor | None
) -> Operation | None:
    """The first operation that changed the tensor after it was saved."""
    if saver is None and refused.operation is None:
        known = [operations[number] for number in refused.writers if number in operations]
        # Who saved it is not on record: of all the changes, the last is one that came too late.
        return known[-1] if known else None
    since = saver.id if saver is not None else 0
    for number in refused.writers:
        if number > since and number in operations:
            return operations[number]
    if saved is None:
        return None
    values = {value.id for value in run.values if value.tensor == saved.id}
    for number in sorted(operations):
        operation = operations[number]
        taken, given = values.intersection(operation.inputs), values.intersection(operation.outputs)
        if number > since and not operation.failed and taken and given - taken:
            return operation
    return None


def _step(run: Run, saver: Operation | None, saved: Tensor | None) -> Step | None:
    """The first step of an optimizer that holds the tensor, after it was saved; the last where nobody knows when."""
    holders = {optimizer.id for optimizer in run.optimizers if saved is None or saved.id in optimizer.tensors}
    stepped = [step for step in run.steps if step.optimizer in holders]
    if saver is None:
        return stepped[-1] if stepped else None
    begun = next((step.index for step in run.steps if saver in step.operations), 0)
    return next((step for step in stepped if step.index >= begun), None)


def _written(run: Run, writer: Operation | None, tensors: Mapping[int, Tensor]) -> Tensor | None:
    """The tensor that an operation changed, by a name that a reader knows."""
    if writer is None:
        return None
    holder = run.holder
    taken = {holder[value] for value in writer.inputs}
    changed = [tensors[holder[value]] for value in writer.outputs if holder[value] in taken]
    return next((tensor for tensor in changed if tensor.name is not None), None)
