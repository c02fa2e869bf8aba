"""Kept runs that are damaged: `show` gives a report or one line, and never anything else."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from gradscope.graph.storage import encode
from tests.workshop import Workshop

SOURCE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.c(self.b(self.a(x).detach()).relu())

    torch.manual_seed(0)
    net, kept = Net(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        loss = (net(torch.randn(5, 3)) - torch.randn(5)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept.append(loss)
"""
NUMBERS = [0, -1, 1, 7, 2**31, -(2**40), 10**15, 0.5, -0.5, 1e308, -1e-300]
OTHERS: list[Any] = [None, True, "", "x\n\x1b[31m", [], {}, [[]], {"id": 1}]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every item of a tree with the list or dict that holds it."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from places(node[key])


def damage(tree: Any, chance: random.Random) -> None:
    """Change a few facts: a number, a type, an item too many or too few, two that change places."""
    for _ in range(chance.choice([1, 1, 2, 5])):
        holder, key = chance.choice(list(places(tree)))
        value = holder[key]
        kind = chance.random()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and kind < 0.7:
            holder[key] = chance.choice([*NUMBERS, value + 1, value - 1])
        elif isinstance(holder, list) and kind < 0.8:
            change = chance.choice(["drop", "double", "shuffle"])
            if change == "drop":
                del holder[key]
            elif change == "double":
                holder.insert(key, value)
            else:
                chance.shuffle(holder)
        elif isinstance(value, list) and value and kind < 0.9:
            del value[chance.randrange(len(value)) :]
        elif isinstance(holder, dict) and kind < 0.92:
            del holder[key]
        else:
            holder[key] = chance.choice(OTHERS)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_run_gives_a_report_or_one_line(workshop: Workshop, seed: int) -> None:
    """Numbers, types and whole facts are changed at random; no report of what is left takes long or fails."""
    whole = json.loads(gzip.decompress(encode(workshop.run(SOURCE))))
    chance = random.Random(seed)
    reported = 0
    for number in range(75):
        tree = copy.deepcopy(whole)
        damage(tree, chance)
        (workshop.folder / "run.json").write_text(json.dumps(tree))
        format_ = chance.choice(["text", "json", "html", "sarif", "markdown", "github"])
        ended = workshop.gradscope("show", "--fail-on", "never", "--format", format_, "--graph", "g.dot", "run.json")
        if ended.status == 0:
            reported += 1
            assert ended.err == "gradscope: drew g.dot\n", (number, ended.err)
        else:
            assert (ended.status, ended.out) == (2, ""), (number, ended)
            assert ended.err.startswith("gradscope: run.json is "), (number, ended.err)
            assert ended.err.count("\n") == 1, (number, ended.err)
    assert 10 < reported < 70
