"""`torchrun ... -m gradscope explain`: two real processes with gloo, and one report."""

from __future__ import annotations

import json

from tests.waiting import communicated
from tests.workshop import Ended, Workshop

TWO = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.extra = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = torch.relu(self.body(x))
        if dist.get_rank() == 0 or not some:
            h = self.extra(h){cut}
        return self.head(h)


some, allow, kill = ("some" in sys.argv, "allow" in sys.argv, "kill" in sys.argv)
dist.init_process_group("gloo")
torch.manual_seed(0)
net = DistributedDataParallel(Net(), find_unused_parameters=allow)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
torch.manual_seed(dist.get_rank())
for step in range(3):
    optimizer.zero_grad()
    net(torch.randn(16, 4)).square().mean().backward()
    optimizer.step()
    if kill and step == 1 and dist.get_rank() == 1:
        os.kill(os.getpid(), 9)
print(f"end {{float(sum(p.sum() for p in net.parameters())):.9f}}", flush=True)
dist.destroy_process_group()
"""
RUN = (
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--rdzv-backend",
    "c10d",
    "--rdzv-endpoint",
    "localhost:0",
)


def launched(workshop: Workshop, *args: str, cut: str = "", options: tuple[str, ...] = ()) -> Ended:
    """The program on two ranks, observed."""
    workshop.write(TWO.format(cut=cut))
    return workshop.python(*RUN, "-m", "gradscope", "explain", *options, "script.py", *args)


def test_a_healthy_run_has_one_report(workshop: Workshop) -> None:
    """The ranks print what they print without us; rank 0 writes one report, with who reached what."""
    workshop.write(TWO.format(cut=""))
    bare = workshop.start(*RUN, "script.py", "some", "allow")
    ended = launched(workshop, "some", "allow", options=("-o", "report.json", "--save", "run.json"))
    out, _ = communicated(bare)
    # torchrun leaves output unbuffered: the end of a line may come after the next line of another rank.
    assert ended.status == 0
    assert sorted(ended.out.replace("end", " end").split()) == sorted(out.replace("end", " end").split())
    assert "gradscope" not in ended.err
    document = json.loads((workshop.folder / "report.json").read_bytes())
    assert document["findings"] == []
    assert [row["ended"] for row in document["ranks"]] == ["end", "end"]
    reached = {row["name"]: row["ranks"] for row in document["tensors"] if row["role"] == "parameter"}
    assert reached["body.weight"] == [0, 1]
    assert reached["extra.weight"] == [0]
    assert {path.name for path in workshop.folder.glob("run*")} == {"run.json", "run.rank1.json"}


def test_a_refused_forward_is_explained_once(workshop: Workshop) -> None:
    """All ranks raise; rank 0 tells the cause once, and each rank shows its own traceback."""
    ended = launched(workshop, cut=".detach()")
    assert ended.status == 1
    assert ended.out.count("error[detach]: no gradient came to") == 1
    assert "`body` and `extra`" in ended.out
    assert "2 ranks" in ended.out
    assert "error[detach]" not in ended.err
    assert "found on rank" not in ended.out


def test_what_only_one_rank_did_is_told_by_both(workshop: Workshop) -> None:
    """Rank 1 skips a layer and raises while rank 0 waits for it: rank 1 speaks for itself, then rank 0 for all."""
    ended = launched(workshop, "some")
    assert ended.status == 1
    assert "gradscope: the report of rank 1" in ended.err
    assert "error[unused-parameter]" in ended.err
    assert "= found on rank 1 of 2" in ended.out
    assert "rank 1 raised RuntimeError at script.py:" in ended.out


def test_a_rank_that_is_killed_is_missed(workshop: Workshop) -> None:
    """Nothing hangs, and one line says whose report is missing."""
    ended = launched(workshop, "kill")
    assert ended.status == 1
    assert "no report came from rank 1 of 2" in ended.out
