"""Units that start alike and stay so, since nothing tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph import limits
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Run, Span, Tensor, Twins
from gradscope.graph.naming import line_of
from gradscope.rules.claim import Claim, Need, Story, names_of, rule
from gradscope.rules.mends.numbers import started_apart
from gradscope.rules.words import listed, steps_text


@rule("warning", needs=[Need.OPERATIONS, Need.VALUES])
def identical_units(ask: Ask) -> Iterator[Claim[Twins]]:
    """Units of a layer start with equal values, get equal gradients and stay equal: they are one unit.

    What tells units apart is where they start. Rows of a weight that start as one constant, at zero or as copies, and
    that the next layer weighs equally, get the same gradient in every step. The layer then has the strength of a single
    unit, whatever its width.

    Bad:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        for layer in (net[0], net[2]):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(6):
            x = torch.rand(32, 4)
            loss = nn.functional.cross_entropy(net(x), (x[:, 0] > x[:, 1]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        for layer in (net[0], net[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(6):
            x = torch.rand(32, 4)
            loss = nn.functional.cross_entropy(net(x), (x[:, 0] > x[:, 1]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    run = ask.run
    told: set[int] = set()
    # Tensors of one module with as many rows are parts of the same units.
    places: dict[tuple[int, str], tuple[str, int] | None] = {}
    for twins in run.twins:
        tensor = run.tensor_by_id[twins.tensor]
        if twins.looks < limits.SLIPS or tensor.name is None or not tensor.change:
            continue
        module = tensor.name.rpartition(".")[0]
        place = places.setdefault((twins.rows, module), line_of(_started(run, tensor)))
        for number in (twins.tensor, *twins.others):
            suffering = run.tensor_by_id[number]
            if suffering.name is not None and number not in told:
                told.add(number)
                yield Claim(place, twins, suffering, explains=())


def _started(run: Run, tensor: Tensor) -> Span | None:
    """The line that gave a tensor the values which it started with."""
    before = min((backward.began for step in run.steps[:1] for backward in step.backwards), default=0)
    writers = [
        operation.span
        for step in run.steps[:1]
        for operation in step.operations
        if operation.id <= before
        and operation.span is not None
        and any(run.holder.get(value) == tensor.id for value in operation.outputs)
    ]
    return writers[-1] if writers else tensor.made


@identical_units.words
def _(told: Sequence[Claim[Twins]], ask: Ask) -> Story:
    run, twins = ask.run, told[0].evidence
    tensor = run.tensor_by_id[twins.tensor]
    names = names_of(told)
    span = _started(run, tensor)
    labels: tuple[Label, ...] = ()
    if tensor.built is not None and line_of(tensor.built) != line_of(span):
        labels = (Label(tensor.built, "these units"),)
    count = f"all {twins.rows}" if twins.alike == twins.rows else f"{twins.alike} of {twins.rows}"
    return Story(
        f"{count} rows of `{tensor.name}` have an equal twin, at the start and at the end: they are no units of their "
        "own",
        span,
        "they start alike here, and equal gradients keep them so",
        names,
        labels,
        (
            f"equal in values and in gradients in all {twins.looks} passes that were looked at, of {steps_text(run)}",
            f"alike for these units: {listed(names)}",
        ),
        (
            Help(
                "start each unit elsewhere, with random values as the layers of torch do (`nn.init.kaiming_uniform_`)",
                started_apart(ask, span, tensor.shape),
            ),
        ),
    )
