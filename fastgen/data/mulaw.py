"""Mu-law companding: audio samples as levels, and back."""

from __future__ import annotations

import numpy as np


def encode(samples: np.ndarray, levels: int = 256) -> np.ndarray:
    """Samples in [-1, 1] to levels 0..levels-1, uint8.

    ``f(x) = sign(x) log(1 + mu |x|) / log(1 + mu)`` with ``mu = levels - 1``, rounded to the nearest of ``levels``
    points that divide [-1, 1] evenly. Values outside [-1, 1] are clipped. ITU-T G.711; van den Oord et al. 2016,
    section 2.2.
    """
    mu = levels - 1
    clipped = np.clip(samples.astype(np.float64), -1.0, 1.0)
    companded = np.sign(clipped) * np.log1p(mu * np.abs(clipped)) / np.log1p(mu)
    return np.floor((companded + 1) / 2 * mu + 0.5).astype(np.uint8)


def decode(levels: np.ndarray, count: int = 256) -> np.ndarray:
    """Levels 0..count-1 to samples in [-1, 1], float32: the inverse of ``encode`` at its grid points."""
    mu = count - 1
    companded = 2 * levels.astype(np.float64) / mu - 1
    return (np.sign(companded) * np.expm1(np.abs(companded) * np.log1p(mu)) / mu).astype(np.float32)


def silence(levels: int = 256) -> int:
    """The level of a zero sample."""
    return int(encode(np.zeros(1), levels)[0])
