"""Log-likelihoods as bits per dimension or nats, with the error of the mean."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import torch
from torch import Tensor

from fastgen.eval_mode import eval_mode
from fastgen.metrics.divergence import Divergence, kl_divergence
from fastgen.models.base import Model

Unit = Literal["bits/dim", "nats"]


@dataclass(frozen=True)
class Evaluation:
    """Mean negative log-likelihood of ``count`` examples, in nats and as ``bits_per_dim = nats / (D log 2)``.

    ``standard_error`` is that of the mean in ``unit``, in which the likelihood is told. ``divergence`` is that from the
    true distribution of the examples, where it is known; ``estimates`` says what of the likelihood is not exact. One
    example has neither an error nor a divergence.
    """

    bits_per_dim: float
    standard_error: float | None
    nats: float
    count: int
    unit: Unit = "bits/dim"
    divergence: Divergence | None = None
    estimates: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The mean in ``unit``."""
        return self.bits_per_dim if self.unit == "bits/dim" else self.nats

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" +- {self.standard_error:.4f}"
        nats = f"{self.nats:.2f} nats, " if self.unit == "bits/dim" else ""
        divergence = "" if self.divergence is None else f", {self.divergence}"
        examples = "1 example" if self.count == 1 else f"{self.count} examples"
        return f"{self.value:.4f}{error} {self.unit} ({nats}{examples}){divergence}"

    @property
    def report(self) -> str:
        """A line of numbers, and one for each estimate."""
        return "\n  ".join((str(self), *self.estimates))


def bits_per_dim(nats: float, dimensions: int) -> float:
    """``nats / (dimensions log 2)``: the negative log-likelihood of one example in bits per dimension."""
    return nats / (dimensions * log(2))


def in_unit(nats: float, dimensions: int, unit: Unit) -> float:
    """``nats`` of one example in a unit."""
    return bits_per_dim(nats, dimensions) if unit == "bits/dim" else nats


def summarise(log_prob: Tensor, dimensions: int, unit: Unit = "bits/dim", log_true: Tensor | None = None) -> Evaluation:
    """Log-probabilities ``[N]`` in nats of N held-out examples; ``log_true``: the true ones, where they are known.

    Raises ValueError for N = 0 or a NaN.
    """
    if not log_prob.numel():
        raise ValueError("log_prob is empty; at least one example is needed")
    nats = -log_prob.double()
    if nats.isnan().any():
        raise ValueError(f"log_prob has {int(nats.isnan().sum())} NaN of {nats.numel()} values")
    mean = nats.mean().item()
    if len(nats) == 1:
        return Evaluation(bits_per_dim(mean, dimensions), None, mean, 1, unit)
    error = in_unit(nats.std(correction=1).item() / sqrt(len(nats)), dimensions, unit)
    divergence = None if log_true is None else kl_divergence(log_true, log_prob)
    return Evaluation(bits_per_dim(mean, dimensions), error, mean, len(nats), unit, divergence)


def evaluate(model: Model, batches, dimensions: int) -> Evaluation:
    """Bits/dim of ``model.score(x, context)`` over ``batches`` of ``(x, context)``, in eval mode."""
    return summarise(score(model, batches), dimensions)


def score(model: Model, batches) -> Tensor:
    """``model.score(x, context)`` over ``batches`` of ``(x, context)``, in eval mode: float64 ``[N]`` on the CPU."""
    with eval_mode(model), torch.no_grad():
        return torch.cat([model.score(x, context).double().cpu() for x, context in batches])
