"""Glow's conditioner network on images, and its last convolution, which begins at zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.normalization.act_norm import ActNorm


class EdgeConv2d(nn.Conv2d):
    """A convolution of odd kernel and stride 1 that keeps the size and may see where the image ends.

    ``edge_bias`` adds the convolution of one more channel, which is 1 on the padding and 0 inside; the weight of it is
    ``edge_weight`` [outputs, 1, kernel, kernel]. Weights begin as normal noise of deviation 0.05.

    Args:
        inputs, outputs: channels.
        kernel_size: odd.
        bias: add a number to each channel.
        edge_bias: see above; a kernel of 1 has no use for it.

    Raises:
        ValueError: an even kernel, or one of 1 with ``edge_bias``.

    Example:
        >>> EdgeConv2d(2, 3, edge_bias=True)(torch.randn(5, 2, 8, 8)).shape
        torch.Size([5, 3, 8, 8])
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int = 3, *, bias: bool = True, edge_bias: bool = False
    ) -> None:
        if kernel_size % 2 == 0 or (edge_bias and kernel_size == 1):
            raise ValueError(f"kernel_size must be odd, and greater than 1 with edge_bias, got {kernel_size}")
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)
        self.edge_weight = nn.Parameter(torch.empty(outputs, 1, kernel_size, kernel_size)) if edge_bias else None
        for weight in (self.weight, self.edge_weight):
            if weight is not None:
                nn.init.normal_(weight, std=0.05)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.edge_weight is None:
            return y
        inside = x.new_zeros(1, 1, *x.shape[2:])
        return y + F.conv2d(F.pad(inside, 4 * [self.kernel_size[0] // 2], value=1.0), self.edge_weight)


class ZeroConv2d(nn.Module):
    """A convolution whose outputs begin at 0, with learned logarithms of their scales::

        y = (conv(x) + linear(context)) exp(3 log_scale)

    Args:
        inputs, outputs: channels.
        kernel_size: odd.
        context_features: width of a context [N, context_features]; None has none.
        edge_bias: see ``EdgeConv2d``.

    Reference: Kingma, Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018.

    Example:
        >>> ZeroConv2d(2, 3)(torch.randn(5, 2, 8, 8)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int = 3,
        *,
        context_features: int | None = None,
        edge_bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = EdgeConv2d(inputs, outputs, kernel_size, edge_bias=edge_bias)
        self.context = None if context_features is None else nn.Linear(context_features, outputs, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [N, inputs, H, W] to [N, outputs, H, W]."""
        y = self.conv(x)
        if self.context is not None:
            y = y + self.context(context)[:, :, None, None]
        return y * (3 * self.log_scale).exp()[:, None, None]


class ConvConditioner(nn.Module):
    """Glow's network: ``forward(x, context=None)`` maps [N, inputs, H, W] to [N, outputs, H, W].

    A 3x3 and a 1x1 convolution, each followed by ActNorm and a rectifier, and a 3x3 ``ZeroConv2d``. A context goes in
    as one number for each channel of the first convolution.

    Args:
        inputs, outputs: channels.
        hidden: channels of the two hidden layers.
        context_features: width of a context [N, context_features]; None has none.
        edge_bias: of the 3x3 convolutions; see ``EdgeConv2d``.

    Reference: Kingma, Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018.

    Example:
        >>> ConvConditioner(2, 4, hidden=16)(torch.randn(5, 2, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int = 512,
        *,
        context_features: int | None = None,
        edge_bias: bool = False,
    ) -> None:
        super().__init__()
        self.first = EdgeConv2d(inputs, hidden, bias=False, edge_bias=edge_bias)
        self.context = None if context_features is None else nn.Linear(context_features, hidden, bias=False)
        self.first_norm = ActNorm(hidden)
        self.second = EdgeConv2d(hidden, hidden, 1, bias=False)
        self.second_norm = ActNorm(hidden)
        self.last = ZeroConv2d(hidden, outputs, edge_bias=edge_bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.first(x)
        if self.context is not None:
            x = x + self.context(context)[:, :, None, None]
        x = F.relu(self.first_norm(x)[0])
        return self.last(F.relu(self.second_norm(self.second(x))[0]))
