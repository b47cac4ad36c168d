"""The floor of an operation that only moves memory: a copy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .interleave import seconds_of


def copy_floor(moved: int) -> Callable[[], float]:
    """Returns a function that measures the seconds of a copy that moves so many bytes, read and written."""
    source, target = torch.ones(max(moved // 8, 1)), torch.empty(max(moved // 8, 1))
    return lambda: seconds_of(lambda: target.copy_(source))
