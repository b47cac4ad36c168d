"""The learning rate as a function of the step."""

from __future__ import annotations

from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fastgen.training.config import OptimizerConfig


def learning_rate_schedule(optimizer: Optimizer, config: OptimizerConfig, start: int, steps: int) -> LambdaLR:
    """Returns the schedule that gives an optimizer of rate ``config.rate`` the rates of the steps from ``start`` on.

    A rate is a function of the step alone, so that a resumed run has those of the whole run without any state.
    """
    return LambdaLR(optimizer, lambda done: rate_factor(config, start + done, steps))


def rate_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Returns the part of ``config.rate`` that step ``step`` of ``steps`` is taken with.

    It is ``(step + 1) / warmup`` while ``step < warmup``; then, with p in [0, 1) the part of the remaining steps that
    is done and f = final_rate / rate, cosine: ``f + (1 - f) (1 + cos(pi p)) / 2``, exponential: ``f^p``, or constant.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, steps - config.warmup)
    final = config.final_rate / config.rate
    if config.decay == "exponential":
        return final**done
    return final + (1 - final) * (1 + cos(pi * done)) / 2
