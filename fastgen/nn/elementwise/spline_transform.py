"""Elementwise splines whose parameters are given, as couplings and autoregressive layers use them."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.ops.arguments import check_integers
from fastgen.ops.cubic_spline import cubic_spline
from fastgen.ops.rq_spline import rq_spline
from fastgen.reference import cubic_spline as cubic
from fastgen.reference import rq_spline as rational_quadratic

KINDS = {
    "rational-quadratic": (rq_spline, rational_quadratic.parameters_of),
    "cubic": (cubic_spline, cubic.parameters_of),
}
"""The op of each kind of spline, and how many parameters an element has by the number of bins and of the tails."""


class SplineTransform(nn.Module):
    """A monotone spline on every element, its parameters given: ``forward(x, parameters)`` and ``inverse`` return
    (y [N, ...], log_det [N]).

    x is float [N, ...], parameters [N, ..., parameters_per_element], straight from a network. ``fastgen.ops.rq_spline``
    and ``fastgen.ops.cubic_spline`` have the formulas and the numbers of parameters.

    Args:
        bins: K.
        tails: "linear", the identity outside the interval; "bounded" or "circular", defined on the interval alone.
        bound: B for the interval [-B, B], or (left, right, bottom, top).
        kind: "rational-quadratic" or "cubic".
        least: ``min_width``, ``min_height`` and, of the rational-quadratic one, ``min_derivative``, as the op has them.

    Raises:
        ValueError: fewer than one bin, an unknown name; when it is called, numbers and shapes that the op refuses, and
            a value outside the interval of a spline without tails (where the op looks for one).

    References: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019, and "Cubic-spline flows",
    2019.

    Example:
        >>> import torch
        >>> spline = SplineTransform(bins=8, tails="bounded", bound=(0.0, 1.0, 0.0, 1.0))
        >>> y, log_det = spline(torch.rand(5, 3), torch.randn(5, 3, spline.parameters_per_element))
        >>> y.shape, log_det.shape, bool((0 <= y).all() & (y <= 1).all())
        (torch.Size([5, 3]), torch.Size([5]), True)
    """

    def __init__(
        self,
        bins: int = 8,
        tails: str = "linear",
        bound: float | tuple[float, float, float, float] = 3.0,
        *,
        kind: str = "rational-quadratic",
        **least: float,
    ) -> None:
        super().__init__()
        check_integers(bins=bins)
        for name, value, allowed in (("tails", tails, rational_quadratic.TAILS), ("kind", kind, KINDS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        self.op, parameters_of = KINDS[kind]
        self.parameters_per_element = parameters_of(bins, rational_quadratic.TAILS.index(tails))
        self.bins, self.tails, self.bound, self.kind, self.least = bins, tails, bound, kind, least

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.elementwise(x, parameters)
        return y, log_slope.flatten(1).sum(1)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = self.elementwise(y, parameters, inverse=True)
        return x, log_slope.flatten(1).sum(1)

    def elementwise(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """y and log |dy/dx|, each of x's shape."""
        return self.op(x, parameters, inverse=inverse, tails=self.tails, bound=self.bound, **self.least)

    def inside(self, inverse: bool) -> float:
        """A number that the spline, or its inverse, is defined at."""
        return 0.0 if isinstance(self.bound, (int, float)) else self.bound[2 if inverse else 0]

    def extra_repr(self) -> str:
        return f"{self.kind!r}, bins={self.bins}, tails={self.tails!r}, bound={self.bound}"
