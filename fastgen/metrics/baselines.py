"""Trivial baselines: what a model must beat to have learned anything."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.metrics.bits_per_dim import Evaluation, summarise


def histogram_baseline(train: Tensor, held_out: Tensor, levels: int, per_position: bool = True) -> Evaluation:
    """Bits/dim of independent histograms with add-one smoothing, fit on ``train``.

    ``p_d(v) = (count_d(v) + 1) / (N + levels)`` for each dimension d of ``train`` ``[N, *event]``, or one histogram
    for all dimensions together if ``per_position`` is False. ``held_out``: ``[M, *event]`` of the same integers below
    ``levels``.
    """
    if train.shape[1:] != held_out.shape[1:]:
        raise ValueError(
            f"held_out has the event shape {tuple(held_out.shape[1:])}, train has {tuple(train.shape[1:])}"
        )
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
