"""A small network to train in many ways, and what is found in each program."""

from __future__ import annotations

import textwrap
import warnings

from gradscope.graph.facts import Finding, Run, Span
from gradscope.reports.report import Report
from tests.workshop import Workshop

HEAD = """
import copy
import torch
from torch import nn
import torch.nn.functional as F
from torch.optim import SGD, Adam, AdamW, LBFGS

class Net(nn.Module):
    def __init__(self, inputs=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.body(x))

def data(n=8):
    x = torch.randn(n, 4)
    return x, x.sum(1, keepdim=True)

def loss_of(net):
    x, y = data()
    return F.mse_loss(net(x), y)

def fit(net, optimizer, steps=8):
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()

"""
BODY = ("body.0.weight", "body.0.bias")
OUT = ("head.weight", "head.bias")
NET = (*BODY, *OUT)


class Judged:
    """What a program draws, and the lines that it is about."""

    def __init__(self, source: str, run: Run) -> None:
        self.lines = source.splitlines()
        self.run = run
        report = Report.of(run)
        assert report.failures == ()
        self.findings: tuple[Finding, ...] = report.findings

    def line(self, span: Span | None) -> str:
        """The source line of a place."""
        assert span is not None
        return self.lines[span.line - 1]

    def must_be(self, rule: str, severity: str, tensors: tuple[str, ...]) -> Finding:
        """One finding, of this rule, about these tensors, at the line marked `# here`."""
        assert [(finding.rule, finding.severity) for finding in self.findings] == [(rule, severity)]
        assert self.findings[0].tensors == tensors
        assert "# here" in self.line(self.findings[0].span)
        return self.findings[0]

    def must_be_silent(self) -> None:
        """Nothing is found."""
        assert [(finding.rule, finding.message) for finding in self.findings] == []


def judge(workshop: Workshop, program: str) -> Judged:
    """What a program draws that follows on `HEAD` and must end well."""
    source = HEAD.lstrip("\n") + textwrap.dedent(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some of these as well
        run = workshop.run(source)
    return Judged(source, run)
