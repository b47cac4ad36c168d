"""The inverse of an increasing function of which only values and derivatives are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.nn.value_checks import readable
from fastgen.ops.precision import in_float32

Increasing = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x to (f(x), log f'(x)), element by element."""

_DOUBLINGS = 64
_NEWTON_STEPS = 2


def monotone_inverse(function: Increasing, y: Tensor, reach: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x with f(x) = y for an elementwise increasing f, and the log-derivative of that inverse, -log f'(x).

    From the sign of f(0) - y the end of a bracket goes outwards from 1 or -1, doubling, to 2^64 at most; the bracket is
    halved as many times as y's dtype has bits in its significand, and two Newton steps within what is left finish. With
    ``reach`` the bracket is known: torch.compile, which cannot look at values, has 64 doublings less to compile.

    Derivatives are those of the implicit function: dx = (dy - df) / f'(x), for whatever f was computed from. They are
    what two Newton steps from a constant x have, which is exact for first and second derivatives.

    Args:
        function: x of y's shape to (f(x), log f'(x)), computed in float32 at least.
        y: float [...]; half precision is computed in float32.
        reach: what |f(x) - x| is nowhere more than, of y's shape or one that broadcasts to it; None if it has no bound.

    Returns:
        x [...] of y's dtype, and the log-derivative [...], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        ValueError: f does not reach a value, or it is not finite (seen on the CPU, and outside torch.compile and
            torch.func).

    Example:
        >>> def cubic(x):
        ...     return x + x**3, (1 + 3 * x.square()).log()
        >>> x, log_derivative = monotone_inverse(cubic, torch.tensor([2.0, -10.0]))
        >>> x
        tensor([ 1., -2.])
    """
    (target,) = in_float32(y)
    with torch.no_grad():
        bracket = _bracket(function, target) if reach is None else _bracket_within(reach, target)
        found = _newton(function, target, *_halved(function, target, *bracket))
    x = found.detach()
    for _ in range(2):
        value, log_slope = function(x)
        residual = value - target
        x = x - (residual - residual.detach()) * (-log_slope).exp()
    return x.to(y.dtype), -function(x)[1]


def _bracket(function: Increasing, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two ends between which f passes y: 0 and -1 or 1, or one and twice it."""
    inner = torch.zeros_like(y)
    above = function(inner)[0] < y
    outer = torch.where(above, 1.0, -1.0).to(y.dtype)
    beyond = _passed(function, outer, y, above)
    for _ in range(_DOUBLINGS):
        if readable(y, inverse=True) and beyond.all():
            break
        inner, outer = torch.where(beyond, inner, outer), torch.where(beyond, outer, 2 * outer)
        beyond = _passed(function, outer, y, above)
    _refuse_others(y, beyond)
    return torch.minimum(inner, outer), torch.maximum(inner, outer)


def _bracket_within(reach: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    _refuse_others(y, y.isfinite())
    return y - reach, y + reach


def _refuse_others(y: Tensor, found: Tensor) -> None:
    """ValueError for values that are not found, where they may be looked at."""
    if readable(y, inverse=True) and not found.all():
        wrong = y[~found]
        raise ValueError(
            f"y must be values of the function, got {wrong.numel()} that are not, the first of them {wrong[0].item():g}"
        )


def _passed(function: Increasing, x: Tensor, y: Tensor, above: Tensor) -> Tensor:
    value = function(x)[0]
    return torch.where(above, value >= y, value <= y)


def _halved(function: Increasing, y: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    for _ in range(round(-math.log2(torch.finfo(y.dtype).eps)) + 1):
        middle = low + (high - low) / 2
        below = function(middle)[0] < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low, high


def _newton(function: Increasing, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    x = low + (high - low) / 2
    for _ in range(_NEWTON_STEPS):
        value, log_slope = function(x)
        x = torch.clamp(x - (value - y) * (-log_slope).exp(), low, high)
    return x
