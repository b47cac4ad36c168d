"""Monotone cubic splines from raw network outputs: forward, inverse, log-determinant."""

from __future__ import annotations

from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, leading
from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.ops.spline import NUMBERS, checked_numbers, fake, fake_backward
from fastgen.reference import cubic_spline as reference

OP = Op(f"cubic_spline(Tensor x, Tensor parameters, {NUMBERS}) -> (Tensor, Tensor)", reference.cubic_spline, fake)
BACKWARD = Op(
    f"cubic_spline_backward(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, {NUMBERS})"
    " -> (Tensor, Tensor)",
    backward_of(reference.cubic_spline, 2),
    fake_backward,
    part_of="cubic_spline",
)
_call = differentiable(OP, BACKWARD, leading)


def cubic_spline(
    x: Tensor,
    parameters: Tensor,
    *,
    inverse: bool = False,
    tails: str = "linear",
    bound: float | tuple[float, float, float, float] = 3.0,
    min_width: float = 1e-3,
    min_height: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Monotone cubic spline, elementwise, with its log-derivative, in one pass.

    On bin k of width w, height h, slope s = h / w, derivatives d0 and d1 at its ends, with t = (x - x_k) / w::

        y = y_k + h t^2 (3 - 2 t) + w t (1 - t) (d0 (1 - t) - d1 t)

    Widths are ``min_width + (1 - K min_width) softmax(raw)`` of the interval, heights likewise. The derivative between
    two bins is Steffen's, ``min(2 s0, 2 s1, (w1 s0 + w0 s1) / (w0 + w1))``; at the two ends it is
    ``3 s (1e-6 + (1 - 2e-6) sigmoid(raw))``, never quite 0. The public implementations leave the 1e-6 out; nothing
    else differs. On a circle both ends are one point between the last bin and the first, and Steffen's derivative there
    needs no parameters.

    The inverse is found in its bin to the last bits, by Halley steps that cannot leave a bracket, so nothing fails for
    raw parameters of any finite size. What is inside the interval stays there. In float32, on [-B, B], y is within
    16 eps B of the exact value at an argument within 16 eps B of the one given, forward and inverse.

    Args:
        x: float [...]. float16 and bfloat16 are computed in float32 (autocast included).
        parameters: float [..., P], straight from a network: K widths, K heights, and the derivatives at both ends. P is
            2 K + 2 for linear tails and for a bounded spline, 2 K for a circular one, which has no ends.
        inverse: y to x, with the log-derivative of that.
        tails: "linear", the identity outside the interval, joined without a gap but in general with a bend; "bounded",
            defined on the interval alone; "circular", likewise, with equal derivatives at both ends.
        bound: B for the interval [-B, B], or (left, right, bottom, top); finite.
        min_width, min_height: as parts of the interval, greater than 0; K times each is less than 1.

    Returns:
        y [...] of x's dtype, and log |dy/dx| [...], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: x and parameters are not floating point.
        ValueError: shapes or numbers that do not fit; a value outside the interval of a spline without tails. On a GPU
            and under ``torch.compile`` and ``torch.func`` such values are not looked for, and stay what they are.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Cubic-spline flows", 2019.

    Example:
        >>> x, raw = torch.randn(5, 2), torch.randn(5, 2, 2 * 8 + 2)
        >>> y, log_det = cubic_spline(x, raw)
        >>> back, _ = cubic_spline(y, raw, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4)
        True
    """
    numbers = checked_numbers(
        x, parameters, inverse, tails, bound, min_width, min_height, reference.bins_of, least_may_be_zero=False
    )
    y, log_det = _call(*in_float32(x, parameters), *numbers)
    return y.to(x.dtype), log_det
