"""Bits/dim of a finished run on one of its splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm
from tyro.conf import Positional

from fastgen.data import load
from fastgen.metrics import Evaluation, evaluate
from fastgen.training.sampling import load_run


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
            raise ValueError(f"batch_size {self.batch_size}, examples {self.examples}: 1 or more is allowed")


def evaluate_run(config: EvaluateConfig) -> Evaluation:
    """Bits/dim with its standard error. Raises FileNotFoundError or ValueError for what cannot be read."""
    run = load_run(config.run)
    dataset = load(run.config.data)
    split = dataset.splits[config.split]
    chosen = torch.arange(min(config.examples or len(split), len(split))).split(config.batch_size)
    batches = (split.batch(indices) for indices in tqdm(chosen, desc=config.split, disable=not config.progress))
    scored = ((levels, labels if run.config.conditional else None) for levels, labels in batches)
    return evaluate(run.model, scored, dataset.dimensions)
