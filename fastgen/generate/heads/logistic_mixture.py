"""The logistic head: a mixture of logistic densities over continuous values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.generate.heads.continuous_mixture import ContinuousMixture
from fastgen.generate.noise import Noise


class LogisticMixture(ContinuousMixture):
    """A mixture of M logistic densities a channel, channels drawn independently.

    ``p(x) = sum_m softmax(logits)_m e^-z_m / (scale_m (1 + e^-z_m)^2)`` with ``z_m = (x - mean_m) / scale_m``: the
    continuous distribution that ``DiscretizedLogisticMixture`` rounds to levels.

    Output layout: ``[N, C * 3M, *positions]``, channel by channel M logits, M means, M log-scales. Log-scales are
    clamped from below.

    A draw picks the component by the uniform of draw 0 and inverts its cdf at u, the uniform of draw 1: it takes
    ``mean + scale * temperature * log(u / (1 - u))``, rounded to float32 before anything uses it. The temperature also
    divides the logits.

    Args:
        mixtures: M.
        min_log_scale: the lower bound of log-scales.

    Raises:
        ValueError: ``mixtures`` is no integer of 1 or more, or ``min_log_scale`` is not finite.

    Example:
        >>> head = fastgen.heads.LogisticMixture(5)
        >>> head.log_prob(torch.randn(4, 30, 100), torch.randn(4, 2, 100)).shape
        torch.Size([4])
    """

    kind = "logistic_mixture"

    def __init__(self, mixtures: int, min_log_scale: float = -7.0) -> None:
        super().__init__(mixtures, min_log_scale)

    @property
    def parameters_per_group(self) -> int:
        return 3 * self.mixtures

    def standard_log_density(self, value: Tensor) -> Tensor:
        return F.logsigmoid(value) + F.logsigmoid(-value)

    def draw_standard(self, noise: Noise, groups: int) -> Tensor:
        uniform = torch.stack([noise.uniform(group, 1) for group in range(groups)], 1)
        return torch.log(uniform) - torch.log1p(-uniform)
