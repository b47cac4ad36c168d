"""Joins neighbouring views into the tensor that they were cut from."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(parts: list[Tensor]) -> Tensor:
    """Returns the parts concatenated along the last dimension; a view if they are neighbouring views of one tensor.

    Args:
        parts: of one shape, but for the last dimension.

    Example:
        >>> rows = torch.randn(4, 2 * 5).view(4, 2, 5)
        >>> packed([rows[..., :3], rows[..., 3:]]).data_ptr() == rows.data_ptr()
        True
    """
    if not _are_neighbours(parts):
        return torch.cat(parts, -1)
    first = parts[0]
    shape = (*first.shape[:-1], sum(part.shape[-1] for part in parts))
    if not (torch.is_grad_enabled() and any(part.requires_grad for part in parts)):
        return first.as_strided(shape, first.stride())
    base = first._base
    if base is None or not base.is_contiguous() or base.numel() != torch.Size(shape).numel():
        return torch.cat(parts, -1)
    whole = base.view(shape)
    if whole.stride() == first.stride() and all(part._base is base and part.requires_grad for part in parts):
        return whole
    return torch.cat(parts, -1)


def _are_neighbours(parts: list[Tensor]) -> bool:
    """Returns whether each begins in memory where the one before ends, with the strides of one tensor."""
    first = parts[0]
    storage, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != storage or part.storage_offset() != place:
            return False
        if part.stride() != first.stride():
            return False
        place += part.shape[-1] * part.stride(-1)
    return True
