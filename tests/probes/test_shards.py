"""Parameters that FSDP shards: counted by their shards, judged by what is computed with the whole."""

from __future__ import annotations

import textwrap

from gradscope.reports.report import Report
from tests.workshop import Workshop

PROGRAM = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = torch.relu(self.body(x)){cut}
        return self.head(h)


def main():
    net = Net()
    mesh = init_device_mesh("cpu", (1,))
    {blocks}
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


main()
dist.destroy_process_group()
"""


def judged(workshop: Workshop, cut: str = "", blocks: str = "") -> Report:
    """The report on the program."""
    """The report on the program under FSDP."""
    source = textwrap.dedent(PROGRAM).format(cut=cut, blocks=blocks)
    return Report.of(workshop.run(source))


def test_shards_are_counted_under_the_users_names(workshop: Workshop) -> None:
    """Each parameter has one row: whole shape, gradients in every step, movement, and the line that made it."""
    report = judged(workshop)
    rows = {row.name: row for row in report.tensors if row.role == "parameter"}
    assert list(rows) == ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert report.findings == ()
    for row in rows.values():
        assert row.received is not None
        assert (row.received.steps, row.predicted, row.optimizer) == (3, True, "SGD")
        assert row.moved or row.from_zero
    assert rows["body.weight"].shape == (8, 4)
    made = rows["body.weight"].location
    assert made is not None
    assert "self.body" in (workshop.folder / "script.py").read_text().splitlines()[made.line - 1]


def test_a_cut_is_found_behind_fsdp(workshop: Workshop) -> None:
    """The way of the data from the gathered parameter to the loss is the shard's."""
    for blocks in ("", "fully_shard(net.body, mesh=mesh)"):
        report = judged(workshop, ".detach()", blocks)
        (finding,) = report.findings
        assert (finding.rule, finding.tensors) == ("detach", ("body.weight", "body.bias"))
