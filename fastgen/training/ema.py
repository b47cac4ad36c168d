"""Exponential moving average of a model's weights."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Returns a copy of the network that averages its weights: ``module`` holds them, frozen and in eval mode.

    ``update_parameters(network)`` after every step copies the weights the first time, and after n updates does::

        average <- d average + (1 - d) weights,   d = min(decay, (1 + n) / (10 + n))

    The smaller d of the first steps forgets weights that are far from trained. Buffers are copied.
    """
    return AveragedModel(network, multi_avg_fn=partial(_update, decay)).eval().requires_grad_(False)


def _update(decay: float, averages: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
    n = int(updates)
    get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, weights, updates)
