"""The precision that ops compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Converts to float64 if any tensor is, else to float32: half precision is for storage and matrix products."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t if t.dtype == dtype else t.to(dtype) for t in tensors)


def is_autocast(x: Tensor) -> bool:
    """Returns whether autocast is enabled on x's device; the meta device has no autocast."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Disables autocast on x's device; costs nothing where it is disabled already."""
    return torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext()
