"""The head of online handwriting: a mixture of correlated Gaussians over two channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.generate.heads.base import (
    DrawOptions,
    Head,
    check_count,
    check_distribution,
    check_min_log_scale,
    inverse_cdf,
)
from fastgen.generate.heads.continuous_mixture import check_values, draw_normal, normal_log_density
from fastgen.generate.noise import Noise

_MOST_ARCTANH = 7.0
"""Of correlations: 1 - 1.7e-6 at most."""


class BivariateGaussianMixture(Head):
    """A mixture of M bivariate normal densities over two channels; Graves, "Generating Sequences With Recurrent Neural
    Networks" (2013), section 4.1.

    ``p(x, y) = sum_m softmax(logits)_m N((x, y); mean_m, scale_m, correlation_m)`` with ``correlation = tanh(r)``; r is
    clamped to [-7, 7], and log-scales are clamped from below. Pairs of channels, where an event has more than two, are
    drawn independently.

    Output layout: ``[N, C / 2 * 6M, *positions]``, pair by pair in blocks of M: logits, means of x, means of y,
    log-scales of x, log-scales of y, r.

    A draw picks the component by the uniform of draw 0 and adds ``scale * temperature * sqrt(-2 log u1) cos(2 pi u2)``
    to x's mean, the uniforms of draws 1 and 2; then y alike, of that component given x, by the uniforms of y's channel.
    Both are rounded to float32 before anything uses them. The temperature also divides the logits. Where x is known,
    y's component is drawn afresh, given x: the exact conditional.

    Args:
        mixtures: M.
        min_log_scale: the lower bound of log-scales.

    Raises:
        ValueError: ``mixtures`` is no integer of 1 or more, or ``min_log_scale`` is not finite.

    Example:
        >>> head = fastgen.heads.BivariateGaussianMixture(20)
        >>> head.log_prob(torch.randn(4, 120, 100), torch.randn(4, 2, 100)).shape
        torch.Size([4])
    """

    kind = "bivariate_gaussian_mixture"
    coupled = 2

    def __init__(self, mixtures: int, min_log_scale: float = -7.0) -> None:
        super().__init__(0, "index")
        self.mixtures = check_count("mixtures", mixtures, 1)
        self.min_log_scale = check_min_log_scale(min_log_scale)

    @property
    def parameters_per_group(self) -> int:
        return 6 * self.mixtures

    def config(self) -> dict:
        return {"mixtures": self.mixtures, "min_log_scale": self.min_log_scale}

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns logits ``[..., M]``, means and clamped log-scales ``[..., 2, M]``, and clamped r ``[..., M]``."""
        blocks = parameters.unflatten(-1, (6, self.mixtures))
        log_scales = blocks[..., 3:5, :].clamp(min=self.min_log_scale)
        r = blocks[..., 5, :].clamp(-_MOST_ARCTANH, _MOST_ARCTANH)
        return blocks[..., 0, :], blocks[..., 1:3, :], log_scales, r

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        logits, means, log_scales, r = self._split(parameters)
        values, joint = levels.to(parameters.dtype), logits
        for channel in range(2):
            joint = joint + _log_density(*_given_earlier(channel, means, log_scales, r, values), values[..., channel])
        return torch.logsumexp(joint, -1) - torch.logsumexp(logits, -1)

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logits, means, log_scales, r = self._split(parameters)
        check_distribution(logits.amax(-1), noise.position)
        weights, log_scales = logits / options.temperature, log_scales + math.log(options.temperature)
        component = torch.zeros_like(weights[..., 0], dtype=torch.int64)
        chosen, proposal = levels.clone(), torch.zeros_like(weights[..., 0])
        for channel in range(2):
            channels = [2 * group + channel for group in range(parameters.shape[1])]
            pick = torch.stack([noise.uniform(c, 0) for c in channels], 1)
            drawn = inverse_cdf(torch.exp(weights - weights.amax(-1, keepdim=True)), pick)
            component = torch.where(known[..., 0], drawn, component) if channel else drawn
            mean, log_scale = _given_earlier(channel, means, log_scales, r, chosen)
            at = component[..., None]
            scale = log_scale.gather(-1, at)[..., 0].exp()
            value = mean.gather(-1, at)[..., 0] + scale * draw_normal(noise, channels)
            chosen[..., channel] = torch.where(known[..., channel], chosen[..., channel], value).float().double()
            check_values(chosen[..., channel], noise.position)
            after = weights + _log_density(mean, log_scale, chosen[..., channel])
            gained = torch.logsumexp(after, -1) - torch.logsumexp(weights, -1)
            proposal = proposal + gained.masked_fill(known[..., channel], 0)
            weights = after
        return chosen, None, proposal.sum(-1)


def _given_earlier(channel: int, means: Tensor, log_scales: Tensor, r: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and log-scale ``[..., M]`` of x, or of y given x, in each component; ``values`` is ``[..., 2]``."""
    mean, log_scale = means[..., channel, :], log_scales[..., channel, :]
    if channel == 0:
        return mean, log_scale
    x = (values[..., 0, None] - means[..., 0, :]) * torch.exp(-log_scales[..., 0, :])
    return mean + log_scale.exp() * torch.tanh(r) * x, log_scale - torch.log(torch.cosh(r))


def _log_density(mean: Tensor, log_scale: Tensor, value: Tensor) -> Tensor:
    return normal_log_density((value[..., None] - mean) * torch.exp(-log_scale)) - log_scale
