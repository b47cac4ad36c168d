"""The floor of what only moves memory: a copy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .interleave import seconds_of


def copy_floor(moved: int) -> Callable[[], float]:
    """A function that copies now: the seconds that it takes to move so many bytes, read and written."""
    source, target = torch.ones(max(moved // 8, 1)), torch.empty(max(moved // 8, 1))
    return lambda: seconds_of(lambda: target.copy_(source))
