"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """``average <- d average + (1 - d) weights`` after each step, with ``d = min(decay, (1 + step) / (10 + step))``.

    The smaller decay of the first steps forgets the initial weights. Buffers are copied, not averaged. ``model`` is a
    frozen copy of the network, in eval mode, that holds the average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = list(self.model.parameters()), [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
