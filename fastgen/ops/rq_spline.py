"""Monotone rational-quadratic splines from raw network outputs: forward, inverse, log-determinant."""

from __future__ import annotations

import math

from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, leading
from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.ops.spline import NUMBERS, checked_numbers, fake, fake_backward
from fastgen.reference import rq_spline as reference

_NUMBERS = f"{NUMBERS}, float min_derivative"
OP = Op(f"rq_spline(Tensor x, Tensor parameters, {_NUMBERS}) -> (Tensor, Tensor)", reference.rq_spline, fake)
BACKWARD = Op(
    f"rq_spline_backward(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, {_NUMBERS})"
    " -> (Tensor, Tensor)",
    backward_of(reference.rq_spline, 2),
    fake_backward,
    part_of="rq_spline",
)
_call = differentiable(OP, BACKWARD, leading)


def rq_spline(
    x: Tensor,
    parameters: Tensor,
    *,
    inverse: bool = False,
    tails: str = "linear",
    bound: float | tuple[float, float, float, float] = 3.0,
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Monotone rational-quadratic spline, elementwise, with its log-derivative, in one pass.

    On bin k of width w, height h, slope s = h / w, derivatives d0 and d1 at its ends, with t = (x - x_k) / w::

        y = y_k + h (s t^2 + d0 t (1 - t)) / (s + (d0 + d1 - 2 s) t (1 - t))

    Widths are ``min_width + (1 - K min_width) softmax(raw)`` of the interval, heights likewise, derivatives
    ``min_derivative + softplus(raw)``. The inverse takes the stable root of the bin's quadratic and polishes it with a
    Newton step. Nothing overflows for raw parameters up to 1e18 in magnitude.

    Args:
        x: float [...]. float16 and bfloat16 are computed in float32 (autocast included).
        parameters: float [..., P], straight from a network: K widths, K heights, and derivatives. P is 3 K - 1 for
            linear tails, 3 K + 1 for a bounded spline, 3 K for a circular one.
        inverse: y to x, with the log-derivative of that.
        tails: "linear", the identity outside the interval, joined with derivative 1; "bounded", defined on the interval
            alone; "circular", likewise, with equal derivatives at both ends.
        bound: B for the interval [-B, B], or (left, right, bottom, top); finite.
        min_width, min_height: as parts of the interval; K times each is less than 1.
        min_derivative: finite, greater than 0.

    Returns:
        y [...] of x's dtype, and log |dy/dx| [...], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: x and parameters are not floating point.
        ValueError: shapes or numbers that do not fit; a value outside the interval of a spline without tails. On a GPU
            and under ``torch.compile`` and ``torch.func`` such values are not looked for, and stay what they are.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019.

    Example:
        >>> x, raw = torch.randn(5, 2), torch.randn(5, 2, 3 * 8 - 1)
        >>> y, log_det = rq_spline(x, raw)
        >>> back, _ = rq_spline(y, raw, inverse=True)
        >>> torch.allclose(back, x, atol=1e-5)
        True
    """
    if not 0 < min_derivative < math.inf:
        raise ValueError(f"min_derivative must be finite and greater than 0, got {min_derivative}")
    numbers = checked_numbers(
        x, parameters, inverse, tails, bound, min_width, min_height, reference.bins_of, least_may_be_zero=True
    )
    y, log_det = _call(*in_float32(x, parameters), *numbers, float(min_derivative))
    return y.to(x.dtype), log_det
