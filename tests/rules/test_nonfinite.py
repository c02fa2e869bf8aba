"""NaN and infinity that came from before: from a parameter, from a step, from a count of nothing."""

from __future__ import annotations

import pytest

from gradscope.graph.facts import Finding
from gradscope.reports.report import Report
from tests.workshop import Workshop


def told(workshop: Workshop, source: str) -> Finding:
    """The only finding of a program that ends well."""
    (finding,) = Report.of(workshop.run(source)).findings
    return finding


HALF = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    prompt = nn.Parameter(0.1 * torch.randn(2, 8).half())
    words = 0.1 * torch.randn(3, 8).half()
    weight = 0.01 * torch.randn(8, 4).half()
    optimizer = torch.optim.Adam([prompt], lr=0.01)
    for _ in range(5):
        taken = {taken}
        loss = nn.functional.cross_entropy((taken @ weight).float(), torch.tensor([0, 1, 2, 3, 0][: len(taken)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    "taken",
    [
        "torch.cat([prompt, words])",
        "torch.stack([prompt[0], words[0]]) + words[:2]",
        "(prompt.unsqueeze(0) + words[0]).squeeze(0) * 0.5",
    ],
)
def test_parameter_that_a_step_has_spoilt_is_told_through_whatever_takes_it(workshop: Workshop, taken: str) -> None:
    """In float16 Adam divides by an `eps` of 0: no operation made NaN of finite numbers."""
    finding = told(workshop, HALF.format(taken=taken))
    assert finding.rule == "nonfinite-forward"
    assert "`prompt` became NaN or infinite before step 2" in finding.message
    assert finding.span is not None
    assert finding.span.line == 14
    assert "float32" in finding.help[0].message


def test_rows_that_no_loss_meets_are_looked_at_in_the_end(workshop: Workshop) -> None:
    """Without `eps`, Adam divides 0 by 0 in the rows of a table that are not used."""
    source = """
        import torch
        from torch import nn

        torch.manual_seed(0)
        table, head = nn.Embedding(8, 4), nn.Linear(4, 2)
        optimizer = torch.optim.Adam([*table.parameters(), *head.parameters()], lr=0.01, eps={eps})
        for _ in range(5):
            words = torch.randint(0, 4, (32,))
            loss = nn.functional.cross_entropy(head(table(words)), words % 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    finding = told(workshop, source.format(eps="0.0"))
    assert (finding.rule, finding.severity, finding.tensors) == ("nonfinite-forward", "error", ("table.weight",))
    assert "at the end, though the losses are finite" in finding.message
    assert finding.span is not None
    assert finding.span.line == 12
    assert Report.of(workshop.run(source.format(eps="1e-8"))).findings == ()


LABELS = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(5):
        labels = torch.full((8,), -100)
        scores = net(torch.randn(8, 4))
        {loss}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    "loss",
    [
        "loss = nn.functional.cross_entropy(scores, labels, reduction='sum') / (labels != -100).sum()",
        "mask = labels >= 0; loss = (scores.square().sum(1) * mask).sum() / mask.float().sum()",
        "loss = nn.functional.cross_entropy(scores, labels)",
    ],
)
def test_mean_over_no_labels_is_told_as_a_count_of_nothing(workshop: Workshop, loss: str) -> None:
    """To clamp the divisor would hide that nothing is trained on."""
    finding = told(workshop, LABELS.format(loss=loss))
    assert finding.rule == "nonfinite-forward"
    assert "ignore_index" in finding.help[0].message
    assert {"net.weight", "net.bias"} <= set(finding.tensors)


def test_constant_that_is_zero_in_float16_is_told(workshop: Workshop) -> None:
    """The line has its small constant already, and float16 does not hold it."""
    source = """
        import torch

        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.zeros(4).half())
        optimizer = torch.optim.SGD([w], lr=0.1)
        for _ in range(3):
            length = w.square().sum()
            loss = (torch.ones(4).half() * w / (length + 1e-8)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    finding = told(workshop, source)
    assert finding.rule.startswith("nonfinite")
    assert "1e-08 is 0 in float16" in finding.help[0].message


def test_divisor_inside_a_library_is_not_to_be_clamped(workshop: Workshop) -> None:
    """A help that asks to change a line is given only for a line of the program's own."""
    workshop.write(
        """
        def scaled(x, size):
            return x / size
        """,
        "library/site-packages/scaling.py",
    )
    source = """
        import sys
        import torch

        sys.path.insert(0, "library/site-packages")
        import scaling

        w = torch.nn.Parameter(torch.ones(4))
        optimizer = torch.optim.SGD([w], lr=0.1)
        for _ in range(3):
            loss = scaling.scaled(w, torch.zeros(4)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    finding = told(workshop, source)
    assert finding.rule == "nonfinite-forward"
    assert "clamp" not in finding.help[0].message
