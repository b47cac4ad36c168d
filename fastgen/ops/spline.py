"""What the ops of splines have in common: the numbers in their schemas, their fakes, the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fastgen.ops.arguments import has_numbers
from fastgen.reference.rq_spline import TAILS

NUMBERS = "bool inverse, int tails, float left, float right, float bottom, float top, float min_width, float min_height"
"""In the schema of an op, after its tensors."""


def fake(x: Tensor, parameters: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def fake_backward(grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), parameters.new_empty(parameters.shape)


def checked_numbers(
    x: Tensor,
    parameters: Tensor,
    inverse: bool,
    tails: str,
    bound: float | tuple[float, float, float, float],
    min_width: float,
    min_height: float,
    bins_of: Callable[[int, int], int],
    *,
    least_may_be_zero: bool,
) -> tuple[bool, int, float, float, float, float, float, float]:
    """``NUMBERS`` of these arguments of the public function.

    Args:
        bins_of: the number of bins that a number of parameters makes with the tails of a number.
        least_may_be_zero: ``min_width`` and ``min_height`` may be 0.

    Raises:
        TypeError, ValueError: as the public functions document them.
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
    ends = (-bound, bound, -bound, bound) if isinstance(bound, (int, float)) else tuple(map(float, bound))
    if len(ends) != 4 or not all(abs(end) < math.inf for end in ends):
        raise ValueError(f"bound is {bound}; it must be a finite number or four, (left, right, bottom, top)")
    left, right, bottom, top = ends
    if not (left < right and bottom < top):
        raise ValueError(f"bound is {bound}; left < right and bottom < top must hold")
    if tails == "linear" and (left, right) != (bottom, top):
        raise ValueError(f"bound is {bound}; with linear tails (left, right) must equal (bottom, top)")
    for name, least in (("min_width", min_width), ("min_height", min_height)):
        if not (0 <= least * bins < 1 and (least_may_be_zero or least > 0)):
            lowest = "at least 0" if least_may_be_zero else "greater than 0"
            raise ValueError(f"{name} is {least}; it must be {lowest} and less than 1 / {bins}")
    if tails != "linear" and has_numbers(x):
        _check_inside(x, *((bottom, top) if inverse else (left, right)))
    sizes = float(left), float(right), float(bottom), float(top)
    return inverse, number, *sizes, float(min_width), float(min_height)


def _check_inside(x: Tensor, low: float, high: float) -> None:
    if x.numel() and bool(((x < low) | (x > high)).any()):
        least, most = (float(v) for v in x.detach().aminmax())
        raise ValueError(f"x reaches from {least} to {most}; a spline without tails is defined on {low} to {high}")
