"""The planar flow's layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.nn.elementwise.monotone_inverse import monotone_inverse
from fastgen.nn.posterior.amortized_flow import AmortizedFlow


class Planar(AmortizedFlow):
    """``y = x + u tanh(w.x + b)``: ``forward(x)`` or ``forward(x, parameters)``, and ``inverse``, return (y or x
    [N, D], log_det [N]).

    ``log_det = log(1 + w.u tanh'(w.x + b))``. The raw u is moved along w so that ``w.u = softplus(w.raw) - 1`` exceeds
    -1, which makes the map one-to-one. ``inverse`` finds a = w.x, the root of the increasing
    ``a + w.u tanh(a + b) = w.y``, to the precision of the dtype; both directions have gradients.

    Args:
        features: D.
        amortized: every call gives the parameters [N, parameter_size]: w [D], raw u [D], b.

    Raises:
        ValueError: what ``AmortizedFlow`` refuses.

    Reference: Rezende, Mohamed, "Variational inference with normalizing flows", ICML 2015.

    Example:
        >>> encoder, layer = torch.nn.Linear(3, 9), Planar(4, amortized=True)
        >>> x, parameters = torch.randn(5, 4), encoder(torch.randn(5, 3))
        >>> y, log_det = layer(x, parameters)
        >>> torch.allclose(layer.inverse(y, parameters)[0], x, atol=1e-4)
        True
    """

    def __init__(self, features: int, *, amortized: bool = False) -> None:
        super().__init__(features, 2 * features + 1, amortized)
        self.begin()

    def initial(self) -> Tensor:
        direction, shift = torch.randn(self.features) / self.features**0.5, 0.01 * torch.randn(self.features)
        return torch.cat((direction, shift, torch.zeros(1)))

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        w, u, slope, b = self._constrained(parameters)
        t = ((w * x).sum(1) + b).tanh()
        return x + u * t[:, None], tanh_log_slope(t, slope)

    def inverse_transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        w, u, slope, b = self._constrained(parameters)
        scale = slope - 1
        projection, log_slope = monotone_inverse(
            lambda a: tanh_map(a, scale, 1.0, b, slope), (w * y).sum(1), reach=scale.abs()
        )
        return y - u * (projection + b).tanh()[:, None], log_slope

    def _constrained(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w and u [N or 1, D], 1 + w.u and b [N or 1]; of w = 0, u is the raw one."""
        w, raw, b = parameters.split((self.features, self.features, 1), 1)
        found = (w * raw).sum(1)
        square = w.square().sum(1)
        zero = square == 0
        wanted = F.softplus(found)
        along = (wanted - 1 - found) / square.masked_fill(zero, 1)
        u = raw + along.masked_fill(zero, 0)[:, None] * w
        return w, u, wanted.masked_fill(zero, 1), b.squeeze(1)


def tanh_map(
    a: Tensor, scale: Tensor, inner: Tensor | float, offset: Tensor, least_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """``f(a) = a + scale tanh(inner a + offset)`` and log f'(a), where ``least_slope`` is 1 + scale inner > 0."""
    t = (inner * a + offset).tanh()
    return a + scale * t, tanh_log_slope(t, least_slope)


def tanh_log_slope(t: Tensor, least_slope: Tensor) -> Tensor:
    """log f' where the tanh is t: of two positive terms, so that nothing cancels."""
    return (t.square() + least_slope * (1 - t) * (1 + t)).log()
