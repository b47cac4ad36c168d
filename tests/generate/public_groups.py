"""Small networks that draw several elements at a step, as public code has them; see ``networks``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.generate import Delayed, Groups, Wavefront, heads, multiscale
from tests.generate.public_attention import WIDTH, SelfAttention, masked_fill
from tests.generate.public_images import MaskedConv
from tests.generate.seeded import built


class Upscale(nn.Module):
    """Scores the pixels of one group from the maps of the groups that are known."""

    def __init__(self, known: int, levels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(known, width, 3, padding=1)
        self.last = nn.Conv2d(width, levels, 1)

    def forward(self, *known: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(torch.cat(known, 1))))


class MultiscalePixelCNN(nn.Module):
    """Reed et al. 2017: a PixelCNN of 2 x 2 pixels; then the resolution doubles, by three groups each time."""

    def __init__(self, levels: int = 5, width: int = 6, doublings: int = 2) -> None:
        super().__init__()
        self.base = nn.Sequential(MaskedConv("A", 1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, levels, 1))
        groups = [[Upscale(known, levels, width) for known in (1, 2, 3)] for _ in range(doublings)]
        self.doublings = nn.ModuleList(nn.ModuleList(nets) for nets in groups)

    def forward(self, x: Tensor) -> Tensor:
        stride = 2 ** len(self.doublings)
        logits = self.base(x[..., ::stride, ::stride])
        for right, below, diagonal in self.doublings:
            half = stride // 2
            known = [x[..., ::stride, ::stride], x[..., ::stride, half::stride], x[..., half::stride, ::stride]]
            above = torch.stack([logits, right(known[0])], -1).flatten(-2)
            under = torch.stack([below(*known[:2]), diagonal(*known)], -1).flatten(-2)
            logits, stride = torch.stack([above, under], -2).flatten(-3, -2), half
        return logits


def multiscale_pixelcnn():
    head = heads.Categorical(5, to_input="unit")
    return built(MultiscalePixelCNN), (1, 8, 8), head, multiscale(8, 8, coarsest=2), "same", None


class Fronts(nn.Module):
    """Masked convolutions of two channels that see one column to the right a row above, no further."""

    def __init__(self, levels: int = 4, width: int = 8) -> None:
        super().__init__()
        self.first = MaskedConv("A", 2, width, 3, padding=1)
        self.convs = nn.ModuleList(MaskedConv("B", width, width, 3, padding=1) for _ in range(2))
        self.place = nn.Parameter(torch.randn(width, 7, 1))
        self.last = nn.Conv2d(width, 2 * levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.place
        for conv in self.convs:
            h = h + torch.tanh(conv(h))
        return self.last(torch.relu(h))


def wavefront():
    return built(Fronts), (2, 7, 6), heads.Categorical(4, to_input="unit"), Wavefront(2, 1), "same", None


STEPS = np.array([[0, 1, 0, 2], [0, 1, 3, 2], [3, 4, 0, 0]])


class Scrambled(nn.Module):
    """A masked layer over all elements of three channels, each of which is drawn at a step of its own."""

    def __init__(self, levels: int = 3, width: int = 5) -> None:
        super().__init__()
        steps = torch.from_numpy(STEPS).flatten()
        self.seen = nn.Buffer((steps[:, None] > steps[None]).repeat_interleave(width, 0))
        self.first = nn.Linear(len(steps), len(self.seen))
        self.last = nn.Conv1d(len(STEPS) * width, len(STEPS) * levels, 1, groups=len(STEPS))

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.linear(x.flatten(1), self.first.weight * self.seen, self.first.bias)
        hidden = torch.tanh(hidden).unflatten(1, (*STEPS.shape, -1))
        return self.last(hidden.transpose(2, 3).flatten(1, 2))


def scrambled():
    return built(Scrambled), STEPS.shape, heads.Categorical(3, to_input="unit"), Groups(STEPS), "same", None


class Codebooks(nn.Module):
    """Tokens of several codebooks at a time: embeddings are summed, every codebook has its own logits."""

    def __init__(self, codebooks: int = 3, levels: int = 6) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(levels + 1, WIDTH) for _ in range(codebooks))
        self.attention, self.norm = SelfAttention(masked_fill), nn.LayerNorm(WIDTH)
        self.heads = nn.Linear(WIDTH, codebooks * levels)
        self.shape = codebooks, levels

    def forward(self, x: Tensor) -> Tensor:
        h = sum(embed(x[:, k]) for k, embed in enumerate(self.embed))
        h = h + self.attention(self.norm(h))
        return self.heads(h).unflatten(-1, self.shape).permute(0, 2, 3, 1)


def codebooks_parallel():
    return built(Codebooks), (3, 12), heads.Categorical(6), "time", "next", None


class DelayedCodebooks(Codebooks):
    """MusicGen's delay pattern: codebook k of time t stands at place t + k, a token of its own before and after."""

    def forward(self, x: Tensor) -> Tensor:
        codebooks, levels = self.shape
        last = codebooks - 1
        rows = [nn.functional.pad(x[:, k], (k + 1, last - k - 1), value=levels) for k in range(codebooks)]
        logits = super().forward(torch.stack(rows, 1))
        return torch.stack([logits[:, k, :, k : k + x.shape[2]] for k in range(codebooks)], 1)


def codebooks_delayed():
    return built(DelayedCodebooks), (3, 12), heads.Categorical(6), Delayed([0, 1, 2]), "same", None
