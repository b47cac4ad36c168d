"""Mixtures of discretized logistics on the GPU: a program takes a few elements with all their components."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import tanh

BLOCK = 16


@triton.jit
def _missed(d):
    """1 - exp(-d) of d >= 0."""
    series = d * (1 - d * (1.0 / 2 - d * (1.0 / 6 - d * (1.0 / 24 - d * (1.0 / 120 - d * (1.0 / 720 - d / 5040))))))
    return tl.where(d < 0.25, series, 1.0 - tl.exp(-d))


@triton.jit
def _bin(x, lowest, highest, mean, log_scale, half, log_width):
    """A bin's probability is exp(exponent) numerator / denominator; see logistic_mixture_simd.cpp."""
    inverse_scale = tl.exp(-log_scale)
    a = (x - mean + half) * inverse_scale
    b = (x - mean - half) * inverse_scale
    ea = tl.exp(-tl.abs(a))
    eb = tl.exp(-tl.abs(b))
    d = 2.0 * half * inverse_scale
    edge = lowest | highest
    tiny = d < 1e-3
    exponent = tl.where(highest, 0.0, tl.minimum(a, 0.0)) + tl.where(lowest, 0.0, tl.minimum(-b, 0.0))
    exponent += tl.where(edge | (d >= 1.0), 0.0, log_width - log_scale)
    numerator = tl.where(edge, 1.0, tl.where(tiny, 1.0 - d * (0.5 - d * (1.0 / 6 - d / 24)), _missed(d)))
    denominator = tl.where(highest, 1.0, 1.0 + ea) * tl.where(lowest, 1.0, 1.0 + eb)
    denominator *= tl.where(edge | tiny | (d >= 1.0), 1.0, d)
    return inverse_scale, a, b, ea, eb, d, exponent, numerator / denominator


@triton.jit
def _of_bin(lowest, highest, inverse_scale, a, b, ea, eb, d):
    """Derivatives of the log-probability of a bin with respect to mean and log-scale."""
    of_a = tl.where(highest, 0.0, tl.where(a < 0, 1.0, ea) / (1.0 + ea))
    of_b = tl.where(lowest, 0.0, tl.where(b < 0, eb, 1.0) / (1.0 + eb))
    safe = tl.maximum(d, 1e-3)
    decay = tl.where(d < 1e-3, 1.0 - d * (0.5 - d / 12.0), safe * tl.exp(-safe) / _missed(safe))
    return (of_b - of_a) * inverse_scale, b * of_b - a * of_a - tl.where(lowest | highest, 0.0, decay)


@triton.jit
def _load(parameters, at, first, inside):
    return tl.load(parameters + at + first, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _at_least(log_scale, least):
    return tl.where(log_scale < least, least, log_scale)  # tl.maximum would hide a NaN


@triton.jit
def _mean(parameters, at, c: tl.constexpr, inside, x0, x1, mixtures, each: tl.constexpr):
    mean = _load(parameters, at, mixtures * (1 + c * each), inside)
    if c == 1:
        mean += tanh(_load(parameters, at, mixtures * 3, inside)) * x0
    if c == 2:
        mean += tanh(_load(parameters, at, mixtures * 6, inside)) * x0
        mean += tanh(_load(parameters, at, mixtures * 9, inside)) * x1
    return mean


@triton.jit
def _level(level, rows, there, c: tl.constexpr, channels: tl.constexpr, top):
    value = tl.load(level + rows * channels + c, mask=there, other=0)
    return value.to(tl.float32) * 2.0 / top - 1.0, value == 0, value == top


@triton.jit
def _mixture(
    level, parameters, rows, there, at, inside, mixtures, top, half, log_width, least,
    channels: tl.constexpr, each: tl.constexpr,
):  # fmt: skip
    """The terms of the sum over components relative to exp(top), their sum, and those of the logits."""
    logits = tl.load(parameters + at, mask=inside, other=-3e38).to(tl.float32)
    logits -= tl.max(logits, 1)[:, None]
    weights = tl.exp(logits)
    exponent = logits
    ratio = weights * 0.0 + 1.0
    x0, _, _ = _level(level, rows, there, 0, channels, top)
    x1 = x0
    if channels == 3:
        x1, _, _ = _level(level, rows, there, 1, channels, top)
    for c in tl.static_range(channels):
        x, lowest, highest = _level(level, rows, there, c, channels, top)
        mean = _mean(parameters, at, c, inside, x0[:, None], x1[:, None], mixtures, each)
        log_scale = _at_least(_load(parameters, at, mixtures * (2 + c * each), inside), least)
        _, _, _, _, _, _, more, times = _bin(
            x[:, None], lowest[:, None], highest[:, None], mean, log_scale, half, log_width
        )
        exponent += more
        ratio *= times
    highest_exponent = tl.max(exponent, 1)
    terms = ratio * tl.exp(exponent - tl.maximum(highest_exponent, -3e38)[:, None])
    return terms, highest_exponent, weights, x0, x1


@triton.jit(do_not_specialize=["count", "mixtures"])
def logistic_mixture_kernel(
    level, parameters, log_prob, count, mixtures, top, half, log_width, least,
    channels: tl.constexpr, each: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = rows < count
    m = tl.arange(0, wide)
    inside = there[:, None] & (m < mixtures)[None, :]
    at = rows[:, None] * (mixtures * (1 + channels * each)) + m[None, :]
    terms, exponent, weights, _, _ = _mixture(
        level, parameters, rows, there, at, inside, mixtures, top, half, log_width, least, channels, each
    )
    value = exponent + (tl.log(tl.sum(terms, 1)) - tl.log(tl.sum(weights, 1)))
    tl.store(log_prob + rows, value, mask=there)


@triton.jit(do_not_specialize=["count", "mixtures"])
def logistic_mixture_backward_kernel(
    grad, level, parameters, grad_parameters, count, mixtures, top, half, log_width, least,
    channels: tl.constexpr, each: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = rows < count
    m = tl.arange(0, wide)
    inside = there[:, None] & (m < mixtures)[None, :]
    at = rows[:, None] * (mixtures * (1 + channels * each)) + m[None, :]
    terms, _, weights, x0, x1 = _mixture(
        level, parameters, rows, there, at, inside, mixtures, top, half, log_width, least, channels, each
    )
    given = tl.load(grad + rows, mask=there, other=0.0).to(tl.float32)[:, None]
    total = tl.sum(terms, 1)[:, None]
    posterior = given * tl.where(total > 0, terms / tl.where(total > 0, total, 1.0), 0.0)
    tl.store(grad_parameters + at, posterior - given * (weights / tl.sum(weights, 1)[:, None]), mask=inside)
    for c in tl.static_range(channels):
        x, lowest, highest = _level(level, rows, there, c, channels, top)
        mean = _mean(parameters, at, c, inside, x0[:, None], x1[:, None], mixtures, each)
        raw = _load(parameters, at, mixtures * (2 + c * each), inside)
        inverse_scale, a, b, ea, eb, d, _, _ = _bin(
            x[:, None], lowest[:, None], highest[:, None], mean, _at_least(raw, least), half, log_width
        )
        of_mean, of_scale = _of_bin(lowest[:, None], highest[:, None], inverse_scale, a, b, ea, eb, d)
        of_mean *= posterior
        first = mixtures * (1 + c * each)
        tl.store(grad_parameters + at + first, of_mean, mask=inside)
        tl.store(
            grad_parameters + at + first + mixtures, tl.where(raw >= least, of_scale * posterior, 0.0), mask=inside
        )
        if c == 1:
            shift = tanh(_load(parameters, at, mixtures * 3, inside))
            tl.store(grad_parameters + at + mixtures * 3, of_mean * x0[:, None] * (1.0 - shift * shift), mask=inside)
        if c == 2:
            shift = tanh(_load(parameters, at, mixtures * 6, inside))
            tl.store(grad_parameters + at + mixtures * 6, of_mean * x0[:, None] * (1.0 - shift * shift), mask=inside)
            shift = tanh(_load(parameters, at, mixtures * 9, inside))
            tl.store(grad_parameters + at + mixtures * 9, of_mean * x1[:, None] * (1.0 - shift * shift), mask=inside)


def _numbers(level: Tensor, parameters: Tensor, levels: int, min_log_scale: float) -> tuple[tuple, dict]:
    channels = level.shape[-1]
    each = 2 if channels == 1 else 3
    mixtures = parameters.shape[-1] // (1 + channels * each)
    top = float(levels - 1)
    constants = {"channels": channels, "each": each, "block": BLOCK, "wide": triton.next_power_of_2(mixtures)}
    return (level[..., 0].numel(), mixtures, top, 1 / top, math.log(2 / top), min_log_scale), constants


def logistic_mixture(level: Tensor, parameters: Tensor, levels: int, min_log_scale: float) -> Tensor:
    """See ``fastgen.ops.logistic_mixture``."""
    log_prob = parameters.new_empty(level.shape[:-1])
    if log_prob.numel():
        numbers, constants = _numbers(level, parameters, levels, min_log_scale)
        tensors = level.contiguous(), parameters.contiguous(), log_prob
        logistic_mixture_kernel[(triton.cdiv(numbers[0], BLOCK),)](*tensors, *numbers, **constants)
    return log_prob


def logistic_mixture_backward(
    grad: Tensor, level: Tensor, parameters: Tensor, levels: int, min_log_scale: float
) -> Tensor:
    """The gradient of ``parameters``."""
    grad_parameters = torch.empty_like(parameters, memory_format=torch.contiguous_format)
    if grad.numel():
        numbers, constants = _numbers(level, parameters, levels, min_log_scale)
        tensors = grad.contiguous(), level.contiguous(), parameters.contiguous(), grad_parameters
        logistic_mixture_backward_kernel[(triton.cdiv(numbers[0], BLOCK),)](*tensors, *numbers, **constants)
    return grad_parameters


_NUMBERS = {"count": "i64", "mixtures": "i32", "top": "fp32", "half": "fp32", "log_width": "fp32", "least": "fp32"}
_CONSTANTS = [
    {"channels": 1, "each": 2, "block": BLOCK, "wide": 16},
    {"channels": 3, "each": 3, "block": BLOCK, "wide": 16},
]

# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (logistic_mixture_kernel, {"level": "*i64", "parameters": "*fp32", "log_prob": "*fp32"} | _NUMBERS, constants)
    for constants in _CONSTANTS
] + [
    (
        logistic_mixture_backward_kernel,
        {"grad": "*fp32", "level": "*i64", "parameters": "*fp32", "grad_parameters": "*fp32"} | _NUMBERS,
        constants,
    )
    for constants in _CONSTANTS
]
