"""Log-densities of the standard distributions that flows end in."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.precision import in_float32


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """``-(|z|^2 + D log 2 pi) / 2`` of float z [N, ...] with D numbers each: [N], float32 or float64.

    Example:
        >>> standard_normal_log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """
    (z,) = in_float32(z.flatten(1))
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


def standard_logistic_log_prob(z: Tensor) -> Tensor:
    """``sum log sigmoid(z) sigmoid(-z)`` of float z [N, ...]: [N], float32 or float64.

    It is the log-determinant of the sigmoid, too.

    Example:
        >>> standard_logistic_log_prob(torch.zeros(1, 2))
        tensor([-2.7726])
    """
    (z,) = in_float32(z.flatten(1))
    return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(1)
