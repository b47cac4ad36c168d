"""Space to channels, as multi-scale flows do it, and the mask of a checkerboard."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.nn.flow.flow_layer import FlowLayer, no_log_det

ORDERS = ("glow", "realnvp")
_CORNERS = (0, 3, 1, 2)  # of a square of 2 x 2, row by row: the diagonal, then the other


class Squeeze2d(FlowLayer):
    """[N, C, H, W] to [N, 4 C, H/2, W/2], of log-determinant 0: ``forward(x)`` and ``inverse(y)``.

    Args:
        order: of the new channels. "glow": the four pixels of a square side by side for each old channel, row by row.
            "realnvp": the upper left pixel of all old channels, the lower right one, the upper right, the lower left,
            so that the first half of the channels is one colour of a checkerboard.

    Raises:
        ValueError: an unknown order; an odd height or width, or for ``inverse`` channels that are no multiple of 4.

    References: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017; Kingma, Dhariwal, "Glow",
    NeurIPS 2018.

    Example:
        >>> x = torch.tensor([[[[1, 2], [3, 4]], [[10, 20], [30, 40]]]])
        >>> Squeeze2d("realnvp")(x)[0].flatten().tolist()
        [1, 10, 4, 40, 2, 20, 3, 30]
    """

    def __init__(self, order: str = "glow") -> None:
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")
        self.order = order

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"x must have shape [N, C, H, W] with H and W even, got {tuple(x.shape)}")
        y = _unshuffle(x)
        if self.order == "realnvp":
            corners = y.unflatten(1, (x.shape[1], 4)).unbind(2)
            y = torch.cat([corners[i] for i in _CORNERS], 1)
        return y, no_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if y.dim() != 4 or y.shape[1] % 4:
            raise ValueError(f"y must have shape [N, C, H, W] with C a multiple of 4, got {tuple(y.shape)}")
        x = y
        if self.order == "realnvp":
            corners = y.chunk(4, 1)
            x = torch.stack([corners[_CORNERS.index(i)] for i in range(4)], 2).flatten(1, 2)
        return _shuffle(x), no_log_det(y)

    def extra_repr(self) -> str:
        return f"{self.order!r}"


def _unshuffle(x: Tensor) -> Tensor:
    """``F.pixel_unshuffle`` of factor 2, also of a batch of none, which that leaves as it is."""
    squares = x.unflatten(3, (x.shape[3] // 2, 2)).unflatten(2, (x.shape[2] // 2, 2))
    return squares.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def _shuffle(y: Tensor) -> Tensor:
    squares = y.unflatten(1, (y.shape[1] // 4, 2, 2)).permute(0, 1, 4, 2, 5, 3)
    return squares.flatten(4, 5).flatten(2, 3)


def checkerboard_mask(height: int, width: int, *, flip: bool = False) -> Tensor:
    """[1, height, width] of 1 where row + column is even, of 0 elsewhere; ``flip`` exchanges them.

    Example:
        >>> checkerboard_mask(2, 3)
        tensor([[[1., 0., 1.],
                 [0., 1., 0.]]])
    """
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity if flip else 1 - parity)[None].float()
