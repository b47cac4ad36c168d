"""Data of an interval as real numbers: the first layer of image flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.distributions.standard import standard_logistic_log_prob
from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.nn.value_checks import readable
from fastgen.ops.precision import in_float32


class Logit(FlowLayer):
    """``y = logit(alpha + (1 - 2 alpha) x)`` of x in [0, 1]: ``forward(x)``, ``inverse(y)`` return (y, log_det [N]).

    x is float [N, ...]; half precision is computed in float32, log_det is float32 or float64. ``inverse`` reaches a
    little beyond [0, 1], to ``-alpha / (1 - 2 alpha)`` on the left and as far on the right, and so ``forward`` takes
    what lies between these.

    Args:
        alpha: how far the ends of the interval are kept from 0 and 1, greater than 0 and less than 0.5; 0.05 is that of
            RealNVP and Flow++ for natural images.

    Raises:
        ValueError: alpha out of range; an x that no y has (seen on the CPU).

    Reference: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017, section 4.1.

    Example:
        >>> y, log_det = Logit()(torch.tensor([[0.0, 0.5, 1.0]]))
        >>> y
        tensor([[-2.9444,  0.0000,  2.9444]])
    """

    def __init__(self, alpha: float = 0.05) -> None:
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must be greater than 0 and less than 0.5, got {alpha}")
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (wide,) = in_float32(x)
        left, right = self._squeezed(wide), self._squeezed(1 - wide)
        if x.numel() and readable(x, inverse=False) and not (left.amin() > 0 and right.amin() > 0):
            least, most = (float(v) for v in x.detach().aminmax())
            beyond = self.alpha / (1 - 2 * self.alpha)
            raise ValueError(
                f"x must lie in [0, 1], or less than {beyond:g} beyond it, got numbers from {least:g} to {most:g}"
            )
        y = left.log() - right.log()
        return y.to(x.dtype), -self._inverse_log_det(y)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        (wide,) = in_float32(y)
        x = (torch.sigmoid(wide) - self.alpha) / (1 - 2 * self.alpha)
        return x.to(y.dtype), self._inverse_log_det(wide)

    def _squeezed(self, x: Tensor) -> Tensor:
        return self.alpha + (1 - 2 * self.alpha) * x

    def _inverse_log_det(self, y: Tensor) -> Tensor:
        return standard_logistic_log_prob(y) - y.shape[1:].numel() * math.log(1 - 2 * self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
