"""Not reached: tensors that no gradient can get to, since nothing computes with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from gradscope.graph.facts import Finding, Help, Run, Span, Tensor


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
    steps = {optimizer.id: optimizer for optimizer in run.optimizers}
    groups: dict[tuple[Span | None, str], list[Tensor]] = defaultdict(list)
    for tensor in run.tensors:
        held = tensor.optimizer is not None and steps[tensor.optimizer].steps > 0
        never = tensor.received is not None and tensor.received.steps == 0
        if held and never and tensor.requires_grad and not tensor.used and run.backward_count:
            owner = (tensor.name or "").rpartition(".")[0]
            groups[tensor.made, owner].append(tensor)
    for (span, owner), tensors in groups.items():
        names = tuple(tensor.name or "unnamed" for tensor in tensors)
        optimizer = steps[tensors[0].optimizer or 0]
        count = "its parameter is" if len(names) == 1 else f"its {len(names)} parameters are"
        what = f"`{owner}` is never used: {count}" if owner else f"`{names[0]}` is never used: it is"
        yield Finding(
            rule="unused-parameter",
            severity="warning",
            message=f"{what} held by {optimizer.name}, and no operation took them in {optimizer.steps} steps",
            span=span or optimizer.made,
            caret="made here, and used nowhere" if span else "held here, and used nowhere",
            tensors=names,
            facts=(f"never used: {', '.join(names)}",),
            help=(Help("use it in `forward`, or delete it"),),
        )
