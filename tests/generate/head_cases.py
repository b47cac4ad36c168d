"""Heads to test with, and their probabilities by enumeration."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.generate import heads

Mixture = heads.DiscretizedLogisticMixture

DISCRETE = {
    "bernoulli": (heads.Bernoulli(), 1),
    "categorical": (heads.Categorical(5, "unit"), 1),
    "mixture-1": (Mixture(3, 6), 1),
    "mixture-3": (Mixture(3, 4), 3),
}
COMPILED = DISCRETE | {
    "mixture-1-apart": (Mixture(2, 256, channels=1, to_input="unit"), 3),
    "mixture-256": (Mixture(5), 3),
    "mixture-2-levels": (Mixture(2, 2), 3),
    "mixture-raw": (Mixture(3, 9, feed_raw=True), 3),
    "categorical-3": (heads.Categorical(256), 3),
    "bernoulli-2": (heads.Bernoulli(torch.tensor([-0.5, 3.0])), 2),
    "gaussian": (heads.Gaussian(), 2),
    "gaussian-mixture": (heads.Gaussian(4, min_log_scale=-3), 2),
    "logistic-mixture": (heads.LogisticMixture(3, min_log_scale=-4), 2),
    "bivariate": (heads.BivariateGaussianMixture(1), 2),
    "bivariate-mixture": (heads.BivariateGaussianMixture(3, min_log_scale=-5), 4),
    "composite-pen": (heads.Composite(heads.BivariateGaussianMixture(3), heads.Bernoulli("symmetric")), 3),
    "composite-many": (
        heads.Composite(
            heads.Categorical(6, "unit"),
            heads.LogisticMixture(2),
            Mixture(2, 9, channels=3),
            heads.Gaussian(),
            heads.Categorical(3),
        ),
        7,
    ),
}
"""Heads that C++ draws."""


def logistic_draw(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
    return parameters + temperature * torch.logit(noise)


def logistic_log_prob(parameters: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
    standard = (values - parameters) / temperature
    return (F.logsigmoid(standard) + F.logsigmoid(-standard) - math.log(temperature)).sum(-1)


def geometric_draw(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Of levels 0 .. 6, with the odds ``exp(parameter / temperature)`` of going on."""
    odds = torch.sigmoid(parameters[:, :, None] / temperature)
    return (noise[..., :6].reshape(-1, 1, 6) < odds).long().cumprod(-1).sum(-1)


def geometric_log_prob(parameters: Tensor, values: Tensor) -> Tensor:
    ends = F.logsigmoid(-parameters).masked_fill(values == 6, 0)
    return (values * F.logsigmoid(parameters) + ends).sum(-1)


CUSTOM = {
    "custom": (heads.Custom(logistic_draw, logistic_log_prob, parameters_per_position=2, channels=2), 2),
    "custom-discrete": (
        heads.Custom(
            geometric_draw,
            geometric_log_prob,
            parameters_per_position=1,
            channels=1,
            levels=7,
            noise_per_position=6,
            to_input="unit",
        ),
        1,
    ),
}
HEADS = COMPILED | CUSTOM


def shape_of(head: heads.Head, channels: int) -> tuple[int, int]:
    """Groups and parameters a group."""
    event_shape = (channels, 1, 1)
    return head.groups(event_shape), head.resolve(event_shape).parameters_per_group


def random_levels(head: heads.Head, *shape: int) -> Tensor:
    """Levels or values of these sizes, the second of which is the channels."""
    return head.random_levels(shape, torch.Generator().manual_seed(0))


def all_levels(head: heads.Head, channels: int) -> Tensor:
    """Every combination of levels, ``[L ** channels, channels]``."""
    return torch.tensor(list(itertools.product(range(head.levels), repeat=channels)))


def joint(head: heads.Head, parameters: Tensor, channels: int) -> Tensor:
    """The probability of every combination of levels, from one set of parameters ``[G, n]``."""
    levels = all_levels(head, channels)
    groups = parameters.shape[0]
    log_prob = head.group_log_prob(parameters.expand(len(levels), -1, -1), levels.unflatten(-1, (groups, -1)))
    return log_prob.sum(-1).exp().reshape((head.levels,) * channels)
