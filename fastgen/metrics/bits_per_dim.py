"""Log-likelihoods as bits per dimension, with the error of the mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import log, sqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """Mean over ``count`` examples: ``bits_per_dim = nats / (D log 2)`` with the standard error of that mean."""

    bits_per_dim: float
    standard_error: float
    nats: float
    count: int

    def __str__(self) -> str:
        mean = f"{self.bits_per_dim:.4f} +- {self.standard_error:.4f} bits/dim"
        return f"{mean} ({self.nats:.2f} nats, {self.count} examples)"

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def bits_per_dim(nats: float, dimensions: int) -> float:
    """``nats / (dimensions log 2)``: the negative log-likelihood of one example in bits per dimension."""
    return nats / (dimensions * log(2))


def summarise(log_prob: Tensor, dimensions: int) -> Evaluation:
    """Log-probabilities ``[N]`` in nats of N held-out examples. Raises ValueError for N = 0 or a NaN."""
    if not log_prob.numel():
        raise ValueError("log_prob is empty; at least one example is needed")
    nats = -log_prob.double()
    if nats.isnan().any():
        raise ValueError(f"log_prob has {int(nats.isnan().sum())} NaN of {nats.numel()} values")
    deviation = nats.std(correction=1).item() if len(nats) > 1 else 0.0
    mean = nats.mean().item()
    error = bits_per_dim(deviation / sqrt(len(nats)), dimensions)
    return Evaluation(bits_per_dim(mean, dimensions), error, mean, len(nats))


def evaluate(model: torch.nn.Module, batches, dimensions: int) -> Evaluation:
    """Bits/dim of ``model.score(x, context)`` over ``batches`` of ``(x, context)``, in eval mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            values = [model.score(x, context).double().cpu() for x, context in batches]
    finally:
        model.train(training)
    return summarise(torch.cat(values), dimensions)
