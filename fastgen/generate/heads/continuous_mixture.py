"""What heads of continuous values share: each channel is a mixture of densities of one family."""

from __future__ import annotations

import math
from abc import abstractmethod

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
from fastgen.generate.noise import Noise


class ContinuousMixture(Head):
    """A mixture of M densities a channel, channels drawn independently.

    ``p(x) = sum_m softmax(logits)_m f((x - mean_m) / scale_m) / scale_m``, where the family says which density f is. A
    draw picks the component by the uniform of draw 0, then takes ``mean + scale * temperature * z``, with z from f; the
    value is rounded to float32 before anything uses it.
    """

    def __init__(self, mixtures: int, min_log_scale: float) -> None:
        super().__init__(0, "index")
        self.mixtures = check_count("mixtures", mixtures, 1)
        self.min_log_scale = check_min_log_scale(min_log_scale)

    @abstractmethod
    def standard_log_density(self, value: Tensor) -> Tensor:
        """Returns log f of each value."""

    @abstractmethod
    def draw_standard(self, noise: Noise, groups: int) -> Tensor:
        """Returns float64 ``[B, G]`` from f, for the channels 0 .. G - 1 of the noise."""

    def config(self) -> dict:
        return {"mixtures": self.mixtures, "min_log_scale": self.min_log_scale}

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits, means and clamped log-scales, ``[..., M]`` each."""
        logits, mean, log_scale = parameters.split(self.mixtures, -1)
        return logits, mean, log_scale.clamp(min=self.min_log_scale)

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        return self._log_density(*self.split(parameters), levels.to(parameters.dtype))

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logits, mean, log_scale = self.split(parameters)
        check_distribution(logits.amax(-1, keepdim=True), noise.position)
        logits, log_scale = logits / options.temperature, log_scale + math.log(options.temperature)
        groups = parameters.shape[1]
        pick = torch.stack([noise.uniform(group, 0) for group in range(groups)], 1)
        component = inverse_cdf(torch.exp(logits - logits.amax(-1, keepdim=True)), pick)[..., None]
        standard = self.draw_standard(noise, groups)[..., None]
        value = mean.gather(-1, component) + log_scale.gather(-1, component).exp() * standard
        chosen = torch.where(known, levels, value).float().double()
        check_values(chosen, noise.position)
        proposal = self._log_density(logits, mean, log_scale, chosen).masked_fill(known.squeeze(-1), 0)
        return chosen, None, proposal.sum(-1)

    def _log_density(self, logits: Tensor, mean: Tensor, log_scale: Tensor, value: Tensor) -> Tensor:
        joint = logits + self.standard_log_density((value - mean) * torch.exp(-log_scale)) - log_scale
        return torch.logsumexp(joint, -1) - torch.logsumexp(logits, -1)


def check_values(values: Tensor, position: int) -> None:
    """Raises ValueError unless all drawn values are finite."""
    if not values.isfinite().all():
        raise ValueError(f"the network's output at position {position} makes no distribution")


def draw_normal(noise: Noise, channels: list[int]) -> Tensor:
    """Returns float64 ``[B, len(channels)]``: ``sqrt(-2 log u1) cos(2 pi u2)``, the uniforms of draws 1 and 2."""
    radius, angle = (torch.stack([noise.uniform(channel, draw) for channel in channels], 1) for draw in (1, 2))
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)


def normal_log_density(value: Tensor) -> Tensor:
    """Returns the log-density of the standard normal distribution."""
    return -0.5 * value**2 - 0.5 * math.log(2 * math.pi)
