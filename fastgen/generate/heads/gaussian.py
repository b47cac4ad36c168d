"""The Gaussian head: a normal distribution, or a mixture of them, over continuous values."""

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
from fastgen.generate.noise import Noise


class Gaussian(Head):
    """A mixture of M normal densities a channel, channels drawn independently.

    Output layouts: ``[N, C * 2, *positions]`` for M = 1 (channel by channel: mean, log-scale) and ``[N, C * 3M,
    *positions]`` else (M logits, M means, M log-scales). Log-scales are logarithms of standard deviations, clamped from
    below.

    A draw picks the component by the uniform of draw 0 and adds ``scale * temperature * sqrt(-2 log u1) cos(2 pi u2)``,
    the uniforms of draws 1 and 2 (Box & Muller, 1958); the value is rounded to float32 before anything uses it.

    Args:
        mixtures: M.
        min_log_scale: the lower bound of log-scales.
    """

    kind = "gaussian"

    def __init__(self, mixtures: int = 1, min_log_scale: float = -7.0) -> None:
        super().__init__(0, "index")
        self.mixtures = check_count("mixtures", mixtures, 1)
        self.min_log_scale = check_min_log_scale(min_log_scale)

    @property
    def parameters_per_group(self) -> int:
        return 2 if self.mixtures == 1 else 3 * self.mixtures

    def config(self) -> dict:
        return {"mixtures": self.mixtures, "min_log_scale": self.min_log_scale}

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and clamped log-scales, ``[..., M]`` each."""
        if self.mixtures == 1:
            mean, log_scale = parameters.split(1, -1)
            logits = torch.zeros_like(mean)
        else:
            logits, mean, log_scale = parameters.split(self.mixtures, -1)
        return logits, mean, log_scale.clamp(min=self.min_log_scale)

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        return _log_density(*self._split(parameters), levels.to(parameters.dtype))

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        logits, mean, log_scale = self._split(parameters)
        top = logits.amax(-1, keepdim=True)
        check_distribution(top, noise.position)
        logits, log_scale = logits / options.temperature, log_scale + math.log(options.temperature)
        groups = range(parameters.shape[1])
        pick, radius, angle = (torch.stack([noise.uniform(g, draw) for g in groups], 1) for draw in range(3))
        component = inverse_cdf(torch.exp(logits - logits.amax(-1, keepdim=True)), pick)[..., None]
        normal = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
        value = mean.gather(-1, component) + log_scale.gather(-1, component).exp() * normal[..., None]
        chosen = torch.where(known, levels, value).float().double()
        if not chosen.isfinite().all():
            raise ValueError(f"the network's output at position {noise.position} makes no distribution")
        proposal = _log_density(logits, mean, log_scale, chosen).masked_fill(known.squeeze(-1), 0)
        return chosen, None, proposal.sum(-1)


def _log_density(logits: Tensor, mean: Tensor, log_scale: Tensor, value: Tensor) -> Tensor:
    standard = (value - mean) * torch.exp(-log_scale)
    joint = logits - 0.5 * standard**2 - log_scale - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(joint, -1) - torch.logsumexp(logits, -1)
