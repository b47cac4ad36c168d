"""The likelihood under a finished run of one of its splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm
from tyro.conf import Positional

from fastgen.data import load
from fastgen.metrics import Evaluation, score
from fastgen.training.order import seed_evaluation
from fastgen.training.run import load_run
from fastgen.training.scores import summarise_examples


@dataclass(frozen=True)
class EvaluateConfig:
    run: Positional[Path]
    """Run directory that `fastgen train` wrote."""
    split: Literal["train", "validation", "test"] = "test"
    examples: int | None = None
    """At most this many examples, from the first on; without it all."""
    batch_size: int = 64
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.examples is not None and self.examples < 1):
            raise ValueError(f"batch_size and examples must be 1 or more, got {self.batch_size} and {self.examples}")


def evaluate_run(config: EvaluateConfig) -> Evaluation:
    """Bits/dim of levels, nats of vectors in their own units, with the standard error, and what the truth allows.

    It says what of the likelihood is a bound or an estimate. Vectors are standardised as they were in training. Raises
    FileNotFoundError or ValueError for what cannot be read, or for data of another form than the run was trained on.
    """
    run = load_run(config.run)
    dataset = load(run.config.data, like=run.data)
    split = dataset.splits[config.split]
    chosen = torch.arange(min(config.examples or len(split), len(split)))
    parts = tqdm(chosen.split(config.batch_size), desc=config.split, disable=not config.progress)
    batches = (split.batch(indices) for indices in parts)
    scored = ((values, labels if run.config.conditional else None) for values, labels in batches)
    with torch.random.fork_rng(devices=[]):
        seed_evaluation(run.config.seed, rank=0)
        log_prob = score(run.model, scored)
    return replace(summarise_examples(dataset, split, chosen, log_prob), estimates=run.model.estimates())
