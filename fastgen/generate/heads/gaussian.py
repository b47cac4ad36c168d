"""The Gaussian head: a normal distribution, or a mixture of them, over continuous values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.generate.heads.continuous_mixture import ContinuousMixture, draw_normal, normal_log_density
from fastgen.generate.noise import Noise


class Gaussian(ContinuousMixture):
    """A mixture of M normal densities a channel, channels drawn independently.

    Output layouts: ``[N, C * 2, *positions]`` for M = 1 (channel by channel: mean, log-scale) and ``[N, C * 3M,
    *positions]`` else (M logits, M means, M log-scales). Log-scales are logarithms of standard deviations, clamped from
    below.

    A draw picks the component by the uniform of draw 0 and adds ``scale * temperature * sqrt(-2 log u1) cos(2 pi u2)``,
    the uniforms of draws 1 and 2 (Box & Muller, 1958); the value is rounded to float32 before anything uses it.

    Args:
        mixtures: M.
        min_log_scale: the lower bound of log-scales.

    Raises:
        ValueError: ``mixtures`` is no integer of 1 or more, or ``min_log_scale`` is not finite.

    Example:
        >>> head = fastgen.heads.Gaussian(5)
        >>> head.log_prob(torch.randn(4, 15, 100), torch.randn(4, 100)).shape
        torch.Size([4])
    """

    kind = "gaussian"

    def __init__(self, mixtures: int = 1, min_log_scale: float = -7.0) -> None:
        super().__init__(mixtures, min_log_scale)

    @property
    def parameters_per_group(self) -> int:
        return 2 if self.mixtures == 1 else 3 * self.mixtures

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.mixtures > 1:
            return super().split(parameters)
        mean, log_scale = parameters.split(1, -1)
        return torch.zeros_like(mean), mean, log_scale.clamp(min=self.min_log_scale)

    def standard_log_density(self, value: Tensor) -> Tensor:
        return normal_log_density(value)

    def draw_standard(self, noise: Noise, groups: int) -> Tensor:
        return draw_normal(noise, list(range(groups)))
