"""Rational-quadratic splines on the GPU: every parameter is read once, and each gradient written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import sigmoid, softplus

BLOCK_NUMBERS = 1024
"""Of widths that a program holds: as many elements as fit."""


@triton.jit
def softmax(raw, inside):
    raw = tl.where(inside, raw, float("-inf"))
    e = tl.exp(raw - tl.max(raw, axis=1)[:, None])
    return e / tl.sum(e.to(tl.float64), axis=1).to(tl.float32)[:, None]


@triton.jit
def at(table, bin, j):
    return tl.sum(tl.where(j == bin[:, None], table, 0.0), axis=1)


@triton.jit
def before(table, bin, j):
    # in float64: where an element lies in its bin is a small difference of such sums
    return tl.sum(tl.where(j < bin[:, None], table, 0.0).to(tl.float64), axis=1)


@triton.jit
def _find(
    x, raw, element, present, left, right, bottom, top, min_width, min_height, min_derivative,
    inverse: tl.constexpr, tails: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, count: tl.constexpr,
):  # fmt: skip
    """The bin of every element, and where in it the element is."""
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
    w, h = at(widths, bin, j), at(heights, bin, j)
    x0 = (left + before(widths, bin, j)).to(tl.float32)
    y0 = (bottom + before(heights, bin, j)).to(tl.float32)
    derivatives = raw + element * count + 2 * bins
    if tails == 1:
        first, second, has_first, has_second = bin - 1, bin, bin > 0, bin < bins - 1
    else:
        first, second, has_first, has_second = bin, bin + 1, bin >= 0, bin >= 0
        if tails == 2:
            second = tl.where(second == bins, 0, second)
    raw0 = tl.load(derivatives + first, mask=present & has_first, other=0.0).to(tl.float32)
    raw1 = tl.load(derivatives + second, mask=present & has_second, other=0.0).to(tl.float32)
    d0 = tl.where(has_first, min_derivative + softplus(raw0), 1.0)
    d1 = tl.where(has_second, min_derivative + softplus(raw1), 1.0)
    s = h / w
    bend = d0 + d1 - 2.0 * s
    if inverse:
        v = safe - y0
        a, b, c = v * bend + h * (s - d0), h * d0 - v * bend, -s * v
        root = tl.sqrt(tl.maximum(b * b - 4.0 * a * c, 0.0))
        q = -0.5 * (b + tl.where(b < 0.0, -root, root))  # the sum of equal signs: nothing cancels
        t = tl.where(b < 0.0, q, c) / tl.where(b < 0.0, a, q)
        t = tl.minimum(tl.maximum(t, 0.0), 1.0)
        u = t * (1.0 - t)
        den = s + bend * u
        slope = d1 * t * t + 2.0 * s * u + d0 * (1.0 - t) * (1.0 - t)
        t -= ((s * t * t + d0 * u) / den - v / h) * den * den / (s * slope)
    else:
        t = (safe - x0) / w
    t = tl.where(t < 0.0, 0.0, tl.where(t > 1.0, 1.0, t))  # a NaN stays one
    return bin, is_in, p_w, p_h, w, h, x0, y0, d0, d1, raw0, raw1, has_first, has_second, s, bend, t


@triton.jit
def rq_spline_kernel(
    y, log_det, x, parameters, elements, left, right, bottom, top, min_width, min_height, min_derivative,
    inverse: tl.constexpr, tails: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, count: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = element < elements
    given = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    _, is_in, _, _, w, h, x0, y0, d0, d1, _, _, _, _, s, bend, t = _find(
        given, parameters, element, present, left, right, bottom, top, min_width, min_height, min_derivative,
        inverse, tails, bins, padded, count,
    )  # fmt: skip
    u = t * (1.0 - t)
    den = s + bend * u
    log_slope = tl.log(s * s * (d1 * t * t + 2.0 * s * u + d0 * (1.0 - t) * (1.0 - t)) / (den * den))
    if inverse:
        value, log_slope = x0 + t * w, -log_slope
    else:
        value = y0 + h * (s * t * t + d0 * u) / den
    tl.store(y + element, tl.where(is_in, value, given), mask=present)
    tl.store(log_det + element, tl.where(is_in, log_slope, 0.0), mask=present)


@triton.jit
def rq_spline_backward_kernel(
    grad_x, grad_parameters, grad_y, grad_log_det, x, parameters, elements,
    left, right, bottom, top, min_width, min_height, min_derivative,
    inverse: tl.constexpr, tails: tl.constexpr, bins: tl.constexpr, padded: tl.constexpr, count: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = element < elements
    given = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    bin, is_in, p_w, p_h, w, h, _, _, d0, d1, raw0, raw1, has_first, has_second, s, bend, t = _find(
        given, parameters, element, present, left, right, bottom, top, min_width, min_height, min_derivative,
        inverse, tails, bins, padded, count,
    )  # fmt: skip
    given_y = tl.load(grad_y + element, mask=present, other=0.0).to(tl.float32)
    given_l = tl.load(grad_log_det + element, mask=present, other=0.0).to(tl.float32)
    u, v = t * (1.0 - t), 1.0 - 2.0 * t
    den, num = s + bend * u, s * t * t + d0 * u
    slope = d1 * t * t + 2.0 * s * u + d0 * (1.0 - t) * (1.0 - t)
    square = den * den
    # derivatives of y and of L = log dy/dx with respect to t, s, d0, d1
    y_t, y_s = h * s * slope / square, h * (t * t * den - num * (1.0 - 2.0 * u)) / square
    y_d0, y_d1 = h * u * (den - num) / square, -h * u * num / square
    l_t = 2.0 * (d1 * t + s * v - d0 * (1.0 - t)) / slope - 2.0 * bend * v / den
    l_s = 2.0 / s + 2.0 * u / slope - 2.0 * (1.0 - 2.0 * u) / den
    l_d0, l_d1 = (1.0 - t) * (1.0 - t) / slope - 2.0 * u / den, t * t / slope - 2.0 * u / den
    of_y, of_l = tl.where(is_in, given_y, 0.0), tl.where(is_in, given_l, 0.0)
    if inverse:  # x = F^-1(y): dx = (dy - F_p dp) / F_x, and its log-derivative is -L
        of_x = (of_y - of_l * l_t / w) * w / y_t
        of_y, of_l = -of_x, -of_l
        of_t = of_y * y_t + of_l * l_t
    else:
        of_t = of_y * y_t + of_l * l_t
        of_x = of_t / w
    of_s = of_y * y_s + of_l * l_s
    tl.store(grad_x + element, tl.where(is_in, of_x, given_y), mask=present)
    of_x0, of_w = -of_t / w, -of_t * t / w - of_s * s / w
    of_h, of_y0 = of_y * num / den + of_s / w, of_y
    j = tl.arange(0, padded)[None, :]
    start = element[:, None] * count
    inside = (j < bins) & present[:, None]
    is_before, here = j < bin[:, None], j == bin[:, None]
    g = tl.where(is_before, of_x0[:, None], tl.where(here, of_w[:, None], 0.0))
    g = (right - left) * (1.0 - min_width * bins) * p_w * (g - tl.sum(p_w * g, axis=1)[:, None])
    tl.store(grad_parameters + start + j, g, mask=inside)
    g = tl.where(is_before, of_y0[:, None], tl.where(here, of_h[:, None], 0.0))
    g = (top - bottom) * (1.0 - min_height * bins) * p_h * (g - tl.sum(p_h * g, axis=1)[:, None])
    tl.store(grad_parameters + start + bins + j, g, mask=inside)
    of_raw0 = tl.where(has_first, (of_y * y_d0 + of_l * l_d0) * sigmoid(raw0), 0.0)[:, None]
    of_raw1 = tl.where(has_second, (of_y * y_d1 + of_l * l_d1) * sigmoid(raw1), 0.0)[:, None]
    k = tl.arange(0, 2 * padded)[None, :]
    if tails == 1:
        first, second = (k == bin[:, None] - 1), (k == bin[:, None])
    else:
        first, second = (k == bin[:, None]), (k == bin[:, None] + 1)
        if tails == 2:
            second = k == tl.where(bin == bins - 1, 0, bin + 1)[:, None]
    g = tl.where(first, of_raw0, 0.0) + tl.where(second, of_raw1, 0.0)
    tl.store(grad_parameters + start + 2 * bins + k, g, mask=(k < count - 2 * bins) & present[:, None])


def _constants(parameters: int, inverse: bool, tails: int) -> dict:
    bins = (parameters - (1, -1, 0)[tails]) // 3
    padded = triton.next_power_of_2(bins)
    block = max(1, BLOCK_NUMBERS // padded)
    shape = {"bins": bins, "padded": padded, "count": parameters, "block": block}
    return {"inverse": inverse, "tails": tails, "num_warps": 8} | shape


def launch_forward(
    kernel, constants: dict, x: Tensor, parameters: Tensor, numbers: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """y and the log-derivative, by the kernel of a spline."""
    x, parameters = x.contiguous(), parameters.contiguous()
    y, log_det = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), constants["block"]),)
        kernel[grid](y, log_det, x, parameters, x.numel(), *numbers, **constants)
    return y, log_det


def launch_backward(
    kernel,
    constants: dict,
    grad_y: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    parameters: Tensor,
    numbers: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the parameters, by the kernel of a spline's backward."""
    x, parameters = x.contiguous(), parameters.contiguous()
    grad_x, grad_parameters = torch.empty_like(x), torch.empty_like(parameters)
    if x.numel():
        given = grad_y.contiguous(), grad_log_det.contiguous(), x, parameters
        grid = (triton.cdiv(x.numel(), constants["block"]),)
        kernel[grid](grad_x, grad_parameters, *given, x.numel(), *numbers, **constants)
    return grad_x, grad_parameters


def compiled(forward, backward, numbers: tuple[str, ...], constants: list[dict]) -> list[tuple]:
    """What `make check-cuda` compiles: kernels, the types of their arguments, their constants and options."""
    tensors = {
        forward: ("y", "log_det", "x", "parameters"),
        backward: ("grad_x", "grad_parameters", "grad_y", "grad_log_det", "x", "parameters"),
    }
    types = {"elements": "i64"} | dict.fromkeys(numbers, "fp32")
    return [(kernel, dict.fromkeys(names, "*fp32") | types, c) for kernel, names in tensors.items() for c in constants]


def rq_spline(x: Tensor, parameters: Tensor, inverse: bool, tails: int, *numbers: float) -> tuple[Tensor, Tensor]:
    """See ``fastgen.ops.rq_spline``."""
    return launch_forward(rq_spline_kernel, _constants(parameters.shape[-1], inverse, tails), x, parameters, numbers)


def rq_spline_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, inverse: bool, tails: int, *numbers: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the parameters."""
    constants = _constants(parameters.shape[-1], inverse, tails)
    return launch_backward(rq_spline_backward_kernel, constants, grad_y, grad_log_det, x, parameters, numbers)


COMPILED = compiled(
    rq_spline_kernel,
    rq_spline_backward_kernel,
    ("left", "right", "bottom", "top", "min_width", "min_height", "min_derivative"),
    [_constants(*case) for case in ((23, False, 1), (23, True, 1), (24, True, 2), (97, False, 0))],
)
