"""T5's plan: an encoder and a decoder whose only positions are learned biases by buckets of distances."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate import heads
from tests.generate.seeded import built

LEVELS, WIDTH, HEADS = 7, 12, 2


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Buckets(nn.Module):
    """A bias of every head by the bucket of a distance: half of the buckets hold one distance, the others ever more."""

    def __init__(self, both_ways: bool, buckets: int = 8, most: int = 12) -> None:
        super().__init__()
        self.both_ways, self.buckets, self.most = both_ways, buckets, most
        self.table = nn.Embedding(buckets, HEADS)

    def forward(self, queries: int, keys: int) -> Tensor:
        apart = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
        buckets, bucket = self.buckets, torch.zeros_like(apart)
        if self.both_ways:
            buckets //= 2
            bucket = bucket + (apart > 0).long() * buckets
            apart = apart.abs()
        else:
            apart = (-apart).clamp(min=0)
        exact = buckets // 2
        far = torch.log(apart.float() / exact) / math.log(self.most / exact) * (buckets - exact)
        far = (exact + far.long()).clamp(max=buckets - 1)
        return self.table(bucket + torch.where(apart < exact, apart, far)).permute(2, 0, 1)[None]


class Attention(nn.Module):
    """Attention without a scale; ``source`` is attended to where it is given, ``x`` otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        normed = self.norm(x)
        seen = normed if source is None else source
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (self.q(normed), self.k(seen), self.v(seen)))
        scores = q @ k.transpose(2, 3)
        weights = (scores if bias is None else scores + bias).float().softmax(-1).type_as(scores)
        return x + self.o((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.gate, self.linear, self.out = (
            nn.Linear(WIDTH, 2 * WIDTH, bias=False),
            nn.Linear(WIDTH, 2 * WIDTH, bias=False),
            nn.Linear(2 * WIDTH, WIDTH, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.out(F.gelu(self.gate(normed), approximate="tanh") * self.linear(normed))


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(LEVELS, WIDTH), nn.Linear(WIDTH, LEVELS, bias=False)
        self.source_bias, self.target_bias = Buckets(both_ways=True), Buckets(both_ways=False)
        self.encoder = nn.ModuleList([Attention(), FeedForward(), Attention(), FeedForward()])
        self.decoder = nn.ModuleList([Attention(), Attention(), FeedForward(), Attention(), Attention(), FeedForward()])
        self.source_norm, self.target_norm = RMSNorm(), RMSNorm()

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        bias, seen = self.source_bias(source.shape[1], source.shape[1]), self.embed(source)
        for layer in self.encoder:
            seen = layer(seen, bias) if isinstance(layer, Attention) else layer(seen)
        seen, y = self.source_norm(seen), self.embed(x)
        future = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        bias = self.target_bias(x.shape[1], x.shape[1]) + future
        for number, layer in enumerate(self.decoder):
            if isinstance(layer, FeedForward):
                y = layer(y)
            else:
                y = layer(y, bias) if number % 3 == 0 else layer(y, source=seen)
        return self.head(self.target_norm(y)).transpose(1, 2)


def t5():
    return built(T5), (13,), heads.Categorical(LEVELS), "time", "next", None, torch.zeros(2, 6, dtype=torch.int64)
