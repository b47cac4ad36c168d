"""The conditioner network of neural spline flows on images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.networks.mlp import zero_
from fastgen.nn.normalization.batch_norm import BatchNorm2d


class ResidualConvNet(nn.Module):
    """Residual blocks of two 3x3 convolutions: ``forward(x, context=None)`` maps [N, inputs, H, W] to
    [N, outputs, H, W].

    Each convolution of a block comes after batch normalisation and a rectifier; 1x1 convolutions lead into the blocks
    and out of them. A context goes in as one number for each channel before the blocks, and gates what every block
    adds: ``x + block(x) sigmoid(linear(context))``.

    Args:
        inputs, outputs: channels.
        width: channels of the blocks.
        blocks: their number.
        context_features: width of a context [N, context_features]; None has none.
        dropout: before a block's second convolution.
        batch_norm: False leaves the normalisation out.
        zero: begin with outputs of 0.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019, appendix B.

    Example:
        >>> ResidualConvNet(2, 4, width=16)(torch.randn(5, 2, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 96,
        blocks: int = 3,
        *,
        context_features: int | None = None,
        dropout: float = 0.0,
        batch_norm: bool = True,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 1)
        self.blocks = nn.ModuleList(_Block(width, context_features, dropout, batch_norm) for _ in range(blocks))
        self.last = nn.Conv2d(width, outputs, 1)
        self.context = None if context_features is None else nn.Linear(context_features, width, bias=False)
        if zero:
            zero_(self.last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.first(x)
        if self.context is not None:
            x = x + self.context(context)[:, :, None, None]
        for block in self.blocks:
            x = x + block(x, context)
        return self.last(x)


class _Block(nn.Module):
    def __init__(self, width: int, context_features: int | None, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(BatchNorm2d(width) if batch_norm else nn.Identity() for _ in range(2))
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.gate = None if context_features is None else nn.Linear(context_features, width)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.first(F.relu(self.norms[0](x)))
        x = self.second(self.dropout(F.relu(self.norms[1](x))))
        return x if self.gate is None else x * torch.sigmoid(self.gate(context))[:, :, None, None]
