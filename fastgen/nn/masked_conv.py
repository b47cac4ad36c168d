"""Masked 2-d convolution: the pixels before, in raster order, and the colours before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def colour_of(channels: int, colours: int, parts: int = 1) -> Tensor:
    """The colour of every channel, int64 [channels]: ``parts`` equal runs, each of ``colours`` nearly equal runs."""
    if channels % parts or channels // parts < colours:
        raise ValueError(f"channels={channels} must be parts={parts} equal runs of at least colours={colours} channels")
    return (torch.arange(channels // parts) * colours // (channels // parts)).repeat(parts)


class MaskedConv2d(nn.Conv2d):
    """Convolution that sees the rows above and, in its own row, what lies to the left (van den Oord et al. 2016a).

    At the centre, mask "A" shows a channel the colours before its own, mask "B" also its own colour. Channels are
    split into ``colours`` runs in the order R, G, B by the rule of ``colour_of``, the same in every layer; ``parts``
    says that the output is several such runs one after the other (the halves of a gate). Zero padding keeps the size:
    input [N, C, H, W], output [N, out_channels, ceil(H / stride), ceil(W / stride)], of the input's dtype.

    The rows below the centre are not stored: a 7 x 7 kernel has a 4 x 7 weight (and a 1 x 7 kernel a 1 x 4 weight).

    Raises:
        ValueError: ``mask`` is not "A" or "B", a kernel size is even, or the channels cannot be split into the colours.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask: str,
        *,
        colours: int = 1,
        parts: int = 1,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if mask not in ("A", "B"):
            raise ValueError(f'mask={mask!r} must be "A" or "B"')
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        rows, left = height // 2 + 1, width // 2
        right = left if height > 1 else 0
        size = (rows, left + 1 + right)
        super().__init__(in_channels, out_channels, size, stride=stride, dilation=dilation, bias=bias)
        self.mask_type, self.colours = mask, colours
        self.margins = (left * dilation, right * dilation, (rows - 1) * dilation, 0)
        source, target = colour_of(in_channels, colours), colour_of(out_channels, colours, parts)
        allowed = target[:, None] > source if mask == "A" else target[:, None] >= source
        visible = torch.ones(out_channels, in_channels, *size)
        visible[:, :, -1, left:] = 0
        visible[:, :, -1, left] = allowed.float()
        self.register_buffer("mask", visible, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, self.margins), self.weight * self.mask, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask_type}, colours={self.colours}"
