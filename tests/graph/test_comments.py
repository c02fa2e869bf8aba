"""Comments that speak to gradscope, and what only looks like one."""

from __future__ import annotations

import pytest

from gradscope.graph.comments import comments_in
from gradscope.reports.report import Report
from tests.workshop import Workshop

ALLOW = "# gradscope: allow[detach]"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"x = 1  {ALLOW}\n", [1]),
        (f"s = '{ALLOW}'\n", []),
        (f"s = '{ALLOW}'  {ALLOW}\n", [1]),
        (f's = """\n{ALLOW}\n"""\nx = 1  {ALLOW}', [4]),
        (f's = """\n{ALLOW}', [2]),
        (f"s = f'{{x}} {ALLOW}'\n", []),
        (f"x = (1 +\n     2)  {ALLOW}\n", [2]),
        (f"x = 1 + \\\n    2  {ALLOW}\n", [2]),
        (f"if x:\n        y\n    z\nw  {ALLOW}\n", [4]),
        (f")\nx = 1  {ALLOW}\n", [2]),
        (f"!ls\n%time f()\nx = 1  {ALLOW}\n", [3]),
        (f"\fx = 1  {ALLOW}\r\ny = 2\r\n", [1]),
        ("x = 1  # allow[detach]\n", []),
        ("", []),
    ],
)
def test_only_comments_are_found(text: str, lines: list[int]) -> None:
    """By their lines, outside strings, also in text that is no Python to its end."""
    assert list(comments_in(text)) == lines


@pytest.mark.parametrize(
    ("line", "silent"),
    [
        (f"z = a(x).detach()  {ALLOW}", True),
        (f's = "{ALLOW}"; z = a(x).detach()', False),
        (f'z = a(x).detach(); s = f"{{k}} {ALLOW}"', False),
        (f's = """\n{ALLOW}"""; z = a(x).detach()', False),
        (f"z = (a(x)\n         .detach())  {ALLOW}", True),
        (f"z = a(x).detach(\n    )  {ALLOW}", True),
        (f"z = a(x).detach(  {ALLOW}\n    )", True),
    ],
)
def test_a_comment_in_a_string_silences_nothing(workshop: Workshop, line: str, silent: bool) -> None:
    """A comment at the end of the expression's first or last line silences; text in a string does not."""
    indented = line.replace("\n", "\n    ")
    script = (
        "import torch\n"
        "from torch import nn\n"
        "a, b = nn.Linear(2, 2), nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)\n"
        "for k in range(3):\n"
        "    x = torch.ones(4, 2)\n"
        f"    {indented}\n"
        "    optimizer.zero_grad()\n"
        "    b(z).sum().backward()\n"
        "    optimizer.step()\n"
    )
    rules = [finding.rule for finding in Report.of(workshop.run(script)).findings]
    assert rules == ([] if silent else ["detach"])
