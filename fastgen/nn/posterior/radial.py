"""The radial flow's layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.nn.posterior.amortized_flow import AmortizedFlow


class Radial(AmortizedFlow):
    """``y = x + beta (x - c) / (alpha + r)`` with r = |x - c|: ``forward(x)`` or ``forward(x, parameters)``, and
    ``inverse``, return (y or x [N, D], log_det [N]).

    With h = 1 / (alpha + r)::

        log_det = (D - 1) log(1 + beta h) + log(1 + alpha beta h^2)

    alpha = softplus(raw) > 0 and beta = softplus(raw) - alpha > -alpha, which makes the map one-to-one. ``inverse`` is
    in closed form, too: r is the positive root of a quadratic, of which no part cancels.

    Args:
        features: D.
        amortized: every call gives the parameters [N, parameter_size]: c [D], raw alpha, raw beta.

    Raises:
        ValueError: what ``AmortizedFlow`` refuses.

    Reference: Rezende, Mohamed, "Variational inference with normalizing flows", ICML 2015.

    Example:
        >>> encoder, layer = torch.nn.Linear(3, 6), Radial(4, amortized=True)
        >>> x, parameters = torch.randn(5, 4), encoder(torch.randn(5, 3))
        >>> y, log_det = layer(x, parameters)
        >>> torch.allclose(layer.inverse(y, parameters)[0], x, atol=1e-4)
        True
    """

    def __init__(self, features: int, *, amortized: bool = False) -> None:
        super().__init__(features, features + 2, amortized)
        self.begin()

    def initial(self) -> Tensor:
        raw = math.log(math.expm1(1.0)) + 0.01 * torch.randn(2)
        return torch.cat((torch.randn(self.features), raw))

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        center, alpha, total = self._constrained(parameters)
        away = x - center
        radius = torch.linalg.vector_norm(away, dim=1)
        stretch = (total + radius) / (alpha + radius)
        return center + away * stretch[:, None], self._log_det(radius, alpha, total)

    def inverse_transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        center, alpha, total = self._constrained(parameters)
        away = y - center
        image = torch.linalg.vector_norm(away, dim=1)
        half = (image - total) / 2
        wide = half.abs() + (half.square() + alpha * image).sqrt()
        radius = torch.where(half > 0, wide, alpha * image / wide)
        stretch = (total + radius) / (alpha + radius)
        return center + away / stretch[:, None], -self._log_det(radius, alpha, total)

    def _log_det(self, radius: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
        outer = alpha + radius
        along = (radius * (outer + alpha) + alpha * total) / outer.square()
        return (self.features - 1) * ((total + radius) / outer).log() + along.log()

    def _constrained(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The center [N or 1, D], alpha and alpha + beta [N or 1]."""
        center, alpha, total = parameters.split((self.features, 1, 1), 1)
        return center, F.softplus(alpha).squeeze(1), F.softplus(total).squeeze(1)
