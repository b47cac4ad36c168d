"""Mean and variance of every channel of a batch, on one process or over all of them."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

_ROUNDING = 8
"""A channel is constant if it deviates from its mean by no more than so many roundings of that."""


def channel_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Returns how many values a channel has in x [N, C, ...], their mean [C], and their variance [C]: all 0 of none."""
    if not x.numel():
        return 0, x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    return x.numel() // x.shape[1], mean, variance


def has_processes() -> bool:
    """Returns whether ``torch.distributed`` is initialized."""
    return dist.is_available() and dist.is_initialized()


def moments_of_all_processes(count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor | int, Tensor, Tensor]:
    """Returns count, mean and variance of the batches of all processes, from those of this one's batch.

    Every process of ``torch.distributed`` must call it; without that they are what was given.
    """
    if not has_processes():
        return count, mean, variance
    totals = torch.stack([torch.full_like(mean, count), count * mean])
    dist.all_reduce(totals)
    overall = totals[1] / totals[0]
    squares = count * (variance + (mean - overall).square())
    dist.all_reduce(squares)
    return totals[0, 0], overall, squares / totals[0]


def constant_channels(mean: Tensor, variance: Tensor, name: str) -> Tensor:
    """Returns which channels of a first batch are constant, bool [C]; a RuntimeWarning tells that their scale is 1."""
    constant = variance.sqrt() <= _ROUNDING * torch.finfo(mean.dtype).eps * mean.abs()
    if constant.any():
        warnings.warn(
            f"{name}: {int(constant.sum())} of {len(constant)} channels are constant in the first batch "
            f"(channel {int(constant.nonzero()[0])} is the first of them); their scale is 1",
            RuntimeWarning,
            stacklevel=2,
        )
    return constant
