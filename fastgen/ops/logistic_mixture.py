"""Mixtures of discretized logistics, channels autoregressive: the log-probability straight from a network's output."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.arguments import has_numbers
from fastgen.ops.autograd import backward_of, differentiable, leading
from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import logistic_mixture as reference
from fastgen.reference.logistic_mixture import mixtures_of

LEAST_LOG_SCALE = -60.0
_MOST_LEVELS = 1 << 24  # float32 tells them apart


def _fake(level: Tensor, parameters: Tensor, *_) -> Tensor:
    return parameters.new_empty(level.shape[:-1])


def _fake_backward(grad: Tensor, level: Tensor, parameters: Tensor, *_) -> Tensor:
    return parameters.new_empty(parameters.shape)


_pull = backward_of(reference.logistic_mixture, 1)

OP = Op(
    "logistic_mixture(Tensor level, Tensor parameters, int levels, float min_log_scale) -> Tensor",
    reference.logistic_mixture,
    _fake,
)
BACKWARD = Op(
    "logistic_mixture_backward(Tensor grad, Tensor level, Tensor parameters, int levels, float min_log_scale)"
    " -> Tensor",
    lambda *arguments: _pull(*arguments)[0],
    _fake_backward,
    part_of="logistic_mixture",
)
_call = differentiable(OP, BACKWARD, leading)


def logistic_mixture(level: Tensor, parameters: Tensor, *, levels: int = 256, min_log_scale: float = -7.0) -> Tensor:
    """Log-probability of levels under a mixture of discretized logistics that their channels share, in one pass.

    With ``x = 2 level / (L-1) - 1``, half a bin ``h = 1 / (L-1)`` and ``F_cm`` the logistic cdf of the channel's and
    component's mean and scale::

        log sum_m softmax(logits)_m prod_c (F_cm(x_c + h) - F_cm(x_c - h))

    where ``F(x - h)`` is 0 at level 0 and ``F(x + h)`` is 1 at level L-1. Of three channels the means depend on the
    earlier ones: ``mean_1 + tanh(k_0) x_0`` and ``mean_2 + tanh(k_1) x_0 + tanh(k_2) x_1``. Bins far in the tails have
    their exact probability, not the density that public code puts in its place.

    Args:
        level: integers [..., C] in 0 .. L-1, C = 1 or 3.
        parameters: float [..., P], straight from a network, P = 3 M or 10 M: M logits, then for each channel M means,
            M log-scales and, of three channels, M coefficients k. Leading dimensions broadcast with level's. float16
            and bfloat16 are computed in float32 (autocast included).
        levels: L, 2 to 2**24.
        min_log_scale: smaller log-scales count as this; at least -60.

    Returns:
        [...], float32 for parameters of 32 bits or fewer, else float64.

    Raises:
        TypeError: level is not of integers, parameters not floating point.
        ValueError: shapes or numbers that do not fit; a level outside 0 .. L-1. On a GPU and under ``torch.compile``
            and ``torch.func`` such levels are not looked for, and what they get is not defined.

    Reference: Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017.

    Example:
        >>> image, output = torch.randint(0, 256, (2, 8, 8, 3)), torch.randn(2, 8, 8, 10 * 5)
        >>> logistic_mixture(image, output).shape
        torch.Size([2, 8, 8])
    """
    if level.is_floating_point() or level.is_complex() or level.dtype == torch.bool:
        raise TypeError(f"level must be of an integer dtype, got {level.dtype}")
    if not parameters.is_floating_point():
        raise TypeError(f"parameters must be floating point, got {parameters.dtype}")
    if not 2 <= levels <= _MOST_LEVELS:
        raise ValueError(f"levels must be from 2 to {_MOST_LEVELS}, got {levels}")
    if not LEAST_LOG_SCALE <= min_log_scale <= -LEAST_LOG_SCALE:
        raise ValueError(f"min_log_scale must be from {LEAST_LOG_SCALE} to {-LEAST_LOG_SCALE}, got {min_log_scale}")
    for name, tensor in (("level", level), ("parameters", parameters)):
        if not tensor.dim():
            raise ValueError(f"{name} must have at least one dimension, got none")
    mixtures_of(parameters.shape[-1], level.shape[-1])
    try:
        shape = torch.broadcast_shapes(level.shape[:-1], parameters.shape[:-1])
    except RuntimeError:
        raise ValueError(
            "parameters and level must broadcast in all dimensions but the last, got shapes "
            f"{tuple(parameters.shape)} and {tuple(level.shape)}"
        ) from None
    if has_numbers(level):
        _check_range(level, levels)
    (parameters,) = in_float32(parameters)
    level = level.to(torch.int64).expand(*shape, level.shape[-1])
    return _call(level, parameters.expand(*shape, parameters.shape[-1]), levels, float(min_log_scale))


def _check_range(level: Tensor, levels: int) -> None:
    if level.numel():
        least, most = map(int, level.aminmax())
        if least < 0 or most >= levels:
            raise ValueError(f"level must be in 0 to {levels - 1}, got {least} to {most}")
