"""Likelihoods as bits per dimension or nats, divergences, and the trivial baselines that they are compared with."""

from fastgen.metrics.baselines import GaussianBaseline, gaussian_baseline, histogram_baseline
from fastgen.metrics.bits_per_dim import Evaluation, Unit, bits_per_dim, evaluate, in_unit, score, summarise
from fastgen.metrics.divergence import Divergence, kl_divergence

__all__ = [
    "Divergence",
    "Evaluation",
    "GaussianBaseline",
    "Unit",
    "bits_per_dim",
    "evaluate",
    "gaussian_baseline",
    "histogram_baseline",
    "in_unit",
    "kl_divergence",
    "score",
    "summarise",
]
