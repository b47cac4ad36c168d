"""The shifted convolutions of PixelCNN++ (Salimans et al. 2017) and their gated residual block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops.arguments import check_integers


def concat_elu(x: Tensor) -> Tensor:
    """``elu([x, -x])`` along the channels: [N, C, H, W] to [N, 2C, H, W]."""
    return F.elu(torch.cat([x, -x], dim=1))


def down_shift(x: Tensor) -> Tensor:
    """Moves [N, C, H, W] down by one row; row 0 is zero (after a convolution with bias: it has no bias either)."""
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))


def right_shift(x: Tensor) -> Tensor:
    """Moves [N, C, H, W] right by one column; column 0 is zero."""
    return F.pad(x[:, :, :, :-1], (1, 0))


class DownShiftedConv2d(nn.Conv2d):
    """Sees its own row and the rows above, left and right alike; ``down_shift`` then leaves out its own row.

    Input [N, C, H, W], output [N, out_channels, H / stride, W / stride], of the input's dtype.

    Raises:
        ValueError: a kernel of even width.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int] = (2, 3), *, stride: int = 1
    ) -> None:
        check_integers(stride=stride)
        height, width = kernel_size
        if width % 2 == 0:
            raise ValueError(f"kernel_size must have an odd width, got {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        self.margins = (width // 2, width // 2, height - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margins))


class DownRightShiftedConv2d(nn.Conv2d):
    """Sees its own pixel, what is to the left and what is above; ``right_shift`` then leaves out its own column.

    Input [N, C, H, W], output [N, out_channels, H / stride, W / stride], of the input's dtype.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int] = (2, 2), *, stride: int = 1
    ) -> None:
        check_integers(stride=stride)
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        self.margins = (kernel_size[1] - 1, 0, kernel_size[0] - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margins))


class DownShiftedConvTranspose2d(nn.ConvTranspose2d):
    """The stride-2 transpose of a 2 x 3 ``DownShiftedConv2d``: [N, C, H, W] to [N, out_channels, 2H, 2W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (2, 3), stride=2, padding=(0, 1), output_padding=(0, 1))


class DownRightShiftedConvTranspose2d(nn.ConvTranspose2d):
    """The stride-2 transpose of a 2 x 2 ``DownRightShiftedConv2d``: [N, C, H, W] to [N, out_channels, 2H, 2W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (2, 2), stride=2)


class GatedResnet(nn.Module):
    """``x + a sigmoid(b)`` with ``(a, b) = conv(drop(f(conv(f(x)) + W f(skip)))) + condition`` and f = concat-ELU.

    ``convolution`` makes the 3 x 3-like convolutions from (in_channels, out_channels). Input [N, C, H, W], skip
    [N, skip_channels, H, W], condition [N, 2C] or None; output [N, C, H, W].
    """

    def __init__(
        self, channels: int, convolution: type[nn.Conv2d], skip_channels: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv_input = convolution(2 * channels, channels)
        self.skip = nn.Conv2d(2 * skip_channels, channels, 1) if skip_channels else None
        self.dropout = nn.Dropout(dropout)
        self.conv_output = convolution(2 * channels, 2 * channels)

    def forward(self, x: Tensor, skip: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        h = self.conv_input(concat_elu(x))
        if self.skip is not None:
            h = h + self.skip(concat_elu(skip))
        h = self.conv_output(self.dropout(concat_elu(h)))
        if condition is not None:
            h = h + condition[:, :, None, None]
        a, b = h.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)
