"""Shared parts of the spline ops: the numbers in their schemas, their fakes, the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fastgen.ops.arguments import has_numbers
from fastgen.reference.rq_spline import TAILS

NUMBERS = "bool inverse, int tails, float left, float right, float bottom, float top, float min_width, float min_height"
"""Numbers in the schema of an op, after its tensors."""


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
    """Checks the arguments of the public function and returns them as ``NUMBERS``.

    Args:
        bins_of: the number of bins that a number of parameters makes with the tails of a number.
        least_may_be_zero: ``min_width`` and ``min_height`` may be 0.

    Raises:
        TypeError, ValueError: as the public functions document them.
    """
    if tails not in TAILS:
        raise ValueError(f"tails must be one of {', '.join(map(repr, TAILS))}, got {tails!r}")
    for name, tensor in (("x", x), ("parameters", parameters)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if parameters.shape[:-1] != x.shape:
        raise ValueError(
            f"parameters must have the shape of x, {tuple(x.shape)}, and one dimension more, got "
            f"{tuple(parameters.shape)}"
        )
    number = TAILS.index(tails)
    bins = bins_of(parameters.shape[-1], number)
    ends = (-bound, bound, -bound, bound) if isinstance(bound, (int, float)) else tuple(map(float, bound))
    if len(ends) != 4 or not all(abs(end) < math.inf for end in ends):
        raise ValueError(f"bound must be a finite number or four, (left, right, bottom, top), got {bound}")
    left, right, bottom, top = ends
    if not (left < right and bottom < top):
        raise ValueError(f"bound must have left < right and bottom < top, got {bound}")
    if tails == "linear" and (left, right) != (bottom, top):
        raise ValueError(f"bound must have (left, right) equal to (bottom, top) with linear tails, got {bound}")
    for name, least in (("min_width", min_width), ("min_height", min_height)):
        if not (0 <= least * bins < 1 and (least_may_be_zero or least > 0)):
            lowest = "at least 0" if least_may_be_zero else "greater than 0"
            raise ValueError(f"{name} must be {lowest} and less than 1 / {bins}, got {least}")
    if tails != "linear" and has_numbers(x):
        _check_inside(x, *((bottom, top) if inverse else (left, right)))
    sizes = float(left), float(right), float(bottom), float(top)
    return inverse, number, *sizes, float(min_width), float(min_height)


def _check_inside(x: Tensor, low: float, high: float) -> None:
    if x.numel() and bool(((x < low) | (x > high)).any()):
        least, most = (float(v) for v in x.detach().aminmax())
        raise ValueError(f"x must be within {low} to {high} for a spline without tails, got {least} to {most}")
