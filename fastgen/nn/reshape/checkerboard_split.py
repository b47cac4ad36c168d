"""A checkerboard's two colours as two images side by side in the channels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.nn.flow.flow_layer import FlowLayer, no_log_det


class CheckerboardSplit(FlowLayer):
    """[N, C, H, W] to [N, 2 C, H, W/2], of log-determinant 0: ``forward(x)`` and ``inverse(y)``.

    The first C channels are the pixels with row + column even, the last C the others; every row keeps its order. A
    coupling that splits the channels of y transforms one colour of the board given the other, and its network computes
    no outputs that a mask would drop.

    Raises:
        ValueError: an odd width, or for ``inverse`` an odd number of channels.

    Reference: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017.

    Example:
        >>> x = torch.tensor([[[[1, 2, 3, 4], [5, 6, 7, 8]]]])
        >>> CheckerboardSplit()(x)[0].tolist()
        [[[[1, 3], [6, 8]], [[2, 4], [5, 7]]]]
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 4 or x.shape[3] % 2:
            raise ValueError(f"x must have shape [N, C, H, W] with W even, got {tuple(x.shape)}")
        return torch.cat(_exchange_odd_rows(x[..., ::2], x[..., 1::2]), 1), no_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if y.dim() != 4 or y.shape[1] % 2:
            raise ValueError(f"y must have shape [N, C, H, W] with C even, got {tuple(y.shape)}")
        return torch.stack(_exchange_odd_rows(*y.chunk(2, 1)), 4).flatten(3), no_log_det(y)


def _exchange_odd_rows(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    odd = (torch.arange(first.shape[2], device=first.device) % 2 == 1)[:, None]
    return torch.where(odd, second, first), torch.where(odd, first, second)
