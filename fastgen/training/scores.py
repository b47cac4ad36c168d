"""Scores of a dataset's examples: in which unit, against which truth, against which trivial baseline."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastgen.data import Dataset, Split
from fastgen.metrics import Evaluation, Unit, gaussian_baseline, histogram_baseline, summarise


def unit(dataset: Dataset) -> Unit:
    """Bits/dim for levels, nats for real vectors."""
    return "bits/dim" if dataset.levels else "nats"


def summarise_examples(dataset: Dataset, split: Split, indices: Tensor, log_prob: Tensor) -> Evaluation:
    """The mean of log-probabilities ``[N]`` of the examples at ``indices``, for vectors in the data's own units.

    With the divergence from the true density, where that is known.
    """
    log_true = None
    if dataset.log_density is not None:
        log_true = dataset.log_density(dataset.standardization.undo(split.values[indices]))
    return summarise(dataset.in_own_units(log_prob), dataset.dimensions, unit(dataset), log_true)


def baseline(dataset: Dataset, kind: Literal["histogram", "gaussian"]) -> tuple[Evaluation, str]:
    """Returns the likelihood of the test split under a trivial model, and that model's name.

    Args:
        kind: "gaussian", of full covariance, or "histogram": of images one a pixel, of audio one for all.
    """
    train, test = dataset.splits["train"], dataset.splits["test"]
    if kind == "gaussian":
        gaussian = gaussian_baseline(train.values, test.values, dataset.levels)
        return summarise_examples(dataset, test, torch.arange(len(test)), gaussian.log_prob), gaussian.name
    per_position = dataset.kind == "image"
    scored = histogram_baseline(train.values, test.values, dataset.levels, per_position)
    return scored, "independent histogram of each pixel" if per_position else "histogram of all samples"
