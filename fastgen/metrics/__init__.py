"""Bits per dimension and the trivial baselines they are compared with."""

from fastgen.metrics.baselines import histogram_baseline
from fastgen.metrics.bits_per_dim import Evaluation, bits_per_dim, evaluate, summarise

__all__ = ["Evaluation", "bits_per_dim", "evaluate", "histogram_baseline", "summarise"]
