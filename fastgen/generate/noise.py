"""Counter-based noise: the same numbers whatever the batch, the slot, the thread, the machine or the way of sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_BOUNDS = {"samples": 1 << 48, "position": 1 << 48, "channel": 1 << 16, "draw": 1 << 16}


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10: a bijection of four 32-bit words, chosen by a key of two.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). Words are int64 tensors with values in
    ``[0, 2**32)``, of shapes that broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit product may wrap to a negative number; the mask after the arithmetic shift recovers its upper word.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) & _MASK ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, samples: Tensor, position: Tensor | int, channel: Tensor | int, draw: Tensor | int) -> Tensor:
    """The uniform number of ``(seed, sample, position, channel, draw)``: float64 in the open interval (0, 1).

    The last four are int64 tensors or integers whose shapes broadcast to the result's. One Philox4x32-10 block each, with

        key     = (seed low 32, sample low 32)
        counter = (position low 32, position high 16 | channel << 16, seed high 32, sample high 16 | draw << 16),

    which is one to one for a seed of 64 bits, ``samples`` and ``position`` below 2**48, ``channel`` and ``draw`` below
    2**16. The number is ``(k + 1/2) / 2**52`` with k the upper 52 bits of (word 1, word 0): exact, and never 0 or 1.
    ``csrc/common/philox.h`` computes the same bits.

    Raises:
        ValueError: an argument is negative or too large for its field.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; it must be in 0 .. 2**64 - 1")
    arguments = dict(zip(_BOUNDS, (samples, position, channel, draw), strict=True))
    for name, bound in _BOUNDS.items():
        value = torch.as_tensor(arguments[name], device=samples.device)
        if value.dtype != torch.int64:
            raise ValueError(f"{name} has dtype {value.dtype}; it must be torch.int64")
        if value.numel() and not (0 <= value.min() and value.max() < bound):
            raise ValueError(f"{name} has values in {int(value.min())} .. {int(value.max())}; they must be in 0 .. {bound - 1}")
        arguments[name] = value
    samples, position, channel, draw = arguments.values()
    counter = (
        position & _MASK,
        (position >> 32) | (channel << 16),
        torch.tensor(seed >> 32, device=samples.device),
        (samples >> 32) | (draw << 16),
    )
    low, high, _, _ = philox4x32(counter, (torch.tensor(seed & _MASK, device=samples.device), samples & _MASK))
    return (((high << 20) | (low >> 12)).double() + 0.5) * 2.0**-52


@dataclass(frozen=True)
class Noise:
    """The noise of one draw: ``channel`` counts from ``channel0``."""

    seed: int
    samples: Tensor
    """int64 ``[B]``: sample indices."""
    position: int
    channel0: int = 0

    def uniform(self, channel: int, draw: int) -> Tensor:
        """float64 ``[B]`` in (0, 1)."""
        return uniform(self.seed, self.samples, self.position, self.channel0 + channel, draw)
