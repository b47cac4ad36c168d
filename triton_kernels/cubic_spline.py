"""Monotone cubic splines on the GPU: every parameter is read once, and each gradient written once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastgen.triton_kernels.rq_spline import (
    BLOCK_NUMBERS,
    at,
    before,
    compiled,
    launch_backward,
    launch_forward,
    softmax,
)

from ._math import sigmoid

LEAST = tl.constexpr(1e-6)  # as in fastgen/reference/cubic_spline.py


@triton.jit
def _joint(w0, s0, w1, s1):
    """The derivative where two bins meet, by Steffen, and its partial derivatives: of w0, s0, w1, s1."""
    part0, part1 = w1 / (w0 + w1), w0 / (w0 + w1)
    mean = part0 * s0 + part1 * s1
    limited = 2.0 * tl.minimum(s0, s1) < mean
    of_s0 = tl.where(limited, tl.where(s0 < s1, 2.0, 0.0), part0)
    of_s1 = tl.where(limited, tl.where(s0 < s1, 0.0, 2.0), part1)
    of_w0 = tl.where(limited, 0.0, (s1 - mean) / (w0 + w1))
    of_w1 = tl.where(limited, 0.0, (s0 - mean) / (w0 + w1))
    return tl.where(limited, 2.0 * tl.minimum(s0, s1), mean), of_w0, of_s0, of_w1, of_s1


@triton.jit
def _rise(t, h, w, d0, d1):
    return h * t * t * (3.0 - 2.0 * t) + w * t * (1.0 - t) * (d0 * (1.0 - t) - d1 * t)


@triton.jit
def _slope(t, s, d0, d1):
    return d0 * (1.0 - t) * (1.0 - t) + d1 * t * t + 2.0 * t * (1.0 - t) * (3.0 * s - d0 - d1)


@triton.jit
def _half_bend(t, s, d0, d1):
    return d1 * t - d0 * (1.0 - t) + (1.0 - 2.0 * t) * (3.0 * s - d0 - d1)


@triton.jit
def _root(a, b, q, steps: tl.constexpr):
    """Where in [0, 1] the cubic from 0 to 1 with derivatives a and b at its ends is q.

    From the root of the rational quadratic with the same ends, by Halley steps kept in a bracket.
    """
    low, high = tl.zeros_like(q), tl.zeros_like(q) + 1.0
    bend = q * (a + b - 2.0)
    linear = a - bend
    root = tl.sqrt(tl.maximum(linear * linear + 4.0 * q * (1.0 - a + bend), 0.0))
    t = tl.minimum(2.0 * q / tl.where(q > 0.0, linear + root, 1.0), 1.0)
    t = tl.maximum(t, 0.0)
    for _ in tl.static_range(steps):
        over = _rise(t, 1.0, 1.0, a, b) - q
        low, high = tl.where(over > 0.0, low, t), tl.where(over > 0.0, t, high)
        slope = _slope(t, 1.0, a, b)
        denominator = slope * slope - over * _half_bend(t, 1.0, a, b)
        moved = t - over * slope / tl.where(denominator > 0.0, denominator, 1.0)
        usable = (denominator > 0.0) & (moved >= low) & (moved <= high)
        t = tl.where(usable, moved, 0.5 * (low + high))
    return t


@triton.jit
def _neighbours(bin, bins: tl.constexpr, circular: tl.constexpr):
    """The bins before and after: -1 and ``bins`` beyond the ends of the interval, which a circle does not have."""
    if circular:
        return tl.where(bin == 0, bins - 1, bin - 1), tl.where(bin == bins - 1, 0, bin + 1)
    else:
        return bin - 1, bin + 1


@triton.jit
def _find(
    x, raw, element, present, left, right, bottom, top, min_width, min_height,
    inverse: tl.constexpr, circular: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, count: tl.constexpr,
    steps: tl.constexpr,
):  # fmt: skip
    """The bin of every element, its neighbours, the sigmoids of both ends, and where in the bin the element is."""
    j = tl.arange(0, padded)[None, :]
    inside = (j < bins) & present[:, None]
    start = element[:, None] * count
    p_w = softmax(tl.load(raw + start + j, mask=inside, other=0.0).to(tl.float32), j < bins)
    p_h = softmax(tl.load(raw + start + bins + j, mask=inside, other=0.0).to(tl.float32), j < bins)
    widths = tl.where(j < bins, (right - left) * (min_width + (1.0 - min_width * bins) * p_w), 0.0)
    heights = tl.where(j < bins, (top - bottom) * (min_height + (1.0 - min_height * bins) * p_h), 0.0)
    if inverse:
        low, high, knots = bottom, top, bottom + tl.cumsum(heights, axis=1)
    else:
        low, high, knots = left, right, left + tl.cumsum(widths, axis=1)
    is_in = (x >= low) & (x <= high)
    safe = tl.where(is_in, x, low)
    bin = tl.sum(((safe[:, None] >= knots) & (j < bins - 1)).to(tl.int32), axis=1)
    previous, following = _neighbours(bin, bins, circular)
    first, last = previous < 0, following == bins
    w, h = at(widths, bin, j), at(heights, bin, j)
    s = h / w
    w_before, w_after = tl.where(first, w, at(widths, previous, j)), tl.where(last, w, at(widths, following, j))
    s_before = tl.where(first, h, at(heights, previous, j)) / w_before
    s_after = tl.where(last, h, at(heights, following, j)) / w_after
    x0 = (left + before(widths, bin, j)).to(tl.float32)
    y0 = (bottom + before(heights, bin, j)).to(tl.float32)
    ends = raw + element * count + 2 * bins
    part0 = sigmoid(tl.load(ends, mask=present & first, other=0.0).to(tl.float32))
    part1 = sigmoid(tl.load(ends + 1, mask=present & last, other=0.0).to(tl.float32))
    inner0, _, _, _, _ = _joint(w_before, s_before, w, s)
    inner1, _, _, _, _ = _joint(w, s, w_after, s_after)
    d0 = tl.where(first, 3.0 * s * (LEAST + (1.0 - 2.0 * LEAST) * part0), inner0)
    d1 = tl.where(last, 3.0 * s * (LEAST + (1.0 - 2.0 * LEAST) * part1), inner1)
    if inverse:
        t = _root(d0 / s, d1 / s, tl.minimum(tl.maximum((safe - y0) / h, 0.0), 1.0), steps)
    else:
        t = tl.minimum(tl.maximum((safe - x0) / w, 0.0), 1.0)
    return bin, is_in, p_w, p_h, w, h, x0, y0, s, w_before, s_before, w_after, s_after, part0, part1, d0, d1, t


@triton.jit
def cubic_spline_kernel(
    y, log_det, x, parameters, elements, left, right, bottom, top, min_width, min_height,
    inverse: tl.constexpr, circular: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, count: tl.constexpr,
    steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = element < elements
    given = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    _, is_in, _, _, w, h, x0, y0, s, _, _, _, _, _, _, d0, d1, t = _find(
        given, parameters, element, present, left, right, bottom, top, min_width, min_height,
        inverse, circular, bins, padded, count, steps,
    )  # fmt: skip
    log_slope = tl.log(_slope(t, s, d0, d1))
    if inverse:
        value, log_slope = x0 + t * w, -log_slope
    else:
        value = y0 + _rise(t, h, w, d0, d1)
    least, most = (left, right) if inverse else (bottom, top)
    value = tl.where(value < least, least, tl.where(value > most, most, value))
    tl.store(y + element, tl.where(is_in, value, given), mask=present)
    tl.store(log_det + element, tl.where(is_in, log_slope, 0.0), mask=present)


@triton.jit
def _softmax_backward(p, j, bin, previous, following, of_start, of_previous, of_bin, of_following):
    """Of those with respect to the sizes of the bins: all before the element's, and the three around it besides."""
    g = tl.where(j < bin[:, None], of_start[:, None], 0.0) + tl.where(j == bin[:, None], of_bin[:, None], 0.0)
    g += tl.where(j == previous[:, None], of_previous[:, None], 0.0)
    g += tl.where(j == following[:, None], of_following[:, None], 0.0)
    return p * (g - tl.sum(p * g, axis=1)[:, None])


@triton.jit
def cubic_spline_backward_kernel(
    grad_x, grad_parameters, grad_y, grad_log_det, x, parameters, elements,
    left, right, bottom, top, min_width, min_height,
    inverse: tl.constexpr, circular: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, count: tl.constexpr,
    steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = element < elements
    given = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    bin, is_in, p_w, p_h, w, _, _, _, s, w_before, s_before, w_after, s_after, part0, part1, d0, d1, t = _find(
        given, parameters, element, present, left, right, bottom, top, min_width, min_height,
        inverse, circular, bins, padded, count, steps,
    )  # fmt: skip
    given_y = tl.load(grad_y + element, mask=present, other=0.0).to(tl.float32)
    given_l = tl.load(grad_log_det + element, mask=present, other=0.0).to(tl.float32)
    of_y, of_l = tl.where(is_in, given_y, 0.0), tl.where(is_in, given_l, 0.0)
    slope, rest = _slope(t, s, d0, d1), 1.0 - t
    u = t * rest
    l_t = 2.0 * _half_bend(t, s, d0, d1) / slope
    if inverse:  # x = F^-1(y): dx = (dy - F_p dp) / F_x, and its log-derivative is -L
        of_x = (of_y - of_l * l_t / w) / slope
        of_y, of_l = -of_x, -of_l
        of_x0 = -of_y * slope - of_l * l_t / w
    else:
        of_x0 = -of_y * slope - of_l * l_t / w
        of_x = -of_x0
    tl.store(grad_x + element, tl.where(is_in, of_x, given_y), mask=present)

    previous, following = _neighbours(bin, bins, circular)
    first, last = previous < 0, following == bins
    of_log = of_l / slope
    of_d0 = of_y * w * u * rest + of_log * (rest * rest - 2.0 * u)
    of_d1 = of_log * (t * t - 2.0 * u) - of_y * w * u * t
    _, w0_before, s0_before, w0_here, s0_here = _joint(w_before, s_before, w, s)
    _, w1_here, s1_here, w1_after, s1_after = _joint(w, s, w_after, s_after)
    of_s = 6.0 * u * of_log + of_d0 * tl.where(first, d0 / s, s0_here) + of_d1 * tl.where(last, d1 / s, s1_here)
    of_s_before, of_s_after = of_d0 * s0_before, of_d1 * s1_after
    of_w = of_y * u * (d0 * rest - d1 * t) + of_x0 * t - of_s * s / w
    of_w += of_d0 * tl.where(first, 0.0, w0_here) + of_d1 * tl.where(last, 0.0, w1_here)
    of_h = of_y * t * t * (3.0 - 2.0 * t) + of_s / w
    j = tl.arange(0, padded)[None, :]
    start = element[:, None] * count
    inside = (j < bins) & present[:, None]
    of_w_before = of_d0 * w0_before - of_s_before * s_before / w_before
    of_w_after = of_d1 * w1_after - of_s_after * s_after / w_after
    g = _softmax_backward(p_w, j, bin, previous, following, of_x0, of_w_before, of_w, of_w_after)
    tl.store(grad_parameters + start + j, (right - left) * (1.0 - min_width * bins) * g, mask=inside)
    g = _softmax_backward(p_h, j, bin, previous, following, of_y, of_s_before / w_before, of_h, of_s_after / w_after)
    tl.store(grad_parameters + start + bins + j, (top - bottom) * (1.0 - min_height * bins) * g, mask=inside)
    if not circular:
        ends = grad_parameters + element * count + 2 * bins
        part = 3.0 * s * (1.0 - 2.0 * LEAST)
        tl.store(ends, tl.where(first, of_d0 * part * part0 * (1.0 - part0), 0.0), mask=present)
        tl.store(ends + 1, tl.where(last, of_d1 * part * part1 * (1.0 - part1), 0.0), mask=present)


def _constants(parameters: int, inverse: bool, tails: int) -> dict:
    circular = tails == 2
    bins = parameters // 2 if circular else parameters // 2 - 1
    padded = triton.next_power_of_2(bins)
    shape = {"bins": bins, "padded": padded, "count": parameters, "block": max(1, BLOCK_NUMBERS // padded)}
    return {"inverse": inverse, "circular": circular, "steps": 9 if bins == 1 else 4, "num_warps": 8} | shape


def cubic_spline(x: Tensor, parameters: Tensor, inverse: bool, tails: int, *numbers: float) -> tuple[Tensor, Tensor]:
    """See ``fastgen.ops.cubic_spline``."""
    return launch_forward(cubic_spline_kernel, _constants(parameters.shape[-1], inverse, tails), x, parameters, numbers)


def cubic_spline_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, inverse: bool, tails: int, *numbers: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the parameters."""
    constants = _constants(parameters.shape[-1], inverse, tails)
    return launch_backward(cubic_spline_backward_kernel, constants, grad_y, grad_log_det, x, parameters, numbers)


COMPILED = compiled(
    cubic_spline_kernel,
    cubic_spline_backward_kernel,
    ("left", "right", "bottom", "top", "min_width", "min_height"),
    [_constants(*case) for case in ((18, False, 1), (18, True, 1), (66, False, 0), (66, True, 0), (16, True, 2))],
)
