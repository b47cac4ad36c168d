"""The recurrent layers of PixelRNN: Row LSTM and Diagonal BiLSTM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.causal.masked_conv import MaskedConv2d
from fastgen.ops.arguments import check_integers
from fastgen.ops.skew_lstm import skew_lstm


class RowLSTM(nn.Module):
    """The Row LSTM: row after row from the top, a convolution of ``taps`` along each (van den Oord et al. 2016a).

    The input's part of the gates is a masked 1 x ``kernel_size`` convolution of all rows at once, the state's part an
    unmasked convolution of the row above, ``skew_lstm``. The context of a pixel is the triangle above it and what the
    masked convolution sees of its row. Mask "A" hides the pixel itself; with ``colours`` 3, it shows a channel the
    colours before its own, and mask "B" also its own.

    x is float [N, channels, H, W]. The result is [N, hidden, H, W] or, with ``residual``, the sum [N, channels, H, W]
    of x and a 1 x 1 convolution of that (the paper's Figure 5).

    Raises:
        ValueError: ``mask`` is not "A" or "B", a number is too small, a kernel size even, the channels cannot be split
            into the colours, ``residual`` with mask "A", or an x of another shape.

    Example:
        >>> RowLSTM(3, 6, "A", colours=3)(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 6, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        mask: str = "B",
        *,
        kernel_size: int = 3,
        taps: int = 3,
        colours: int = 1,
        residual: bool = False,
    ) -> None:
        _check(channels, hidden, colours, mask, residual)
        if taps < 1 or taps % 2 == 0:
            raise ValueError(f"taps must be odd and at least 1, got {taps}")
        super().__init__()
        self.channels = channels
        self.input = MaskedConv2d(channels, 4 * hidden, (1, kernel_size), mask, colours=colours, parts=4)
        self.state = _state_weight(hidden, taps)
        self.up = MaskedConv2d(hidden, channels, 1, "B", colours=colours) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        _check_input(x, self.channels)
        h, _ = skew_lstm(self.input(x), self.state)
        return h if self.up is None else x + self.up(h)


class DiagonalLSTM(nn.Module):
    """The Diagonal BiLSTM: two sweeps over the diagonals that see everything before (van den Oord et al. 2016a).

    The left sweep computes a pixel from its neighbours to the left and above, the right one from those to the right and
    above; the right one's output is shifted down a row, where all that it saw is past, and added. A diagonal is a
    column of the skewed map, so ``skew_lstm`` computes all its pixels at once; outside the image the state is zero.

    The input's part of the gates is a 1 x 1 convolution, masked for the left sweep: mask "B" with ``colours`` 3 shows a
    channel its own colour and those before. Mask "A" hides the pixel itself; since 1 x 1 would then see nothing, its
    kernel is 1 x 3, of which the pixel to the left remains. The right sweep needs no mask.

    x is float [N, channels, H, W]. The result is [N, hidden, H, W] or, with ``residual``, the sum [N, channels, H, W]
    of x and a 1 x 1 convolution of that (the paper's Figure 5).

    Raises:
        ValueError: ``mask`` is not "A" or "B", a number is too small, the channels cannot be split into the colours,
            ``residual`` with mask "A", or an x of another shape.

    Example:
        >>> DiagonalLSTM(16, 8, residual=True)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self, channels: int, hidden: int, mask: str = "B", *, colours: int = 1, residual: bool = False
    ) -> None:
        _check(channels, hidden, colours, mask, residual)
        super().__init__()
        self.channels = channels
        width = 3 if mask == "A" else 1
        self.left_input = MaskedConv2d(channels, 4 * hidden, (1, width), mask, colours=colours, parts=4)
        self.right_input = nn.Conv2d(channels, 4 * hidden, 1)
        self.left_state, self.right_state = _state_weight(hidden, 2), _state_weight(hidden, 2)
        self.up = MaskedConv2d(hidden, channels, 1, "B", colours=colours) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        _check_input(x, self.channels)
        left = _sweep(self.left_input(x), self.left_state)
        right = _sweep(self.right_input(x).flip(-1), self.right_state).flip(-1)
        h = left + F.pad(right, (0, 0, 1, 0))[:, :, :-1]
        return h if self.up is None else x + self.up(h)


def skew(x: Tensor) -> Tensor:
    """[..., H, W] to [..., H, W + H - 1]: row i begins i places later, with zeros around it."""
    height, width = x.shape[-2:]
    wide = width + height - 1
    return F.pad(x, (0, height)).flatten(-2)[..., : height * wide].unflatten(-1, (height, wide))


def unskew(x: Tensor) -> Tensor:
    """Undoes ``skew``: [..., H, W + H - 1] to [..., H, W]."""
    height, wide = x.shape[-2:]
    return F.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, wide + 1))[..., : wide - height + 1]


def _sweep(gates: Tensor, weight: Tensor) -> Tensor:
    """Along the diagonals from the upper left. Gates of zero leave a state of zero as it is."""
    h, _ = skew_lstm(skew(gates).transpose(-1, -2), weight)
    return unskew(h.transpose(-1, -2))


def _state_weight(hidden: int, taps: int) -> nn.Parameter:
    bound = (hidden * taps) ** -0.5
    return nn.Parameter(torch.empty(4 * hidden, hidden, taps).uniform_(-bound, bound))


def _check(channels: int, hidden: int, colours: int, mask: str, residual: bool) -> None:
    check_integers(channels=channels, hidden=hidden, colours=colours)
    if residual and mask == "A":
        raise ValueError(f"mask must be 'B' with residual=True, which adds the pixel, got {mask!r}")


def _check_input(x: Tensor, channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        raise ValueError(f"x must have shape [N, {channels}, H, W], H and W at least 1, got {tuple(x.shape)}")
