"""Networks, at the top of a module so that they can be pickled, and their samplers, which nobody may change."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import fastgen


class Pointwise(nn.Module):
    """Each element depends on the one before."""

    def __init__(self, levels: int = 16, width: int = 16) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(levels, width), nn.Conv1d(width, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(x).transpose(1, 2)))


class Causal(nn.Module):
    """A stack of dilated convolutions, and a context that is added at every position."""

    def __init__(self, levels: int = 8, width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.context = nn.Embedding(levels, width), nn.Linear(2, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(depth))
        self.head = nn.Conv1d(width, levels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.embed(x).transpose(1, 2) + self.context(context)[..., None]
        for conv in self.convs:
            h = h + torch.tanh(conv(nn.functional.pad(h, (conv.dilation[0], 0))))
        return self.head(h)


@cache
def pointwise(length: int = 30, levels: int = 16, width: int = 16, **options) -> fastgen.Sampler:
    head = fastgen.heads.Categorical(levels)
    options = {"order": "time", "predicts": "next", "threads": 1} | options
    return fastgen.Sampler(Pointwise(levels, width), (length,), head, **options)


@cache
def causal(length: int = 40) -> fastgen.Sampler:
    options = {"order": "time", "predicts": "next", "threads": 1, "example_context": torch.zeros(1, 2)}
    return fastgen.Sampler(Causal(), (length,), fastgen.heads.Categorical(8), **options)
