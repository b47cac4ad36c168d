"""The precision that ops compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """float64 if any tensor is, else float32: half precision is for storage and for matrix products."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t if t.dtype == dtype else t.to(dtype) for t in tensors)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """In which products on x's device keep their dtype; one that costs nothing where autocast is off anyhow."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
