"""The discretized logistic distribution, and mixtures of it with autoregressive channels (PixelCNN++)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.logistic_mixture import LEAST_LOG_SCALE, logistic_mixture
from fastgen.reference.logistic_mixture import discretized_logistic_log_prob, shifted_mean, to_symmetric

__all__ = [
    "discretized_logistic_log_prob",
    "discretized_logistic_mixture_log_prob",
    "shifted_mean",
    "to_level",
    "to_symmetric",
]


def to_level(x: Tensor, levels: int) -> Tensor:
    """The nearest level (halves to even) of a value in [-1, 1]."""
    return torch.round((x + 1) / 2 * (levels - 1))


def discretized_logistic_mixture_log_prob(
    logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor | None, level: Tensor, levels: int
) -> Tensor:
    """Log-probability of the C levels of a position under a mixture that its channels share.

    ``log sum_m softmax(logits)_m prod_c P(level_c | means_cm shifted by the earlier channels, log_scales_cm)``;
    Salimans et al., "PixelCNN++" (2017). Of parameters that lie together as a network puts them out,
    ``fastgen.ops.logistic_mixture`` computes it in one pass.

    Args:
        logits: ``[..., M]``.
        means, log_scales: ``[..., C, M]``, C = 1 or 3; log-scales under -60 count as -60.
        coefficients: ``[..., C, M]`` before their tanh, or None for channels that are independent given the component.
        level: integers ``[..., C]``.
        levels: L.

    Returns:
        ``[...]``, of the dtype of the parameters.
    """
    if coefficients is None and level.shape[-1] > 1:
        coefficients = torch.zeros_like(means)
    blocks = torch.broadcast_tensors(*(b for b in (means, log_scales, coefficients) if b is not None))
    of_channels = torch.stack(blocks, -2).flatten(-3)
    shape = torch.broadcast_shapes(logits.shape[:-1], of_channels.shape[:-1])
    parameters = torch.cat([part.expand(*shape, part.shape[-1]) for part in (logits, of_channels)], -1)
    value = logistic_mixture(level, parameters, levels=levels, min_log_scale=LEAST_LOG_SCALE)
    return value.to(parameters.dtype)
