"""Trivial baselines: what a model must beat to have learned anything."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from fastgen.metrics.bits_per_dim import Evaluation, summarise


def histogram_baseline(train: Tensor, held_out: Tensor, levels: int, per_position: bool = True) -> Evaluation:
    """Bits/dim of independent histograms with add-one smoothing, fit on ``train``.

    ``p_d(v) = (count_d(v) + 1) / (N + levels)`` for each dimension d of ``train`` ``[N, *event]``, or one histogram
    for all dimensions together if ``per_position`` is False. ``held_out``: ``[M, *event]`` of the same integers below
    ``levels``.
    """
    _check_events(train, held_out)
    fit, scored = train.flatten(1), held_out.flatten(1)
    dimensions = fit.shape[1]
    cells = torch.arange(dimensions) * levels if per_position else torch.zeros(dimensions, dtype=torch.int64)
    size = levels * (dimensions if per_position else 1)
    counts = torch.zeros(size, dtype=torch.int64)
    for part in fit.split(4096):
        counts += torch.bincount((part.long() + cells).flatten(), minlength=size)
    table = (counts.double().reshape(-1, levels) + 1).log()
    table -= table.logsumexp(1, keepdim=True)
    log_prob = torch.cat([table.flatten()[part.long() + cells].sum(1) for part in scored.split(4096)])
    return summarise(log_prob, dimensions)


@dataclass(frozen=True)
class GaussianBaseline:
    """``evaluation`` of the fit; ``shrinkage`` 0, or what made a singular covariance regular, or 1 where only the
    diagonal is taken."""

    evaluation: Evaluation
    log_prob: Tensor
    shrinkage: float

    @property
    def name(self) -> str:
        if self.shrinkage == 1:
            return "Gaussian of diagonal covariance (no more examples than dimensions)"
        shrunk = f", shrunk by {self.shrinkage:g} towards its diagonal" if self.shrinkage else ""
        return f"Gaussian of full covariance{shrunk}"


SHRINKAGE = 1e-6


def gaussian_baseline(train: Tensor, held_out: Tensor, levels: int = 0) -> GaussianBaseline:
    """A Gaussian of full covariance with the mean and the covariance of ``train``, scored on ``held_out``.

    Real numbers (``levels`` 0), ``train`` ``[N, *event]`` and ``held_out`` ``[M, *event]``: the log-density in nats.

    Integers below ``levels`` are dequantized, ``x = v + u`` with u uniform on [0, 1), for the fit and the score, and
    both are exact, without a draw: with m and C those of v, the fit has the mean ``m + 1/2`` and the covariance
    ``S = C + I / 12``, and the score is the bound

        log P(v) >= E_u log N(v + u) = log N(v + 1/2; m + 1/2, S) - tr(S^-1) / 24

    in bits/dim. Where the covariance of real numbers is singular to float64, ``(1 - s) C + s diag(C)`` is taken instead
    with the shrinkage s = 1e-6. No more examples than dimensions say nothing of some directions: s is 1 then.

    Raises ValueError for shapes that differ, or a dimension of real numbers that is constant in ``train``.
    """
    _check_events(train, held_out)
    fit, scored = train.flatten(1).double(), held_out.flatten(1).double()
    dimensions = fit.shape[1]
    mean = fit.mean(0)
    covariance = torch.cov(fit.T, correction=0).reshape(dimensions, dimensions)
    noise = 1 / 12 if levels else 0.0  # the variance of u
    covariance.diagonal().add_(noise)
    deviations = covariance.diagonal().sqrt()
    if (deviations == 0).any():
        raise ValueError(f"train is constant in dimension {int((deviations == 0).nonzero()[0])}; it has no density")
    shrinkage = 1.0 if len(fit) <= dimensions else 0.0
    if not shrinkage:
        spectrum = torch.linalg.eigvalsh(covariance / deviations.outer(deviations))
        shrinkage = SHRINKAGE if spectrum[0] <= dimensions * torch.finfo(torch.float64).eps * spectrum[-1] else 0.0
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().diag()
    factor = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(factor, (scored - mean).T, upper=False)
    precision_trace = torch.cholesky_inverse(factor).trace()
    constant = factor.diagonal().log().sum() + dimensions * log(2 * pi) / 2 + noise * precision_trace / 2
    log_prob = -whitened.square().sum(0) / 2 - constant
    return GaussianBaseline(summarise(log_prob, dimensions, "bits/dim" if levels else "nats"), log_prob, shrinkage)


def _check_events(train: Tensor, held_out: Tensor) -> None:
    if train.shape[1:] != held_out.shape[1:]:
        raise ValueError(
            f"held_out has the event shape {tuple(held_out.shape[1:])}, train has {tuple(train.shape[1:])}"
        )
