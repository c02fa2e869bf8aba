"""Batches: samples whose output depends on other samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Operation
from gradscope.graph.naming import shape_text, short_name
from gradscope.graph.rewriting import Edits
from gradscope.rules.claim import Claim, Story, Trouble, rule
from gradscope.rules.mends.numbers import by_sample, swapped


@rule("warning")
def batch_leak(ask: Ask) -> Iterator[Claim[_Mixed | _Normed]]:
    """The output of one sample depends on other samples of the batch.

    A `view` where a `transpose` is needed, a recurrent layer or an attention without `batch_first=True`, a softmax or a
    mean over the wrong dimension mix samples without any error. Run with `--check batch` to ask: it costs one more call
    of each module, on a copy. Batch norm in training mode mixes samples by design, which is told as such.

    Bad:

        import torch
        from torch import nn

        net = nn.GRU(4, 5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            outputs, _ = net(torch.rand(8, 6, 4))
            loss = outputs[:, -1].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        net = nn.GRU(4, 5, batch_first=True)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            outputs, _ = net(torch.rand(8, 6, 4))
            loss = outputs[:, -1].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for check in ask.run.batches:
        if check.operation is not None:
            known = "batch_norm" in short_name(check.operation.name)
            yield Claim(
                (check.module, check.operation.id),
                _Mixed(check.module, check.size, check.operation),
                explains=((Trouble.MIXES, check.operation.span),),
                severity="info" if known else None,
            )
        if check.normed:
            yield Claim((check.module, "batch norm"), _Normed(check.module, check.normed), severity="info")


@dataclass(frozen=True, slots=True)
class _Mixed:
    """An operation that mixes samples of a module's batch of this size."""

    module: str
    size: int
    operation: Operation


@dataclass(frozen=True, slots=True)
class _Normed:
    """Batch norms of a module that were in training mode."""

    module: str
    normed: tuple[str, ...]


@batch_leak.words
def _(told: Sequence[Claim[_Mixed | _Normed]], ask: Ask) -> Story:
    evidence = told[0].evidence
    return _mixed(evidence, ask) if isinstance(evidence, _Mixed) else _normed(evidence)


def _mixed(mixed: _Mixed, ask: Ask) -> Story:
    run, edits = ask.run, _edits(mixed, ask)
    operation, name = mixed.operation, short_name(mixed.operation.name)
    involved = [run.tensor_by_id[run.holder[value]] for value in (*operation.inputs[:1], *operation.outputs[:1])]
    taken, given = involved[0], involved[-1]
    return Story(
        f"the output of one sample of `{mixed.module}` depends on others: `{name}` mixes them",
        operation.span,
        f"from {shape_text(taken.shape)} to {shape_text(given.shape)}: what belongs to one of {mixed.size} "
        "samples gets into others",
        tuple(dict.fromkeys(tensor.name for tensor in involved if tensor.name)),
        facts=("found by the gradient of one sample's output, which reaches the inputs of others",),
        help=(Help(_MIXING_HELP.get(name, "keep the dimension of the samples apart in this operation"), edits),),
    )


def _edits(mixed: _Mixed, ask: Ask) -> Edits:
    """`batch_first=True` for a recurrent layer, `transpose` for a `view` that was to swap the first two axes."""
    operation = mixed.operation
    taken, given = (
        next((ask.run.tensor_by_id[ask.run.holder[value]].shape for value in values), ())
        for values in (operation.inputs, operation.outputs)
    )
    if short_name(operation.name) in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return by_sample(ask, operation.span) if taken[:1] == (mixed.size,) and len(taken) == 3 else ()
    if short_name(operation.name) in ("view", "reshape") and given == (*taken[1::-1], *taken[2:]) != taken:
        return swapped(ask, operation.span)
    return ()


def _normed(normed: _Normed) -> Story:
    names = normed.normed
    return Story(
        f"the outputs of `{normed.module}` depend on the whole batch through batch norm in training mode",
        None,
        facts=(f"batch norm: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}",),
        help=(Help("this is how batch norm works; where samples must be apart, use group norm or layer norm"),),
    )


_RECURRENT_HELP = "give it (time, sample, feature), or make it with `batch_first=True`"
_MIXING_HELP = {
    **dict.fromkeys(("view", "reshape"), "to swap dimensions, use `transpose` or `permute`: `view` re-cuts the memory"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward"), _RECURRENT_HELP),
    **dict.fromkeys(("softmax", "mean", "sum", "std", "var", "normalize"), "work along another dimension"),
}
