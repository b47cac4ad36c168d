"""Keys and values as they lie in the state in formats of less than 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.generate.ir.instructions import BFLOAT16, FLOAT32, Buffer

_MOST = 127


def read_rows(rows: Tensor, buffer: Buffer) -> Tensor:
    """Returns the channels, float32 ``[..., channels]``, of positions as they lie in the state, ``[..., stride]``."""
    if buffer.format == FLOAT32:
        return rows
    rows = rows.contiguous()
    if buffer.format == BFLOAT16:
        return rows.view(torch.bfloat16)[..., : buffer.channels].float()
    groups = buffer.channels // buffer.group
    integers = rows[..., :-groups].contiguous().view(torch.int8)[..., : buffer.channels].float()
    return (integers.unflatten(-1, (groups, -1)) * rows[..., -groups:, None]).flatten(-2)


def rounded_rows(rows: Tensor, channel: int, values: Tensor, buffer: Buffer) -> Tensor:
    """Returns positions ``[..., stride]`` with the values ``[..., n]`` from a channel on rounded into them.

    A bfloat16 is the nearest, ties to even. An int8 is the value over its group's scale, which is the largest size in
    the group over 127, rounded likewise; the values of a group that has an infinity or NaN are NaN.
    """
    rows, last = rows.contiguous(), channel + values.shape[-1]
    if buffer.format == BFLOAT16:
        kept = rows.view(torch.bfloat16).clone()
        kept[..., channel:last] = values.bfloat16()
        return kept.view(torch.float32)
    grouped = values.unflatten(-1, (-1, buffer.group))
    scales = grouped.abs().amax(-1) / _MOST
    regular = (scales > 0) & scales.isfinite()
    integers = torch.where(regular[..., None], (grouped / scales[..., None]).round().clamp(-_MOST, _MOST), 0.0)
    words = -(-buffer.channels // 4)
    kept = rows[..., :words].contiguous().view(torch.int8).clone()
    kept[..., channel:last] = integers.flatten(-2).to(torch.int8)
    factors = rows[..., words:].clone()
    factors[..., channel // buffer.group : last // buffer.group] = scales
    return torch.cat([kept.view(torch.float32), factors], -1)
