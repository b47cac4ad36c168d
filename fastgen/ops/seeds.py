"""Seeds for noise: one drawn from PyTorch's generator, many derived from one."""

from __future__ import annotations

import operator

import torch

_WORD = (1 << 64) - 1


def draw_seed() -> int:
    """Draws a seed, -2**63 <= seed < 2**63, from PyTorch's CPU generator."""
    return int(torch.randint(-(1 << 63), (1 << 63) - 1, ()))


def fold_in(seed: int | None, number: int) -> int | None:
    """Derives the seed of part ``number`` (0 or more) by SplitMix64; None for None.

    Reference: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Example:
        >>> fold_in(0, 0)
        7070836379803831727
    """
    if seed is None:
        return None
    seed = seed if isinstance(seed, int) else operator.index(seed)  # NumPy's integers overflow
    mixed = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
    return (mixed ^ (mixed >> 31)) - (1 << 63)
