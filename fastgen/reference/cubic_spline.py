"""Monotone cubic splines, in plain PyTorch.

Durkan, Bekasov, Murray, Papamakarios, "Cubic-spline flows" (2019): on each of K bins a cubic through the bin's corners,
with derivatives there that keep it monotone (Steffen, "A simple method for monotonic interpolation in one dimension",
1990).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastgen.reference.rq_spline import TAILS, case

LEAST = 1e-6
"""Keeps the derivatives at both ends above 0, and below 3 times the slope, where their sigmoid rounds to 0 or 1."""


def parameters_of(bins: int, tails: int) -> int:
    """Returns the number of parameters of each element for a spline of ``bins`` bins."""
    return 2 * bins + (2, 2, 0)[tails]


def bins_of(parameters: int, tails: int) -> int:
    """Returns the number of bins for so many parameters; raises ValueError where there is none."""
    sizes = parameters - (2, 2, 0)[tails]
    if sizes % 2 or sizes < 2:
        raise ValueError(
            f"parameters must have {('2 K + 2', '2 K + 2', '2 K')[tails]} numbers for each element of x, for K "
            f"bins with {TAILS[tails]!r} tails, got {parameters}"
        )
    return sizes // 2


def steps_of(bins: int) -> int:
    """Returns the Halley steps that reach the last bit of float64; a single bin, which can be flat, needs more."""
    return 9 if bins == 1 else 6


def _joints(w0: Tensor, s0: Tensor, w1: Tensor, s1: Tensor) -> Tensor:
    """Returns the derivatives where two bins meet: those of a parabola, at most twice the slope on either side."""
    return torch.minimum(2 * torch.minimum(s0, s1), (w1 * s0 + w0 * s1) / (w0 + w1))


def _derivatives(widths: Tensor, slopes: Tensor, raw: Tensor, tails: int) -> Tensor:
    """Returns the derivatives at all K + 1 corners; on a circle the last bin meets the first."""
    if tails == TAILS.index("circular"):
        joints = _joints(widths.roll(1, -1), slopes.roll(1, -1), widths, slopes)
        return torch.cat([joints, joints[..., :1]], -1)
    inner = _joints(widths[..., :-1], slopes[..., :-1], widths[..., 1:], slopes[..., 1:])
    ends = 3 * torch.stack([slopes[..., 0], slopes[..., -1]], -1) * (LEAST + (1 - 2 * LEAST) * raw.sigmoid())
    return torch.cat([ends[..., :1], inner, ends[..., 1:]], -1)


def _rise(t: Tensor, h: Tensor | float, w: Tensor | float, d0: Tensor, d1: Tensor) -> Tensor:
    return h * t * t * (3 - 2 * t) + w * t * (1 - t) * (d0 * (1 - t) - d1 * t)


def _slope(t: Tensor, s: Tensor | float, d0: Tensor, d1: Tensor) -> Tensor:
    return d0 * (1 - t).square() + d1 * t.square() + 2 * t * (1 - t) * (3 * s - d0 - d1)


def _within(value: Tensor, low: float, high: float) -> Tensor:
    """Clamps, but keeps the derivative of values that rounding brought outside."""
    return value + (value.clamp(low, high) - value).detach()


def _root(a: Tensor, b: Tensor, q: Tensor, steps: int) -> Tensor:
    """Returns where in [0, 1] the cubic from 0 to 1 with end derivatives a and b equals q.

    From the rational quadratic with the same ends, whose root is in closed form, by Halley steps kept in a bracket.
    """
    low, high = torch.zeros_like(q), torch.ones_like(q)
    linear = a - q * (a + b - 2)
    root = (linear.square() + 4 * q * (1 - a + q * (a + b - 2))).clamp(min=0).sqrt()
    t = (2 * q / torch.where(q > 0, linear + root, 1)).clamp(0, 1)
    for _ in range(steps):
        over = _rise(t, 1, 1, a, b) - q
        low, high = torch.where(over > 0, low, t), torch.where(over > 0, t, high)
        slope, curvature = _slope(t, 1, a, b), 2 * (b * t - a * (1 - t) + (1 - 2 * t) * (3 - a - b))
        denominator = 2 * slope.square() - over * curvature
        moved = t - 2 * over * slope / torch.where(denominator > 0, denominator, 1)
        usable = (denominator > 0) & (moved >= low) & (moved <= high)
        t = torch.where(usable, moved, (low + high) / 2)
    return t


def cubic_spline(
    x: Tensor,
    parameters: Tensor,
    inverse: bool,
    tails: int,
    left: float,
    right: float,
    bottom: float,
    top: float,
    min_width: float,
    min_height: float,
) -> tuple[Tensor, Tensor]:
    """``(y, log |dy/dx|)``, elementwise; the identity outside the interval.

    With bin k of width w, height h, slope s = h / w, derivatives d0, d1 at its ends and t = (x - x_k) / w::

        y = y_k + h t^2 (3 - 2 t) + w t (1 - t) (d0 (1 - t) - d1 t)
        dy/dx = d0 (1 - t)^2 + d1 t^2 + 2 t (1 - t) (3 s - d0 - d1)

    The inverse has derivatives to the third order: its root is a constant, followed by two Newton steps, which change
    its derivatives only.

    Args:
        x: [...].
        parameters: [..., P]: K widths and K heights before their softmax, then, but for a circular spline, the
            derivatives at both ends as parts of 3 times the slope there, before their sigmoid.
        tails: index in ``rq_spline.TAILS``.
    """
    bins = bins_of(parameters.shape[-1], tails)
    widths = (right - left) * (min_width + (1 - min_width * bins) * parameters[..., :bins].softmax(-1))
    heights = (top - bottom) * (min_height + (1 - min_height * bins) * parameters[..., bins : 2 * bins].softmax(-1))
    slopes = heights / widths
    derivatives = _derivatives(widths, slopes, parameters[..., 2 * bins :], tails)
    low, high, sizes = (bottom, top, heights) if inverse else (left, right, widths)
    least, most = (left, right) if inverse else (bottom, top)
    inside = (x >= low) & (x <= high)
    safe = torch.where(inside, x, low)
    knots = low + sizes.cumsum(-1)[..., :-1]
    bin = (safe.unsqueeze(-1) >= knots).sum(-1, keepdim=True)

    def of_bin(table: Tensor) -> Tensor:
        return table.gather(-1, bin).squeeze(-1)

    w, h, s, d0, d1 = map(of_bin, (widths, heights, slopes, derivatives, derivatives[..., 1:]))
    x0, y0 = left + of_bin(widths.cumsum(-1) - widths), bottom + of_bin(heights.cumsum(-1) - heights)
    if inverse:
        q = ((safe - y0) / h).clamp(0, 1)
        t = _root((d0 / s).detach(), (d1 / s).detach(), q.detach(), steps_of(bins))
        for _ in range(2):
            over = _rise(t, h, w, d0, d1) - (safe - y0)
            t = t - (over - over.detach()) / (w * _slope(t, s, d0, d1))
    else:
        t = (safe - x0) / w
        t = _within(t, 0, 1)
    log_slope = _slope(t, s, d0, d1).log()
    if inverse:
        y, log_det = x0 + t * w, -log_slope
    else:
        y, log_det = y0 + _rise(t, h, w, d0, d1), log_slope
    return torch.where(inside, _within(y, least, most), x), torch.where(inside, log_det, 0)


_case = functools.partial(case, parameters_of)
CASES = {
    "small": _case(5, bins=3),
    "small inverse": _case(2, 2, bins=3, inverse=True),
    "small bounded": _case(3, bins=1, tails="bounded"),
    "small bounded inverse": _case(3, bins=2, tails="bounded", inverse=True),
    "small circular": _case(4, bins=3, tails="circular"),
    "small circular inverse": _case(3, bins=2, tails="circular", inverse=True),
    "none": _case(0, 3),
    "scalar": _case(),
    "one": _case(1, 1, bins=1),
    "one, inverse": _case(1, 1, bins=1, inverse=True),
    "one, circular": _case(1, 1, bins=1, tails="circular"),
    "prime": _case(13, 7, bins=5),
    "a vector and one": _case(17, bins=16, tails="bounded"),
    "inverse": _case(127, 3, inverse=True),
    "circular": _case(65, tails="circular"),
    "circular, inverse": _case(37, bins=5, tails="circular", inverse=True),
    "large parameters": _case(64, 5, scale=10.0),
    "large parameters, inverse": _case(64, 5, scale=10.0, inverse=True, tails="bounded"),
    "large parameters, circular": _case(64, 5, scale=10.0, tails="circular"),
    "two bins": _case(33, bins=2),
    "many bins": _case(19, bins=64),
    "many bins, inverse": _case(19, bins=64, inverse=True),
}
