"""The precision that ops compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """float64 if any tensor is, else float32: half precision is for storage and for matrix products."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(dtype) for t in tensors)
