"""Converts zuko's raw parameters of a rational-quadratic spline to those of ``rq_spline``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, leading
from fastgen.ops.registry import Op


def _reference(raw: Tensor, sizes: int, slope: float, least: float) -> Tensor:
    softness = -1 / math.log(slope)
    widths_and_heights, derivatives = raw[..., :sizes], raw[..., sizes:]
    derivatives = (derivatives / (1 + softness * derivatives.abs())).exp() - least
    return torch.cat(
        [
            widths_and_heights / (1 + 2 * softness * widths_and_heights.abs()),
            derivatives + (-torch.expm1(-derivatives)).log(),
        ],
        -1,
    )


_ABSENT = {"triton": "a few elementwise operations of what a network gives: PyTorch's own compiler fuses them there"}
OP = Op(
    "soft_clip(Tensor raw, int sizes, float slope, float least) -> Tensor",
    _reference,
    lambda raw, *_: raw.new_empty(raw.shape),
    absent=_ABSENT,
    part_of="rq_spline",
)
BACKWARD = Op(
    "soft_clip_backward(Tensor gradient, Tensor raw, int sizes, float slope, float least) -> Tensor",
    lambda *arguments: backward_of(_reference, 1)(*arguments)[0],
    lambda gradient, raw, *_: raw.new_empty(raw.shape),
    absent=_ABSENT,
    part_of="rq_spline",
)
_call = differentiable(OP, BACKWARD, leading)


def soft_clip(raw: Tensor, sizes: int, slope: float, least: float) -> Tensor:
    """Returns raw parameters of which ``rq_spline``'s softmax and softplus make zuko's bins and derivatives.

    With c = -log(slope), a of the first ``sizes`` numbers, widths and heights, becomes a / (1 + 2 |a| / c); of the
    others, derivatives, log(exp(s) - 1) with s = exp(a / (1 + |a| / c)) - least.

    Args:
        raw: float [..., P].
        sizes: how many of P are widths and heights.
        slope: of zuko's spline, the least and the inverse of the greatest derivative, between 0 and 1.
        least: ``rq_spline``'s ``min_derivative``, which it adds again, less than slope.

    Reference: Rozet et al., "Zuko: normalizing flows in PyTorch", 2022, ``MonotonicRQSTransform``.

    Example:
        >>> soft_clip(torch.zeros(2, 5), 4, 1e-3, 1e-12)[0]
        tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.5413])
    """
    return _call(raw, sizes, slope, least)
