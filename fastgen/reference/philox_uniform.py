"""Counter-based uniform noise, in plain PyTorch.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011): ten rounds of two
32 x 32 -> 64 bit products on a counter of four words, under a key of two words. Words are int64 tensors that hold
unsigned 32 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIER0, MULTIPLIER1 = 0xD2511F53, 0xCD9E8D57
WEYL0, WEYL1 = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF


def philox4x32_10(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words from a counter of four words and a key of two; the tensors broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # the product wraps at 64 bits as unsigned arithmetic does; masking undoes the sign of the shift
        p0, p1 = c0 * MULTIPLIER0, c2 * MULTIPLIER1
        c0, c1, c2, c3 = (p1 >> 32 & LOW) ^ c1 ^ k0, p1 & LOW, (p0 >> 32 & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = k0 + WEYL0 & LOW, k1 + WEYL1 & LOW
    return c0, c1, c2, c3


def philox_uniform(seed: int, samples: Tensor, positions: Tensor, channel: int, draw: int) -> Tensor:
    """``u[b, p] = (k + 1/2) / 2**52`` with k the upper 52 bits of ``(word 1, word 0)`` of Philox4x32-10 under

    ::

        key     = (seed low 32, samples[b] low 32)
        counter = (positions[p] low 32, positions[p] next 16 | channel << 16,
                   seed high 32, samples[b] next 16 | draw << 16)

    Args:
        seed: 64 bits.
        samples: int64 [B], taken modulo 2**48.
        positions: int64 [P], taken modulo 2**48.
        channel, draw: 0 <= x < 2**16.

    Returns:
        float64 [B, P], strictly between 0 and 1.
    """
    sample, position = samples[:, None], positions[None, :]
    key = (torch.full_like(sample, seed & LOW), sample & LOW)
    counter = (
        position & LOW,
        position >> 32 & 0xFFFF | channel << 16,
        torch.full_like(sample, seed >> 32 & LOW),
        sample >> 32 & 0xFFFF | draw << 16,
    )
    word0, word1, _, _ = philox4x32_10(counter, key)
    return ((word1 << 20 | word0 >> 12).double() + 0.5) * 2.0**-52


# (seed, samples, positions, channel, draw): sizes 0, 1, primes and 2^n +- 1, every word's extremes
CASES = [
    (0, [0], [0], 0, 0),
    (-1, [-1], [-1], 0xFFFF, 0xFFFF),
    (1 << 62 | 12345, [0, 1, 2, 3, 1 << 31, 1 << 32, (1 << 48) - 1], list(range(13)), 2, 1),
    (-(1 << 63), [5], list(range(1023, 1023 + 257)), 1, 0),
    ((1 << 63) - 1, list(range(127)), [0, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 48) - 1], 0x8000, 0x8000),
    (7, [], [1, 2], 0, 0),
    (7, [1, 2], [], 0, 0),
]
