"""The discretized logistic distribution, and mixtures of it with autoregressive channels, in plain PyTorch.

Salimans, Karpathy, Chen, Kingma, "PixelCNN++" (2017).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = {1: 2, 3: 3}
"""Channels -> the blocks of M parameters that each has: means, log-scales and, for three, coefficients."""


def mixtures_of(parameters: int, channels: int) -> int:
    """Returns the number of components for so many parameters; raises ValueError where there is none."""
    if channels not in BLOCKS:
        raise ValueError(f"level must have 1 or 3 channels, got {channels}")
    each = 1 + channels * BLOCKS[channels]
    if parameters < each or parameters % each:
        raise ValueError(
            f"parameters must have {each} M numbers for each position, for M components of {channels} channel(s), got "
            f"{parameters}"
        )
    return parameters // each


def to_symmetric(level: Tensor, levels: int) -> Tensor:
    """Maps levels 0 .. L-1 to the grid -1 .. 1: ``2 level / (L-1) - 1``."""
    return level * 2 / (levels - 1) - 1


def _log1mexp(log_d: Tensor) -> Tensor:
    """Returns ``log(1 - exp(-d))`` from ``log d``; below d = 1e-3 by ``log d - d/2 + d**2/24``, exact to 1e-15."""
    d = log_d.exp()
    small = log_d < math.log(1e-3)
    series = log_d + d.masked_fill(~small, 0).mul(1 / 24).sub(0.5) * d.masked_fill(~small, 0)
    return torch.where(small, series, torch.log(-torch.expm1(-d.masked_fill(small, 1))))


def discretized_logistic_log_prob(level: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Log-probability of a level under a logistic distribution, rounded to the grid of ``levels`` values in [-1, 1].

    With ``x = 2 level / (L-1) - 1``, half a bin ``h = 1 / (L-1)`` and F the logistic cdf of mean and scale,

        log P(level) = log(F(x + h) - F(x - h)),

    where F(x - h) is 0 at level 0 and F(x + h) is 1 at level L-1. It is computed as
    ``logsigmoid(a) + logsigmoid(-b) + log(1 - exp(b - a))`` with ``a, b = (x +- h - mean) / scale``, which is exact in
    the tails: Salimans et al., "PixelCNN++" (2017), use the density at the middle of the bin where the difference is
    below 1e-5, an approximation of this value.

    Args:
        level: integers, or floats that are whole numbers, in 0 .. L-1; broadcasts with the others.
        mean, log_scale: floating point, of one dtype, which is the result's.
        levels: L, at least 2.
    """
    x = to_symmetric(level.to(mean.dtype), levels)
    inverse_scale = torch.exp(-log_scale)
    centered, half_width = x - mean, 1 / (levels - 1)
    lower_edge, upper_edge = level == 0, level == levels - 1
    above = F.logsigmoid((centered + half_width) * inverse_scale).masked_fill(upper_edge, 0)
    below = F.logsigmoid((half_width - centered) * inverse_scale).masked_fill(lower_edge, 0)
    width = _log1mexp(math.log(2 * half_width) - log_scale).masked_fill(lower_edge | upper_edge, 0)
    return above + below + width


def shifted_mean(mean: Tensor, coefficients: Tensor, x: Tensor, channel: int) -> Tensor:
    """Returns the component means of a channel, given the earlier channels of the same position.

    ``mean_1 + tanh(c_0) x_0`` for the second channel, ``mean_2 + tanh(c_1) x_0 + tanh(c_2) x_1`` for the third.

    Args:
        mean: ``[..., M]``, of this channel.
        coefficients: ``[..., C, M]``, of all channels.
        x: ``[..., >= channel]``: the earlier channels, in [-1, 1].
        channel: 0, 1 or 2.
    """
    for earlier in range(channel):
        row = channel * (channel - 1) // 2 + earlier
        mean = mean + torch.tanh(coefficients[..., row, :]) * x[..., earlier, None]
    return mean


def logistic_mixture(level: Tensor, parameters: Tensor, levels: int, min_log_scale: float) -> Tensor:
    """``log sum_m softmax(logits)_m prod_c P(level_c | means_cm shifted by the earlier channels, log_scales_cm)``.

    Args:
        level: integers ``[..., C]`` in 0 .. L-1, C = 1 or 3.
        parameters: ``[..., P]``: M logits, then for each channel M means, M log-scales and, where C = 3, M
            coefficients.
        levels: L.
        min_log_scale: smaller log-scales count as this.
    """
    channels = level.shape[-1]
    mixtures = mixtures_of(parameters.shape[-1], channels)
    blocks = parameters[..., mixtures:].unflatten(-1, (channels, BLOCKS[channels], mixtures))
    joint = parameters[..., :mixtures].log_softmax(-1)
    x = to_symmetric(level.to(parameters.dtype), levels)
    for channel in range(channels):
        mean = shifted_mean(blocks[..., channel, 0, :], blocks[..., -1, :], x, channel)
        log_scale = blocks[..., channel, 1, :].clamp(min=min_log_scale)
        joint = joint + discretized_logistic_log_prob(level[..., channel, None], mean, log_scale, levels)
    return joint.logsumexp(-1)


def _case(
    *shape: int, mixtures: int = 10, channels: int = 3, levels: int = 256, spread: float = 1.0, logits: float = 1.0
):
    def make(generator: torch.Generator) -> dict:
        level = torch.randint(0, levels, (*shape, channels), generator=generator)
        edges = torch.rand(level.shape, generator=generator)
        level = torch.where(edges < 0.1, 0, torch.where(edges > 0.9, levels - 1, level))
        raw = spread * torch.randn(*shape, mixtures * (1 + channels * BLOCKS[channels]), generator=generator)
        raw[..., :mixtures] *= logits / spread
        return {"level": level, "parameters": raw, "levels": levels}

    return make


CASES = {
    "small": _case(3, mixtures=2, levels=7),
    "small, one channel": _case(2, 2, mixtures=3, channels=1, levels=16),
    "small, one component": _case(3, mixtures=1, channels=1, levels=2),
    "none": _case(0, 3),
    "scalar": _case(),
    "one": _case(1, 1, mixtures=1),
    "prime": _case(13, 7, mixtures=5),
    "a vector and one": _case(17),
    "one channel": _case(127, channels=1),
    "two levels": _case(65, levels=2, channels=1),
    "many levels": _case(33, levels=65536, mixtures=3),
    "wide": _case(64, spread=5.0),
    "logits of 1e4": _case(64, logits=1e4),
}
