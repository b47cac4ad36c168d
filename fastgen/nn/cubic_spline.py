"""Elementwise monotone cubic spline transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgen.ops.cubic_spline import TAILS, cubic_spline
from fastgen.reference.cubic_spline import LEAST


class CubicSpline(nn.Module):
    """A monotone cubic spline on every element, its parameters learned or given.

    ``forward(x, parameters)`` maps x [N, *shape] to (y [N, *shape], log_det [N]); ``inverse`` maps back. Parameters
    [N, *shape, 2 * bins + 2] come from a conditioner, as a coupling or an autoregressive layer has it; without them the
    layer's own are used, which begin as the identity. ``fastgen.ops.cubic_spline`` has the formula, the tails and the
    errors raised.

    Raises:
        ValueError: fewer than one bin, unknown tails, an x or parameters of another shape.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Cubic-spline flows", 2019.

    Example:
        >>> layer = CubicSpline((2,), bins=8)
        >>> y, log_det = layer(torch.randn(5, 2))
        >>> log_det.shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bins: int = 8,
        tails: str = "linear",
        bound: float = 3.0,
        *,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
    ) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins} must be at least 1")
        if tails not in TAILS:
            raise ValueError(f"tails is {tails!r}; it must be one of {', '.join(map(repr, TAILS))}")
        super().__init__()
        self.shape, self.bins, self.tails, self.bound = tuple(shape), bins, tails, bound
        self.least = {"min_width": min_width, "min_height": min_height}
        self.parameters_per_element = 2 * bins + 2
        own = torch.zeros(*self.shape, self.parameters_per_element)
        part = (1 / 3 - LEAST) / (1 - 2 * LEAST)
        own[..., 2 * bins :] = math.log(part / (1 - part))  # derivatives of 1: the identity
        self.raw = nn.Parameter(own)

    def forward(self, x: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, parameters, inverse=False)

    def inverse(self, y: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(y, parameters, inverse=True)

    def _transform(self, x: Tensor, parameters: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be [N, {', '.join(map(str, self.shape))}]")
        if parameters is None:
            parameters = self.raw.expand(len(x), *self.raw.shape)
        elif parameters.shape != (len(x), *self.raw.shape):
            wanted = (len(x), *self.raw.shape)
            raise ValueError(f"parameters has shape {tuple(parameters.shape)}; it must be {wanted}")
        y, log_det = cubic_spline(x, parameters, inverse=inverse, tails=self.tails, bound=self.bound, **self.least)
        return y, log_det.flatten(1).sum(1)

    def extra_repr(self) -> str:
        return f"{self.shape}, bins={self.bins}, tails={self.tails}, bound={self.bound}"
