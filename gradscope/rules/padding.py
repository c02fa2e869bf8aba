"""Rows of an embedding that are kept from learning by `padding_idx`, though they are no padding."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Lookups, Run, Tensor
from gradscope.graph.flow import flows
from gradscope.graph.naming import expression
from gradscope.rules.claim import Claim, Story, names_of, rule


@rule("warning")
def padding_row(ask: Ask) -> Iterator[Claim[Lookups]]:
    """A row of an embedding never gets a gradient although it is looked up as the others are: `padding_idx` names it.

    The row of `padding_idx` is for what fills short sequences up: it starts at zero, and its gradient is left out. A
    class, a word or a relation with that number never learns anything.

    Bad:

        import torch
        from torch import nn

        kinds = nn.Embedding(3, 4, padding_idx=0)
        out = nn.Linear(4, 1)
        optimizer = torch.optim.SGD([*kinds.parameters(), *out.parameters()], lr=0.01)
        for _ in range(3):
            kind = torch.arange(12) % 3
            loss = (out(kinds(kind)).squeeze(1) - kind).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        kinds = nn.Embedding(3, 4)
        out = nn.Linear(4, 1)
        optimizer = torch.optim.SGD([*kinds.parameters(), *out.parameters()], lr=0.01)
        for _ in range(3):
            kind = torch.arange(12) % 3
            loss = (out(kinds(kind)).squeeze(1) - kind).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    least, most = limits.LIKE_OTHERS
    for lookups in ask.run.lookups:
        table = ask.run.tensor_by_id[lookups.tensor]
        trained = table.name is not None and table.received is not None and table.received.steps > 0
        often = lookups.padded >= limits.SLIPS and lookups.padded * 2 >= lookups.looks
        as_others = often and lookups.real * 4 >= lookups.padded * 3 and least <= lookups.share <= most
        if trained and as_others and not _is_added(table, ask.run) and not _is_told_apart(ask, table):
            yield Claim(table.id, lookups, table)


def _is_added(table: Tensor, run: Run) -> bool:
    """Whether the table was made with a row more than what there is: `nn.Embedding(words + 1, ...)`."""
    made = table.made or table.built
    node = expression(made, run.sources) if made is not None else None
    if not isinstance(node, ast.Call):
        return False
    sizes = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "num_embeddings")]
    parts = (part for size in sizes for part in ast.walk(size))
    return any(isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add) for part in parts)


def _is_told_apart(ask: Ask, table: Tensor) -> bool:
    """Whether the program compares what it looks up with something: so masks are made."""
    for flow in ask(flows):
        indices: set[int] = set()
        for operation in flow.operations:
            held = {flow.holder[value] for value in operation.inputs}
            if ops.is_a(operation, ops.LOOKS_UP) and table.id in held:
                indices |= held - {table.id}
        if any(
            ops.is_a(operation, ops.COMPARISONS) and flow.holder[value] in indices
            for operation in flow.operations
            for value in operation.inputs
        ):
            return True
    return False


@padding_row.words
def _(told: Sequence[Claim[Lookups]], ask: Ask) -> Story:
    (name,) = names_of(told)
    lookups, table = told[0].evidence, ask.run.tensor_by_id[told[0].evidence.tensor]
    return Story(
        f"row {lookups.row} of `{name}` never learns: `padding_idx` names it, and it is looked up as the others are",
        table.made or table.built,
        f"leaves out the gradient of row {lookups.row}",
        (name,),
        facts=(
            f"looked up in {lookups.padded} of {lookups.looks} batches that were looked at, {lookups.share:.1f} times "
            "as often as other rows are",
        ),
        help=(Help("leave `padding_idx` out, or give padding a row of its own"),),
    )
