"""The floor of what only moves memory: a copy."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def copy_floor(moved: int) -> Callable[[], float]:
    """A function that makes copies now: the seconds of the best of three that move so many bytes, read and written."""
    source, target = torch.ones(max(moved // 8, 1)), torch.empty(max(moved // 8, 1))

    def seconds() -> float:
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            target.copy_(source)
            taken.append(time.perf_counter() - begin)
        return min(taken)

    return seconds
