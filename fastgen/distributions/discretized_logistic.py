"""The discretized logistic distribution, and mixtures of it with autoregressive channels (PixelCNN++)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def to_symmetric(level: Tensor, levels: int) -> Tensor:
    """Level 0 .. L-1 to the grid -1 .. 1: ``2 level / (L-1) - 1``."""
    return level * 2 / (levels - 1) - 1


def to_level(x: Tensor, levels: int) -> Tensor:
    """The nearest level (halves to even) of a value in [-1, 1]."""
    return torch.round((x + 1) / 2 * (levels - 1))


def _log1mexp(log_d: Tensor) -> Tensor:
    """``log(1 - exp(-d))`` of ``log d``; below d = 1e-3 by ``log d - d/2 + d**2/24``, right to 1e-15 there."""
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
    """The component means of a channel, given the earlier channels of the same position.

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


def discretized_logistic_mixture_log_prob(
    logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor | None, level: Tensor, levels: int
) -> Tensor:
    """Log-probability of the C levels of a position under a mixture that its channels share.

    ``log sum_m softmax(logits)_m prod_c P(level_c | means_cm shifted by the earlier channels, log_scales_cm)``;
    Salimans et al., "PixelCNN++" (2017).

    Args:
        logits: ``[..., M]``.
        means, log_scales: ``[..., C, M]``.
        coefficients: ``[..., C, M]`` before their tanh, or None for C = 1.
        level: integers ``[..., C]``.
        levels: L.

    Returns:
        ``[...]``, of the dtype of the parameters.
    """
    x = to_symmetric(level.to(means.dtype), levels)
    joint = logits
    for channel in range(level.shape[-1]):
        mean = means[..., channel, :]
        if coefficients is not None:
            mean = shifted_mean(mean, coefficients, x, channel)
        log_scale = log_scales[..., channel, :]
        joint = joint + discretized_logistic_log_prob(level[..., channel, None], mean, log_scale, levels)
    return torch.logsumexp(joint, -1) - torch.logsumexp(logits, -1)
