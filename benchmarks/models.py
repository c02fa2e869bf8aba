"""Models of three sizes, in plain torch: one parameter, a network of residual blocks, a transformer of GPT-2's size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scale(nn.Module):
    """The forum script's `tensor` as a module: five operations at most."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.ones(3, 5))
        self.register_buffer("cte1", torch.rand(5, 3))
        self.register_buffer("cte2", torch.rand(5, 5))

    def forward(self, scale: Tensor) -> Tensor:
        """A 5x5 output; `scale` is a scalar."""
        return scale * (self.cte1 @ self.tensor + self.cte2)


class Residual(nn.Module):
    """Two convolutions with norms, and a way round them."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images of `before` channels to images of `after` channels."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.short(x))


class ResNet(nn.Module):
    """Nine residual blocks in three stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            nn.Sequential(Residual(16, 16), Residual(16, 16), Residual(16, 16)),
            nn.Sequential(Residual(16, 32, 2), Residual(32, 32), Residual(32, 32)),
            nn.Sequential(Residual(32, 64, 2), Residual(64, 64), Residual(64, 64)),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images, n x 3 x 32 x 32, to logits, n x 10."""
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))


class Attention(nn.Module):
    """Causal self-attention, step by step."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Batch x time x width, in and out."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=2)
        q, k, v = (part.view(batch, time, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        mask = torch.ones(time, time, dtype=torch.bool).tril()
        mixed = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))


class Mlp(nn.Module):
    """Two layers with a gelu between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with `width` last, in and out."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and layers, each with a norm before and a way round."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Batch x time x width, in and out."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Twelve blocks of width 768 with twelve heads, 124 million parameters; words and head share their weight."""

    def __init__(self, words: int = 50257, length: int = 1024, width: int = 768, heads: int = 12, layers: int = 12):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens, batch x time, to logits, batch x time x words."""
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "one parameter": lambda: (Scale(), torch.tensor(1.0)),
    "9 residual blocks": lambda: (ResNet(), torch.rand(8, 3, 32, 32)),
    "GPT-2's size": lambda: (GPT(), torch.randint(50257, (1, 16))),
}
"""By name, what makes a model and an input for it."""
