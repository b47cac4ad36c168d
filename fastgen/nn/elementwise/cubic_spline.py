"""Elementwise monotone cubic spline transform."""

from __future__ import annotations

import math

from fastgen.nn.elementwise.learned_spline import Spline
from fastgen.reference.cubic_spline import LEAST


class CubicSpline(Spline):
    """A monotone cubic spline on every element, its parameters learned or given.

    ``forward(x, parameters)`` maps x [N, *shape] to (y [N, *shape], log_det [N]); ``inverse`` maps back. Parameters
    [N, *shape, parameters_per_element] come from a conditioner, as a coupling or an autoregressive layer has it;
    without them the layer's own are used, which begin as the identity. ``fastgen.ops.cubic_spline`` has the formula,
    the tails and the errors raised.

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
        part = (1 / 3 - LEAST) / (1 - 2 * LEAST)  # of 3 times the slope
        super().__init__(
            shape,
            bins,
            tails,
            bound,
            math.log(part / (1 - part)),
            kind="cubic",
            min_width=min_width,
            min_height=min_height,
        )
