"""The Kullback-Leibler divergence from a distribution whose density is known."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """An estimate of ``KL(true || model)`` in nats and its standard error."""

    nats: float
    standard_error: float

    def __str__(self) -> str:
        return f"KL(true || model) {self.nats:.4f} +- {self.standard_error:.4f} nats"


def kl_divergence(log_true: Tensor, log_model: Tensor) -> Divergence:
    """The mean of ``log p(x) - log q(x)`` over N independent draws x of p, with the standard error of that mean.

    ``log_true`` and ``log_model``: log-densities ``[N]`` of the same points under p and q. Raises ValueError for
    shapes that differ, fewer than 2 points, or a point that cannot be a draw of p.
    """
    if log_true.shape != log_model.shape or log_true.dim() != 1:
        raise ValueError(
            f"log_true has shape {tuple(log_true.shape)}, log_model {tuple(log_model.shape)}; both must be [N]"
        )
    if len(log_true) < 2:
        raise ValueError("log_true has fewer than 2 points; a standard error needs 2 at least")
    if not log_true.isfinite().all():
        raise ValueError(f"log_true has {int((~log_true.isfinite()).sum())} values that are not finite")
    ratios = log_true.double() - log_model.double()
    return Divergence(ratios.mean().item(), ratios.std(correction=1).item() / sqrt(len(ratios)))
