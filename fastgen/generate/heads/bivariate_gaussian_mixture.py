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
        standard = (levels.to(parameters.dtype)[..., None] - means) * torch.exp(-log_scales)
        joint = logits
        for channel in range(2):
            shift, log_spread = _given_x(channel, standard[..., 0, :], r)
            joint = joint + _log_density(standard[..., channel, :], shift, log_spread) - log_scales[..., channel, :]
        return torch.logsumexp(joint, -1) - torch.logsumexp(logits, -1)

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logits, means, log_scales, r = self._split(parameters)
        check_distribution(logits.amax(-1), noise.position)
        weights, log_scales = logits / options.temperature, log_scales + math.log(options.temperature)
        component = torch.zeros_like(weights[..., 0], dtype=torch.int64)
        chosen, proposal = levels.clone(), torch.zeros_like(weights[..., 0])
        x = torch.zeros_like(weights)
        for channel in range(2):
            channels = [2 * group + channel for group in range(parameters.shape[1])]
            pick = torch.stack([noise.uniform(c, 0) for c in channels], 1)
            drawn = inverse_cdf(torch.exp(weights - weights.amax(-1, keepdim=True)), pick)
            component = torch.where(known[..., 0], drawn, component) if channel else drawn
            shift, log_spread = _given_x(channel, x, r)
            mean, log_scale = means[..., channel, :], log_scales[..., channel, :]
            of_component = (v.gather(-1, component[..., None])[..., 0] for v in (mean, log_scale, shift, log_spread))
            at, log_unit, shifted, log_width = of_component
            value = at + log_unit.exp() * (shifted + log_width.exp() * draw_normal(noise, channels))
            kept = known[..., channel]
            chosen[..., channel] = torch.where(kept, chosen[..., channel], value).float().double()
            check_values(chosen[..., channel], noise.position)
            standard = (chosen[..., channel, None] - mean) * torch.exp(-log_scale)
            after = weights + _log_density(standard, shift, log_spread) - log_scale
            gained = torch.logsumexp(after, -1) - torch.logsumexp(weights, -1)
            proposal = proposal + gained.masked_fill(kept, 0)
            weights, x = after, standard
        return chosen, None, proposal.sum(-1)


def _given_x(channel: int, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and log-scale of the standardised x, or y given the standardised x, in each component."""
    if channel == 0:
        return torch.zeros_like(r), torch.zeros_like(r)
    return torch.tanh(r) * x, -torch.log(torch.cosh(r))


def _log_density(standard: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return normal_log_density((standard - mean) * torch.exp(-log_scale)) - log_scale
