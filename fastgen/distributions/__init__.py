"""Probability distributions that losses, heads and models share."""

from __future__ import annotations

from fastgen.distributions.discretized_logistic import (
    discretized_logistic_log_prob,
    discretized_logistic_mixture_log_prob,
    shifted_mean,
)
from fastgen.distributions.flow import FlowDistribution, FlowTransform
from fastgen.distributions.standard import standard_logistic_log_prob, standard_normal_log_prob

__all__ = [
    "FlowDistribution",
    "FlowTransform",
    "discretized_logistic_log_prob",
    "discretized_logistic_mixture_log_prob",
    "shifted_mean",
    "standard_logistic_log_prob",
    "standard_normal_log_prob",
]
