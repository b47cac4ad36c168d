"""Columns of mean 0 and variance 1."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardization:
    """``standardised = (value - mean) / scale`` of each of D columns."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def log_det(self) -> float:
        """Log-determinant of standardising: ``log p(value) = log p(standardised) + log_det``."""
        return -sum(map(log, self.scale))

    def apply(self, values: Tensor) -> Tensor:
        """Values ``[N, D]`` in the data's own units, standardised: float32, from float64 arithmetic."""
        return ((values.double() - _row(self.mean)) / _row(self.scale)).float()

    def undo(self, standardised: Tensor) -> Tensor:
        """Standardised values ``[N, D]`` in the data's own units, float64."""
        return standardised.double().cpu() * _row(self.scale) + _row(self.mean)


def _row(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
