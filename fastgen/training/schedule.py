"""The learning rate as a function of the step."""

from __future__ import annotations

from math import cos, pi

from fastgen.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step ``step`` of ``steps``.

    ``rate * (step + 1) / warmup`` while ``step < warmup``; then, with p in [0, 1) the part of the remaining steps
    that is done, cosine: ``final + (rate - final) (1 + cos(pi p)) / 2``, exponential: ``rate (final / rate)^p``, or
    constant.
    """
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.rate
    done = (step - config.warmup) / max(1, steps - config.warmup)
    if config.decay == "exponential":
        return config.rate * (config.final_rate / config.rate) ** done
    return config.final_rate + (config.rate - config.final_rate) * (1 + cos(pi * done)) / 2
