"""Moves numbers by rounding, which gives the floor of every comparison in single precision."""

from __future__ import annotations

import torch
from torch import Tensor


def moved_by_rounding(value):
    """Returns a tensor, or list of tensors, with every number moved by two units in the last place of float32."""
    if isinstance(value, list):
        return [moved_by_rounding(each) for each in value]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value * (1 + 2.0**-22 * (torch.rand_like(value) - 0.5).sign())
