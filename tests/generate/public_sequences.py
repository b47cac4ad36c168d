"""Small causal sequence networks that follow the structure of public code; see ``networks``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fastgen.generate import heads
from tests.generate.seeded import built

LEVELS = 11


class OneHot(nn.Module):
    """Integer tokens [N, T] for a network that reads one-hot floats [N, V, T]."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.one_hot(x, self.levels).transpose(1, 2).float())


# ---- WaveNet with one-hot input, padded convolutions and a crop ----


class GatedLayer(nn.Module):
    def __init__(self, residual: int, gate: int, skip: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.05)
        self.conv = weight_norm(nn.Conv1d(residual, gate, kernel, padding=(kernel - 1) * dilation, dilation=dilation))
        self.conv1x1_out = weight_norm(nn.Conv1d(gate // 2, residual, 1))
        self.conv1x1_skip = weight_norm(nn.Conv1d(gate // 2, skip, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = x
        x = self.conv(self.dropout(x))
        x = x[:, :, : residual.size(-1)]
        a, b = x.split(x.size(1) // 2, dim=1)
        x = torch.tanh(a) * torch.sigmoid(b)
        return (self.conv1x1_out(x) + residual) * math.sqrt(0.5), self.conv1x1_skip(x)


class OneHotWaveNet(nn.Module):
    def __init__(self, levels: int = LEVELS, residual: int = 12, gate: int = 20, skip: int = 14) -> None:
        super().__init__()
        self.first_conv = nn.Conv1d(levels, residual, 1)
        self.layers = nn.ModuleList(GatedLayer(residual, gate, skip, 3, 2 ** (i % 3)) for i in range(5))
        self.last = nn.Sequential(
            nn.ReLU(inplace=True), nn.Conv1d(skip, skip, 1), nn.ReLU(inplace=True), nn.Conv1d(skip, levels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first_conv(x), 0
        for layer in self.layers:
            x, skip = layer(x)
            skips += skip
        return self.last(skips * math.sqrt(1 / len(self.layers)))


def wavenet_one_hot():
    return built(lambda: OneHot(OneHotWaveNet(), LEVELS), 4.0), (40,), heads.Categorical(LEVELS), "time", "next", None


# ---- WaveNet that folds dilation into the batch ----


def dilate(x: Tensor, dilation: int, before: int) -> Tensor:
    """[n * before, c, l] with every ``before``-th sample in a row of the batch -> the same for ``dilation``."""
    n, c, length = x.size()
    if dilation > before:
        x = F.pad(x, (-length % (dilation // before), 0))
    rows = n * dilation // before
    return x.permute(1, 2, 0).contiguous().view(c, -1, rows).permute(2, 0, 1).contiguous()


class BatchFoldedWaveNet(nn.Module):
    def __init__(self, levels: int = LEVELS, channels: int = 10, skip: int = 12, dilations=(1, 2, 4, 1, 2, 4)) -> None:
        super().__init__()
        self.dilations, self.levels = dilations, levels
        self.start_conv = nn.Conv1d(levels, channels, 1)
        self.filter_convs = nn.ModuleList(nn.Conv1d(channels, channels, 2) for _ in dilations)
        self.gate_convs = nn.ModuleList(nn.Conv1d(channels, channels, 2) for _ in dilations)
        self.residual_convs = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in dilations)
        self.skip_convs = nn.ModuleList(nn.Conv1d(channels, skip, 1) for _ in dilations)
        self.end_conv = nn.Conv1d(skip, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        length, before, skip = x.size(-1), 1, None
        x = self.start_conv(F.pad(x, (sum(self.dilations) + 1, -1)))
        for i, dilation in enumerate(self.dilations):
            residual = dilate(x, dilation, before)
            x = torch.tanh(self.filter_convs[i](residual)) * torch.sigmoid(self.gate_convs[i](residual))
            s = self.skip_convs[i](dilate(x, 1, dilation) if dilation > 1 else x)[:, :, -length:]
            skip = s if skip is None else s + skip
            x = self.residual_convs[i](x) + residual[:, :, 1:]
            before = dilation
        return self.end_conv(F.relu(skip))


def wavenet_batch_folded():
    return built(lambda: OneHot(BatchFoldedWaveNet(), LEVELS)), (37,), heads.Categorical(LEVELS), "time", "same", None


# ---- a token network, [B, T] -> [B, T, V] ----


class TokenNetwork(nn.Module):
    def __init__(self, levels: int = LEVELS, dim: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(levels, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers + 1))
        self.mixers = nn.ModuleList(nn.Conv1d(dim, dim, 4, groups=dim) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(layers)
        )
        self.output = nn.Linear(dim, levels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            h = F.pad(self.norms[2 * i](x).transpose(1, 2), (3, 0))
            x = x + F.silu(mixer(h)).transpose(1, 2)
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.output(self.norms[-1](x))


def tokens_last():
    return built(TokenNetwork), (24,), heads.Categorical(LEVELS), "time", "next", lambda output: output.transpose(1, 2)


# ---- temporal convolutional network on a piano roll ----


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, dim_in: int, dim: int, kernel: int, dilation: int) -> None:
        super().__init__()
        pad, layers = (kernel - 1) * dilation, []
        for source in (dim_in, dim):
            conv = weight_norm(nn.Conv1d(source, dim, kernel, padding=pad, dilation=dilation))
            layers += [conv, Chomp1d(pad), nn.ReLU(), nn.Dropout(0.2)]
        self.net = nn.Sequential(*layers)
        self.downsample = nn.Conv1d(dim_in, dim, 1) if dim_in != dim else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class TemporalConvNet(nn.Module):
    def __init__(self, keys: int = 5, dim: int = 9) -> None:
        super().__init__()
        blocks = [TemporalBlock(keys if i == 0 else dim, dim, 3, 2**i) for i in range(3)]
        self.tcn = nn.Sequential(*blocks)
        self.linear = nn.Linear(dim, keys)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.tcn(x).transpose(1, 2)).transpose(1, 2)


def temporal_conv_net():
    return built(TemporalConvNet), (5, 48), heads.Bernoulli(to_input="unit"), "time", "next", None


# ---- causal U-Net over a waveform ----


class CausalUNet1d(nn.Module):
    """Two stride-2 levels; a coarse cell is final only after its whole window, so it is delayed by one."""

    def __init__(self, dim: int = 8, mixtures: int = 2) -> None:
        super().__init__()
        self.input = nn.Conv1d(1, dim, 2)
        self.downs = nn.ModuleList(nn.Conv1d(dim, dim, 4, stride=2) for _ in range(2))
        self.middle = nn.Conv1d(dim, dim, 3)
        self.ups = nn.ModuleList(nn.ConvTranspose1d(dim, dim, 2, stride=2) for _ in range(2))
        self.merges = nn.ModuleList(nn.Conv1d(dim, dim, 2) for _ in range(2))
        self.output = nn.Conv1d(dim, 3 * mixtures, 1)

    def forward(self, x: Tensor) -> Tensor:
        length = x.size(-1)
        x = F.pad(x, (1, -length % 4 - 1))
        x = F.leaky_relu(self.input(F.pad(x, (1, 0))), 0.1)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = F.leaky_relu(down(F.pad(x, (2, 0))), 0.1)
        x = x + torch.tanh(self.middle(F.pad(x, (2, 0))))
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = up(F.pad(x, (1, -1))) + skips.pop()
            x = F.leaky_relu(merge(F.pad(x, (1, 0))), 0.1)
        return self.output(x)[..., :length]


def causal_unet():
    head = heads.DiscretizedLogisticMixture(2, levels=32)
    return built(CausalUNet1d), (1, 44), head, "time", "same", None


# ---- ByteNet decoder ----


class ByteNetBlock(nn.Module):
    def __init__(self, dim: int, dilation: int, kernel: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(d) for d in (2 * dim, dim, dim))
        self.reduce, self.expand = nn.Conv1d(2 * dim, dim, 1), nn.Conv1d(dim, 2 * dim, 1)
        self.conv = nn.Conv1d(dim, dim, kernel, dilation=dilation)
        self.left = (kernel - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        h = self.reduce(F.relu(self._norm(0, x)))
        h = self.conv(F.pad(F.relu(self._norm(1, h)), (self.left, 0)))
        return x + self.expand(F.relu(self._norm(2, h)))

    def _norm(self, i: int, x: Tensor) -> Tensor:
        return self.norms[i](x.transpose(1, 2)).transpose(1, 2)


class ByteNet(nn.Module):
    """The input is shifted by one behind a learned start vector."""

    def __init__(self, levels: int = LEVELS, dim: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(levels, 2 * dim)
        self.start = nn.Parameter(torch.randn(1, 2 * dim, 1))
        self.blocks = nn.Sequential(*(ByteNetBlock(dim, dilation) for dilation in (1, 2, 4)))
        self.output = nn.Conv1d(2 * dim, levels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens[:, :-1]).transpose(1, 2)
        x = torch.cat([self.start.expand(tokens.size(0), -1, -1), x], dim=2)
        return self.output(F.relu(self.blocks(x)))


def bytenet():
    return built(ByteNet), (30,), heads.Categorical(LEVELS), "time", "same", None
