"""Axes: softmaxes along another axis than is meant, views that move none, masks that come after the softmax."""

from __future__ import annotations

import pytest

from tests.rules.loops import found, report_of
from tests.workshop import Workshop

ATTENTION = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv = nn.Linear(5, 16), nn.Linear(16, 48)
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(16, 3)

    def forward(self, x, mask):
        x = self.embed(x)
        b, t, w = x.shape
        q, k, v = (y.view(b, t, 4, 4).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        a = q @ k.transpose(-2, -1) / 2
        {scores}
        a = a.softmax({dim}){at}
        {masked}
        y = (self.drop(a) @ v){merge}
        return self.out((x + y).mean(1))

net = Net()
"""
BATCH = """
x, y = torch.randn(8, 10, 5), torch.randint(0, 3, (8,))
mask = torch.arange(10) < torch.randint(3, 11, (8, 1))
loss = F.cross_entropy(net(x, mask), y)
"""


def attention(
    scores: str = "", dim: str = "-1", at: str = "", masked: str = "", merge: str = ".transpose(1, 2).reshape(b, t, w)"
) -> str:
    """A net with self-attention of 4 heads over 10 words."""
    return ATTENTION.format(scores=scores or "pass", dim=dim, at=at, masked=masked or "pass", merge=merge)


MASKED = {
    "filled": "a = a.masked_fill(~mask[:, None, None], 0.0)",
    "multiplied": "a = a * mask[:, None, None]",
    "numbers": "a = a * mask[:, None, None].float()",
    "causal": "a = a * torch.tril(torch.ones(t, t))",
    "chosen": "a = torch.where(mask[:, None, None], a, torch.zeros(()))",
    "in place": "a = a.clone(); a[~mask[:, None, None].expand_as(a)] = 0.0",
}
MASKED_WELL = {
    "before": attention("a = a.masked_fill(~mask[:, None, None], -1e9)"),
    "before and after": attention(
        "a = a.masked_fill(~mask[:, None, None], -1e9)", masked="a = a.masked_fill(~mask[:, None, None], 0)"
    ),
    "added": attention("a = a + (1 - mask[:, None, None].float()) * -1e4", masked="a = a * mask[:, None, None]"),
    "normalised again": attention(masked="a = a * mask[:, None, None]; a = a / a.sum(-1, keepdim=True)"),
    "queries": attention(masked="a = a * mask[:, None, :, None]"),
    "dropout by hand": attention(masked="a = a * (torch.rand_like(a) > 0.1) / 0.9"),
}
POOL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.score, self.out = nn.Linear(5, 8), nn.Linear(8, {scores}), nn.Linear({width}, 3)

    def forward(self, x):
        h = self.embed(x).tanh()
        {body}

net = Net()
"""
LINEAR = "net = nn.Linear(5, 4)"
SAMPLES = "x, y = torch.randn(12, 5), torch.randint(0, 4, (12,))\n"
BAGS = "x, y = torch.randn(12, 7, 5), torch.randint(0, 3, (12,))\nloss = F.cross_entropy(net(x), y)"
EXPERTS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 3), nn.ModuleList(nn.Linear(5, 4) for _ in range(3))

    def forward(self, x):
        g = self.gate(x).softmax({dim})  # here
        return (g.unsqueeze(-1) * torch.stack([expert(x) for expert in self.experts], 1)).sum(1)

net = Net()
"""


def pool(body: str, scores: int = 1, width: int = 8) -> str:
    """A net that sums up seven things."""
    return POOL.format(body=body, scores=scores, width=width)


CROSSED = {
    "batch of products": (attention(dim="0", at="  # here"), BATCH),
    "heads": (attention(dim="1", at="  # here"), BATCH),
    "queries": (attention(dim="-2", at="  # here"), BATCH),
    "pooled": (pool("return self.out((F.softmax(self.score(h), dim=0) * h).sum(1))  # here"), BAGS),
    "experts": (EXPERTS.format(dim=0), SAMPLES + "loss = F.cross_entropy(net(x), y)"),
    "classes": (LINEAR, SAMPLES + "loss = F.nll_loss(F.log_softmax(net(x), dim=0), y)  # here"),
    "implicit": (
        "net = nn.GRU(5, 4, batch_first=True)",
        "p = F.log_softmax(net(torch.randn(6, 9, 5))[0])  # here\n"
        "loss = F.nll_loss(p.reshape(-1, 4), torch.randint(0, 4, (54,)))",
    ),
    "time": (
        "net = nn.GRU(5, 4, batch_first=True)",
        "p = net(torch.randn(6, 9, 5))[0].log_softmax(1)  # here\n"
        "loss = F.nll_loss(p.reshape(-1, 4), torch.randint(0, 4, (54,)))",
    ),
    "gather": (LINEAR, SAMPLES + "p = net(x).log_softmax(0)  # here\nloss = -p.gather(1, y.view(12, 1)).mean()"),
    "mixture": (
        LINEAR,
        SAMPLES + "p = net(x).log_softmax(0)  # here\nloss = -torch.logsumexp(p + torch.randn(12, 4), dim=1).mean()",
    ),
}
ALONG = {
    "attention": (attention(), BATCH),
    "pooled": (pool("return self.out((F.softmax(self.score(h), dim=1) * h).sum(1))"), BAGS),
    "clusters": (pool("return self.out(torch.bmm(self.score(h).softmax(-1).mT, h).flatten(1))", 4, 32), BAGS),
    "slots": (
        pool("a = self.score(h).softmax(-1); a = a / a.sum(1, keepdim=True)\n        "
             "return self.out(torch.einsum('btk,btw->bkw', a, h).mean(1))", 4),
        BAGS,
    ),
    "experts": (EXPERTS.format(dim=-1), SAMPLES + "loss = F.cross_entropy(net(x), y)"),
    "classes": (LINEAR, SAMPLES + "loss = F.nll_loss(F.log_softmax(net(x), dim=1), y)"),
    "time last": (
        "net = nn.GRU(5, 4, batch_first=True)",
        "p = net(torch.randn(6, 9, 5))[0].transpose(1, 2).log_softmax(1)\n"
        "loss = F.nll_loss(p, torch.randint(0, 4, (6, 9)))",
    ),
    "both directions": (
        LINEAR,
        "a, b = net(torch.randn(12, 5)), net(torch.randn(12, 5))\ns, y = a @ b.t(), torch.arange(12)\n"
        "loss = F.nll_loss(s.log_softmax(0), y) + F.nll_loss(s.log_softmax(1), y) - s.log_softmax(0).diag().mean()",
    ),
    "importance": (LINEAR, SAMPLES + "p = net(x).square().mean(1)\nloss = ((-p).softmax(0).detach() * p).sum()"),
    "bag": (LINEAR, "x = torch.randn(7, 5)\nh = net(x)\nloss = (h[:, :1].softmax(0) * h).sum(0).square().mean()"),
}  # fmt: skip
SEQUENCE = "net = nn.ModuleList([nn.Linear(5, 16), nn.GRU(16, 8), nn.Linear(8, 3)])"
CONV = "net = nn.ModuleList([nn.Conv2d(3, 24, 3, 2, 1), nn.Linear(24, 3)])"
IMAGES = "y = torch.randint(0, 3, (4,))\n"
MIXED = {
    "time first": (
        SEQUENCE,
        "h = net[0](torch.randn(6, 9, 5))\n"
        "h = h.view(9, 6, 16)  # here\nloss = F.cross_entropy(net[2](net[1](h)[0][-1]), torch.randint(0, 3, (6,)))",
    ),
    "channels first": (
        CONV,
        IMAGES + "x = torch.randn(4, 8, 8, 3).reshape(4, 3, 8, 8)  # here\n"
        "loss = F.cross_entropy(net[1](net[0](x).mean((2, 3))), y)",
    ),
    "patches": (
        CONV,
        IMAGES + "h = net[0](torch.randn(4, 3, 8, 8))\nh = h.view(4, -1, 24)  # here\n"
        "loss = F.cross_entropy(net[1](h).amax(1), y)",
    ),
    "heads merged": (attention(merge=".reshape(b, t, w)  # here"), BATCH),
    "heads split": (attention().replace("view(b, t, 4, 4).transpose(1, 2)", "reshape(b, 4, t, 4)"), BATCH),
    "last states": (
        "net = nn.ModuleList([nn.LSTM(5, 8, 2, bidirectional=True), nn.Linear(32, 3)])",
        "h = net[0](torch.randn(9, 6, 5))[1][0]\nh = h.view(6, -1)  # here\n"
        "loss = F.cross_entropy(net[1](h), torch.randint(0, 3, (6,)))",
    ),
}  # fmt: skip
KEPT_APART = {
    "windows": (LINEAR, "w = torch.randn(16, 10).view(-1, 5)\nloss = net(w).square().mean()"),
    "as long": (LINEAR, "w = torch.randn(5, 20).view(-1, 5)\nloss = net(w).square().mean()"),
    "flat images": (CONV, IMAGES + "x = torch.randn(4, 192).view(-1, 3, 8, 8)\n"
                    "loss = F.cross_entropy(net[1](net[0](x).mean((2, 3))), y)"),
    "shuffled channels": (CONV, IMAGES + "h = net[0](torch.randn(4, 3, 8, 8))\n"
                          "h = h.view(4, 4, 6, 4, 4).transpose(1, 2).reshape(4, 24, 4, 4)\n"
                          "loss = F.cross_entropy(net[1](h.mean((2, 3))), y)"),
    "norm of groups": (CONV, IMAGES + "h = net[0](torch.randn(4, 3, 8, 8))\ng = h.view(4, 4, -1)\n"
                       "g = (g - g.mean(-1, keepdim=True)) / (g.std(-1, keepdim=True) + 0.1)\n"
                       "loss = F.cross_entropy(net[1](g.view(4, 24, 4, 4).mean((2, 3))), y)"),
    "taken back": (SEQUENCE, "h = net[0](torch.randn(6, 9, 5))\nh = torch.tanh(h.view(9, 6, 16)).view(6, 9, 16)\n"
                   "loss = F.cross_entropy(net[2](net[1](h.transpose(0, 1))[0][-1]), torch.randint(0, 3, (6,)))"),
    "skewed": (LINEAR, "r = net(torch.randn(6, 4, 5))\nr = F.pad(r, (1, 0)).view(6, 5, 4)[:, 1:]\n"
               "loss = r.square().mean()"),
    "last states": (
        "net = nn.ModuleList([nn.LSTM(5, 8, 2, bidirectional=True), nn.Linear(16, 3)])",
        "h = net[0](torch.randn(9, 6, 5))[1][0].view(2, 2, 6, 8)[-1].transpose(0, 1).reshape(6, -1)\n"
        "loss = F.cross_entropy(net[1](h), torch.randint(0, 3, (6,)))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("masked", MASKED.values(), ids=MASKED)
def test_probabilities_are_masked(workshop: Workshop, masked: str) -> None:
    """Some weights of attention are set to 0, and the others no longer sum to 1."""
    assert found(workshop, attention(masked=f"{masked}  # here"), BATCH) == [("mask-after-softmax", True)]


def test_masked_weights_of_a_sum(workshop: Workshop) -> None:
    """Weights may be multiplied with what they weigh, and summed."""
    body = "w = self.score(h).softmax(1); w = w * (torch.arange(7) < 4).float().view(7, 1)  # here\n        "
    assert found(workshop, pool(body + "return self.out((w * h).sum(1))"), BAGS) == [("mask-after-softmax", True)]


@pytest.mark.parametrize("before", MASKED_WELL.values(), ids=MASKED_WELL)
def test_masks_that_are_meant(workshop: Workshop, before: str) -> None:
    """Scores masked before, weights normalised again, rows masked as a whole, and dropout."""
    assert found(workshop, before, BATCH) == []


@pytest.mark.parametrize(("before", "body"), CROSSED.values(), ids=CROSSED)
def test_softmax_along_another_axis(workshop: Workshop, before: str, body: str) -> None:
    """What sums to 1 are samples, heads, queries or time steps, and another axis is picked from or summed."""
    assert found(workshop, before, body) == [("softmax-dim", True)]


@pytest.mark.parametrize(("before", "body"), ALONG.values(), ids=ALONG)
def test_softmax_along_the_axis_that_is_meant(workshop: Workshop, before: str, body: str) -> None:
    """Clusters, slots, both directions, bags: the axis alone decides nothing."""
    assert found(workshop, before, body) == []


@pytest.mark.parametrize(("before", "body"), MIXED.values(), ids=MIXED)
def test_views_that_should_move_axes(workshop: Workshop, before: str, body: str) -> None:
    """An axis comes back at another place of the shape, and nothing has moved it."""
    assert [rule for rule, _ in found(workshop, before, body)] == ["reshape-mixes-axes"]


@pytest.mark.parametrize(("before", "body"), KEPT_APART.values(), ids=KEPT_APART)
def test_views_that_split_and_merge(workshop: Workshop, before: str, body: str) -> None:
    """Windows, groups, and views that are taken back mix nothing."""
    assert found(workshop, before, body) == []


def test_the_help_moves_the_axes(workshop: Workshop) -> None:
    """The edit is the transposition; the shapes of the tensors before and after are named."""
    (finding,) = report_of(workshop, *MIXED["time first"]).findings
    (edit,) = finding.help[0].edits
    assert edit.text == "h.transpose(0, 1).contiguous()"
    assert "h" in finding.tensors
