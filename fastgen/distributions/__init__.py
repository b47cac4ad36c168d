"""Probability distributions that losses, heads and models share."""

from __future__ import annotations

from fastgen.distributions.discretized_logistic import (
    discretized_logistic_log_prob,
    discretized_logistic_mixture_log_prob,
    shifted_mean,
)
from fastgen.distributions.flow import FlowDistribution, FlowTransform

__all__ = [
    "FlowDistribution",
    "FlowTransform",
    "discretized_logistic_log_prob",
    "discretized_logistic_mixture_log_prob",
    "shifted_mean",
]
