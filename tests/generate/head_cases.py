"""Heads to test with, and their probabilities by enumeration."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastgen.generate import heads

Mixture = heads.DiscretizedLogisticMixture

DISCRETE = {
    "bernoulli": (heads.Bernoulli(), 1),
    "categorical": (heads.Categorical(5, "unit"), 1),
    "mixture-1": (Mixture(3, 6), 1),
    "mixture-3": (Mixture(3, 4), 3),
}
HEADS = DISCRETE | {
    "mixture-1-apart": (Mixture(2, 256, channels=1, to_input="unit"), 3),
    "mixture-256": (Mixture(5), 3),
    "mixture-2-levels": (Mixture(2, 2), 3),
    "mixture-raw": (Mixture(3, 9, feed_raw=True), 3),
    "categorical-3": (heads.Categorical(256), 3),
    "bernoulli-2": (heads.Bernoulli(torch.tensor([-0.5, 3.0])), 2),
    "gaussian": (heads.Gaussian(), 2),
    "gaussian-mixture": (heads.Gaussian(4, min_log_scale=-3), 2),
}


def shape_of(head: heads.Head, channels: int) -> tuple[int, int]:
    """Groups and parameters a group."""
    event_shape = (channels, 1, 1)
    return head.groups(event_shape), head.resolve(event_shape).parameters_per_group


def all_levels(head: heads.Head, channels: int) -> Tensor:
    """Every combination of levels, ``[L ** channels, channels]``."""
    return torch.tensor(list(itertools.product(range(head.levels), repeat=channels)))


def joint(head: heads.Head, parameters: Tensor, channels: int) -> Tensor:
    """The probability of every combination of levels, from one set of parameters ``[G, n]``."""
    levels = all_levels(head, channels)
    groups = parameters.shape[0]
    log_prob = head.group_log_prob(parameters.expand(len(levels), -1, -1), levels.unflatten(-1, (groups, -1)))
    return log_prob.sum(-1).exp().reshape((head.levels,) * channels)
