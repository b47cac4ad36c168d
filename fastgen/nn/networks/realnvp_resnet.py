"""RealNVP's conditioner network on images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.normalization.batch_norm import BatchNorm2d
from fastgen.nn.normalization.weight_norm import apply_weight_norm


class ConvResNet(nn.Module):
    """RealNVP's network: ``forward(x, context=None)`` maps [N, inputs, H, W] to [N, outputs, H, W].

    Residual blocks of two 3x3 convolutions, each after batch normalisation and a rectifier; what goes into the blocks
    and what comes out of each goes to the output by 1x1 convolutions. x enters as the positive parts of x and -x. All
    convolutions are weight-normalised; the outputs begin as 0. A context goes in as one number for each channel of the
    first convolution.

    Args:
        inputs, outputs: channels.
        hidden: channels of the blocks.
        blocks: their number.
        context_features: width of a context [N, context_features]; None has none.

    Reference: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017, section 3.7.

    Example:
        >>> ConvResNet(2, 4, hidden=16, blocks=2)(torch.randn(5, 2, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: int = 64, blocks: int = 8, *, context_features: int | None = None
    ) -> None:
        super().__init__()
        self.input_norm = BatchNorm2d(inputs)
        self.first = nn.Conv2d(2 * inputs, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(_block(hidden) for _ in range(blocks))
        self.skips = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in range(blocks + 1))
        self.last_norm = BatchNorm2d(hidden)
        self.last = nn.Conv2d(hidden, outputs, 1)
        apply_weight_norm(self)
        nn.init.zeros_(self.last.parametrizations.weight.original0)
        self.context = None if context_features is None else nn.Linear(context_features, hidden, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.input_norm(x)
        x = self.first(F.relu(torch.cat((x, -x), 1)))
        if self.context is not None:
            x = x + self.context(context)[:, :, None, None]
        total = self.skips[0](x)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            x = x + block(x)
            total = total + skip(x)
        return self.last(F.relu(self.last_norm(total)))


def _block(hidden: int) -> nn.Module:
    return nn.Sequential(
        BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
        BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 3, padding=1),
    )
