"""Monotone cubic splines on the GPU: every parameter is read once, and each gradient written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_NUMBERS = 1024
"""Of widths that a program holds: as many elements as fit."""
LEAST = tl.constexpr(1e-6)  # as in fastgen/reference/cubic_spline.py


@triton.jit
def _sigmoid(x):
    z = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, z, 1.0) / (1.0 + z)


@triton.jit
def _softmax(raw, inside):
    raw = tl.where(inside, raw, float("-inf"))
    e = tl.exp(raw - tl.max(raw, axis=1)[:, None])
    return e / tl.sum(e.to(tl.float64), axis=1).to(tl.float32)[:, None]


@triton.jit
def _at(table, bin, j):
    return tl.sum(tl.where(j == bin[:, None], table, 0.0), axis=1)


@triton.jit
def _before(table, bin, j):
    # in float64: where an element lies in its bin is a small difference of such sums
    return tl.sum(tl.where(j < bin[:, None], table, 0.0).to(tl.float64), axis=1)


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
def _find(
    x, raw, element, present, left, right, bottom, top, min_width, min_height,
    inverse: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, steps: tl.constexpr,
):  # fmt: skip
    """The bin of every element, its neighbours, the sigmoids of both ends, and where in the bin the element is."""
    j = tl.arange(0, padded)[None, :]
    inside = (j < bins) & present[:, None]
    start = element.to(tl.int64)[:, None] * (2 * bins + 2)
    p_w = _softmax(tl.load(raw + start + j, mask=inside, other=0.0).to(tl.float32), j < bins)
    p_h = _softmax(tl.load(raw + start + bins + j, mask=inside, other=0.0).to(tl.float32), j < bins)
    widths = tl.where(j < bins, (right - left) * (min_width + (1.0 - min_width * bins) * p_w), 0.0)
    heights = tl.where(j < bins, (top - bottom) * (min_height + (1.0 - min_height * bins) * p_h), 0.0)
    if inverse:
        low, high, knots = bottom, top, bottom + tl.cumsum(heights, axis=1)
    else:
        low, high, knots = left, right, left + tl.cumsum(widths, axis=1)
    is_in = (x >= low) & (x <= high)
    safe = tl.where(is_in, x, low)
    bin = tl.sum(((safe[:, None] >= knots) & (j < bins - 1)).to(tl.int32), axis=1)
    first, last = bin == 0, bin == bins - 1
    w, h = _at(widths, bin, j), _at(heights, bin, j)
    s = h / w
    w_before, w_after = tl.where(first, w, _at(widths, bin - 1, j)), tl.where(last, w, _at(widths, bin + 1, j))
    s_before = tl.where(first, h, _at(heights, bin - 1, j)) / w_before
    s_after = tl.where(last, h, _at(heights, bin + 1, j)) / w_after
    x0 = (left + _before(widths, bin, j)).to(tl.float32)
    y0 = (bottom + _before(heights, bin, j)).to(tl.float32)
    ends = raw + element.to(tl.int64) * (2 * bins + 2) + 2 * bins
    part0 = _sigmoid(tl.load(ends, mask=present, other=0.0).to(tl.float32))
    part1 = _sigmoid(tl.load(ends + 1, mask=present, other=0.0).to(tl.float32))
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
    inverse: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0) * block + tl.arange(0, block)
    present = element < elements
    at = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    _, is_in, _, _, w, h, x0, y0, s, _, _, _, _, _, _, d0, d1, t = _find(
        at, parameters, element, present, left, right, bottom, top, min_width, min_height, inverse, bins, padded, steps,
    )  # fmt: skip
    log_slope = tl.log(_slope(t, s, d0, d1))
    if inverse:
        value, log_slope = x0 + t * w, -log_slope
    else:
        value = y0 + _rise(t, h, w, d0, d1)
    least, most = (left, right) if inverse else (bottom, top)
    value = tl.where(value < least, least, tl.where(value > most, most, value))
    tl.store(y + element, tl.where(is_in, value, at), mask=present)
    tl.store(log_det + element, tl.where(is_in, log_slope, 0.0), mask=present)


@triton.jit
def _softmax_backward(p, bin, j, of_start, before, here, after):
    """Of those with respect to the sizes of the bins: all before the element's, and the three around it besides."""
    place = bin[:, None] - j
    g = tl.where(place > 0, of_start[:, None], 0.0) + tl.where(place == 0, here[:, None], 0.0)
    g += tl.where(place == 1, before[:, None], 0.0) + tl.where(place == -1, after[:, None], 0.0)
    return p * (g - tl.sum(p * g, axis=1)[:, None])


@triton.jit
def cubic_spline_backward_kernel(
    grad_x, grad_parameters, grad_y, grad_log_det, x, parameters, elements,
    left, right, bottom, top, min_width, min_height,
    inverse: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0) * block + tl.arange(0, block)
    present = element < elements
    at = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    bin, is_in, p_w, p_h, w, _, _, _, s, w_before, s_before, w_after, s_after, part0, part1, d0, d1, t = _find(
        at, parameters, element, present, left, right, bottom, top, min_width, min_height, inverse, bins, padded, steps,
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

    first, last = bin == 0, bin == bins - 1
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
    start = element.to(tl.int64)[:, None] * (2 * bins + 2)
    inside = (j < bins) & present[:, None]
    before = of_d0 * w0_before - of_s_before * s_before / w_before
    after = of_d1 * w1_after - of_s_after * s_after / w_after
    g = (right - left) * (1.0 - min_width * bins) * _softmax_backward(p_w, bin, j, of_x0, before, of_w, after)
    tl.store(grad_parameters + start + j, g, mask=inside)
    before, after = of_s_before / w_before, of_s_after / w_after
    g = (top - bottom) * (1.0 - min_height * bins) * _softmax_backward(p_h, bin, j, of_y, before, of_h, after)
    tl.store(grad_parameters + start + bins + j, g, mask=inside)
    ends = grad_parameters + element.to(tl.int64) * (2 * bins + 2) + 2 * bins
    part = 3.0 * s * (1.0 - 2.0 * LEAST)
    tl.store(ends, tl.where(first, of_d0 * part * part0 * (1.0 - part0), 0.0), mask=present)
    tl.store(ends + 1, tl.where(last, of_d1 * part * part1 * (1.0 - part1), 0.0), mask=present)


def _constants(parameters: int, inverse: bool) -> dict:
    bins = parameters // 2 - 1
    padded = triton.next_power_of_2(bins)
    shape = {"bins": bins, "padded": padded, "block": max(1, BLOCK_NUMBERS // padded)}
    return {"inverse": inverse, "steps": 9 if bins == 1 else 4, "num_warps": 8} | shape


def cubic_spline(x: Tensor, parameters: Tensor, inverse: bool, *numbers: float) -> tuple[Tensor, Tensor]:
    """See ``fastgen.ops.cubic_spline``."""
    x, parameters = x.contiguous(), parameters.contiguous()
    y, log_det = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        constants = _constants(parameters.shape[-1], inverse)
        grid = (triton.cdiv(x.numel(), constants["block"]),)
        cubic_spline_kernel[grid](y, log_det, x, parameters, x.numel(), *numbers, **constants)
    return y, log_det


def cubic_spline_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, inverse: bool, *numbers: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the parameters."""
    x, parameters = x.contiguous(), parameters.contiguous()
    grad_x, grad_parameters = torch.empty_like(x), torch.empty_like(parameters)
    if x.numel():
        constants = _constants(parameters.shape[-1], inverse)
        given = grad_y.contiguous(), grad_log_det.contiguous(), x, parameters
        grid = (triton.cdiv(x.numel(), constants["block"]),)
        cubic_spline_backward_kernel[grid](grad_x, grad_parameters, *given, x.numel(), *numbers, **constants)
    return grad_x, grad_parameters


# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
_NUMBERS = dict.fromkeys(("left", "right", "bottom", "top", "min_width", "min_height"), "fp32")
COMPILED = [
    (kernel, dict.fromkeys(tensors, "*fp32") | {"elements": "i32"} | _NUMBERS, _constants(count, inverse))
    for kernel, tensors in (
        (cubic_spline_kernel, ("y", "log_det", "x", "parameters")),
        (
            cubic_spline_backward_kernel,
            ("grad_x", "grad_parameters", "grad_y", "grad_log_det", "x", "parameters"),
        ),
    )
    for count, inverse in ((18, False), (18, True), (66, False), (66, True))
]
