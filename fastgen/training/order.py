"""The order of the training data: a function of seed and step, so that a resumed run needs no state to continue it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class DataOrder:
    """Shuffled epochs, one after the other; step s takes the ``batch_size`` examples from ``s * batch_size`` on.

    Every example occurs once an epoch. A batch may span two epochs, so none is ever short.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> Tensor:
        """The indices of step ``step``, int64 ``[batch_size]``."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(places, self.count)
        needed = range(epochs[0], epochs[-1] + 1)
        self._epochs = {
            epoch: self._epochs[epoch] if epoch in self._epochs else self._shuffle(epoch) for epoch in needed
        }
        return torch.from_numpy(np.array([self._epochs[e][o] for e, o in zip(epochs, offsets, strict=True)]))

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's generators (dropout, dequantization) for one step of one process, whatever happened before."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def seed_evaluation(seed: int, rank: int) -> None:
    """Seeds torch's generators for an evaluation, so that every one of a run dequantizes by the same noise."""
    seed_step(seed, 0, rank)
