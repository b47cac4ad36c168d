"""Elementwise rational-quadratic spline transform."""

from __future__ import annotations

import math

from fastgen.nn.elementwise.learned_spline import Spline


class RationalQuadraticSpline(Spline):
    """A monotone rational-quadratic spline on every element, its parameters learned or given.

    ``forward(x, parameters)`` maps x [N, *shape] to (y [N, *shape], log_det [N]); ``inverse`` maps back. Parameters
    [N, *shape, parameters_per_element] come from a conditioner, as a coupling or an autoregressive layer has it;
    without them the layer's own are used, which begin as the identity. ``fastgen.ops.rq_spline`` has the formula, the
    tails and the errors raised.

    Raises:
        ValueError: fewer than one bin, unknown tails, a least derivative that is not between 0 and 1, an x or
            parameters of another shape.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019.

    Example:
        >>> layer = RationalQuadraticSpline((2,), bins=8)
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
        min_derivative: float = 1e-3,
    ) -> None:
        if not 0 < min_derivative < 1:
            raise ValueError(f"min_derivative must be greater than 0 and less than 1, got {min_derivative}")
        least = {"min_width": min_width, "min_height": min_height, "min_derivative": min_derivative}
        super().__init__(
            shape, bins, tails, bound, math.log(math.expm1(1 - min_derivative)), kind="rational-quadratic", **least
        )
