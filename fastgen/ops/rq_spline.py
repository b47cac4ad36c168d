"""Monotone rational-quadratic splines from raw network outputs: forward, inverse, log-determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, leading
from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import rq_spline as reference
from fastgen.reference.rq_spline import TAILS, bins_of

_NUMBERS = (
    "bool inverse, int tails, float left, float right, float bottom, float top, "
    "float min_width, float min_height, float min_derivative"
)


def _fake(x: Tensor, parameters: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_backward(grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), parameters.new_empty(parameters.shape)


OP = Op(f"rq_spline(Tensor x, Tensor parameters, {_NUMBERS}) -> (Tensor, Tensor)", reference.rq_spline, _fake)
BACKWARD = Op(
    f"rq_spline_backward(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, {_NUMBERS})"
    " -> (Tensor, Tensor)",
    backward_of(reference.rq_spline, 2),
    _fake_backward,
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
    Newton step. Nothing overflows for raw parameters of any finite size.

    Args:
        x: float [...]. float16 and bfloat16 are computed in float32 (autocast included).
        parameters: float [..., P], straight from a network: K widths, K heights, and derivatives. P is 3 K - 1 for
            linear tails, 3 K + 1 for a bounded spline, 3 K for a circular one.
        inverse: y to x, with the log-derivative of that.
        tails: "linear", the identity outside the interval, joined with derivative 1; "bounded", defined on the interval
            alone; "circular", likewise, with equal derivatives at both ends.
        bound: B for the interval [-B, B], or (left, right, bottom, top).
        min_width, min_height: as parts of the interval; K times each is less than 1.
        min_derivative: greater than 0.

    Returns:
        y [...] of x's dtype, and log |dy/dx| [...], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: x and parameters are not floating point.
        ValueError: shapes or numbers that do not fit; a value outside the interval of a spline without tails.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019.

    Example:
        >>> x, raw = torch.randn(5, 2), torch.randn(5, 2, 3 * 8 - 1)
        >>> y, log_det = rq_spline(x, raw)
        >>> back, _ = rq_spline(y, raw, inverse=True)
        >>> torch.allclose(back, x, atol=1e-5)
        True
    """
    if tails not in TAILS:
        raise ValueError(f"tails is {tails!r}; it must be one of {', '.join(map(repr, TAILS))}")
    for name, tensor in (("x", x), ("parameters", parameters)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; it must be floating point")
    if parameters.shape[:-1] != x.shape:
        raise ValueError(
            f"parameters has shape {tuple(parameters.shape)}; it must be {tuple(x.shape)}, the shape of x, and one "
            "dimension more"
        )
    number = TAILS.index(tails)
    bins = bins_of(parameters.shape[-1], number)
    left, right, bottom, top = (-bound, bound, -bound, bound) if isinstance(bound, (int, float)) else bound
    if not (left < right and bottom < top):
        raise ValueError(f"bound is {bound}; left < right and bottom < top must hold")
    if tails == "linear" and (left, right) != (bottom, top):
        raise ValueError(f"bound is {bound}; with linear tails (left, right) must equal (bottom, top)")
    for name, least in (("min_width", min_width), ("min_height", min_height)):
        if not 0 <= least * bins < 1:
            raise ValueError(f"{name} is {least}; it must be at least 0 and less than 1 / {bins}")
    if not min_derivative > 0:
        raise ValueError(f"min_derivative is {min_derivative}; it must be greater than 0")
    if tails != "linear" and not torch.compiler.is_compiling() and not torch._C._functorch.maybe_current_level():
        _check_inside(x, *((bottom, top) if inverse else (left, right)))
    numbers = (inverse, number, left, right, bottom, top, min_width, min_height, min_derivative)
    dtype = x.dtype
    y, log_det = _call(*in_float32(x, parameters), *map(_plain, numbers))
    return y.to(dtype), log_det


def _plain(number: float) -> float:
    return number if isinstance(number, (bool, int)) else float(number)


def _check_inside(x: Tensor, low: float, high: float) -> None:
    if x.numel() and bool(((x < low) | (x > high)).any()):
        least, most = (float(v) for v in x.detach().aminmax())
        raise ValueError(f"x reaches from {least} to {most}; a spline without tails is defined on {low} to {high}")
