"""Counter-based noise: a pure function of its coordinates, so the way of sampling cannot change it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.ops.philox_uniform import philox_uniform


def uniform(seed: int, samples: Tensor, position: int | Tensor, channel: int, draw: int) -> Tensor:
    """Returns the uniform numbers of ``(seed, sample, position, channel, draw)``, float64 in the open interval (0, 1).

    One block of Philox4x32-10 each; ``fastgen.ops.philox_uniform`` tells which, and what it raises. The C++ machine
    computes the same bits.

    Args:
        seed: ``0 <= seed < 2**63``.
        samples: int64 ``[B]``, ``0 <= sample < 2**48``.
        position: one position, or int64 ``[P]``; ``0 <= position < 2**48``.
        channel, draw: below ``2**16``.

    Returns:
        ``[B]``, or ``[B, P]`` for a tensor of positions.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if isinstance(position, Tensor):
        return philox_uniform(seed, samples, position, channel, draw)
    return philox_uniform(seed, samples, torch.tensor([position], device=samples.device), channel, draw)[:, 0]


@dataclass(frozen=True)
class Noise:
    """The noise of one draw: ``channel`` counts from ``channel0``."""

    seed: int
    samples: Tensor
    """int64 ``[B]``: sample indices."""
    position: int
    channel0: int = 0

    def uniform(self, channel: int, draw: int) -> Tensor:
        """Returns float64 ``[B]`` in (0, 1)."""
        return uniform(self.seed, self.samples, self.position, self.channel0 + channel, draw)
