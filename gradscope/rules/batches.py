"""Batches: samples whose output depends on other samples."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.graph.facts import Finding, Help, Run
from gradscope.graph.naming import shape_text, short_name


def batch_leak(run: Run) -> Iterator[Finding]:
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
    tensors = run.tensor_by_id
    holders = run.holder
    for check in run.batches:
        operation = check.operation
        if operation is not None:
            name = short_name(operation.name)
            involved = [tensors[holders[value]] for value in (*operation.inputs[:1], *operation.outputs[:1])]
            taken, given = involved[0], involved[-1]
            known = "batch_norm" in name
            yield Finding(
                "batch-leak",
                "info" if known else "warning",
                f"the output of one sample of `{check.module}` depends on others: `{name}` mixes them",
                operation.span,
                f"from {shape_text(taken.shape)} to {shape_text(given.shape)}: what belongs to one of {check.size} "
                "samples gets into others",
                tuple(dict.fromkeys(tensor.name for tensor in involved if tensor.name)),
                (),
                ("found by the gradient of one sample's output, which reaches the inputs of others",),
                (Help(_MIXING_HELP.get(name, "keep the dimension of the samples apart in this operation")),),
            )
        if check.normed:
            yield Finding(
                "batch-leak",
                "info",
                f"the outputs of `{check.module}` depend on the whole batch through batch norm in training mode",
                None,
                "",
                (),
                (),
                (f"batch norm: {', '.join(check.normed[:6])}{' ...' if len(check.normed) > 6 else ''}",),
                (Help("this is how batch norm works; where samples must be apart, use group norm or layer norm"),),
            )


_RECURRENT_HELP = "give it (time, sample, feature), or make it with `batch_first=True`"
_MIXING_HELP = {
    **dict.fromkeys(("view", "reshape"), "to swap dimensions, use `transpose` or `permute`: `view` re-cuts the memory"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward"), _RECURRENT_HELP),
    **dict.fromkeys(("softmax", "mean", "sum", "std", "var", "normalize"), "work along another dimension"),
}
