"""Masked 2-d convolution: the pixels before, in raster order, and the colours before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgen.nn.derived_buffers import DerivedBuffers
from fastgen.ops.arguments import check_integers
from fastgen.ops.masked_conv2d import masked_conv2d
from fastgen.reference.masked_conv2d import causal_mask, margins_of


class MaskedConvState(NamedTuple):
    """The state of ``MaskedConv2d.step``: the positions before.

    ``rows`` [N, in_channels, rows, width + margins]; the last row is that of the next position, which is ``column``.
    """

    rows: Tensor
    column: int


class MaskedConv2d(DerivedBuffers, nn.Conv2d):
    """Convolution that sees the rows above and, in its own row, what lies to the left (van den Oord et al. 2016a).

    At the centre, mask "A" shows a channel the colours before its own, mask "B" also its own colour. Channels are
    split into ``colours`` nearly equal runs in the order R, G, B, the same in every layer; ``parts``
    says that the output is several such runs one after the other (the halves of a gate). Zero padding keeps the size:
    input [N, C, H, W], output [N, out_channels, ceil(H / stride), ceil(W / stride)], of the input's dtype.

    The rows below the centre are not stored: a 7 x 7 kernel has a 4 x 7 weight (and a 1 x 7 kernel a 1 x 4 weight).
    ``step`` computes one position at a time, for a loop of your own.

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
        height, width = kernel_size if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
        for size in (height, width):
            check_integers(kernel_size=size)
        check_integers(colours=colours, parts=parts, stride=stride, dilation=dilation)
        if mask not in ("A", "B"):
            raise ValueError(f"mask must be 'A' or 'B', got {mask!r}")
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        size = (height // 2 + 1, width if height > 1 else width // 2 + 1)
        super().__init__(in_channels, out_channels, size, stride=stride, dilation=dilation, bias=bias)
        self.mask_type, self.colours, self.parts = mask, colours, parts
        self.derive()

    def derived(self) -> dict[str, Tensor]:
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        mask = causal_mask(self.mask_type, shape, self.colours, self.parts, self.weight.device)
        return {"mask": mask.to(self.weight.dtype)}

    def forward(self, x: Tensor) -> Tensor:
        return masked_conv2d(
            x, self.weight, self.bias, mask=self.mask, stride=self.stride[0], dilation=self.dilation[0]
        )

    def initial_state(self, n: int, width: int) -> MaskedConvState:
        """The state before the first position of images [n, in_channels, any height, width]."""
        left, right, top, _ = self._margins()
        return MaskedConvState(self.weight.new_zeros(n, self.in_channels, top + 1, left + width + right), 0)

    def step(self, x: Tensor, state: MaskedConvState) -> tuple[Tensor, MaskedConvState]:
        """The output [N, out_channels] at the next position in raster order, where the input is x [N, in_channels].

        What the mask hides of x may be anything: of mask "A" with one colour, all of it. Steps of a whole image, one
        after the other, give what ``forward`` gives of it.

        Raises:
            ValueError: the layer has a stride, or x is not [N, in_channels].
        """
        if self.stride != (1, 1):
            raise ValueError(f"stride must be 1 for step, got {self.stride}")
        if x.shape != state.rows.shape[:2]:
            raise ValueError(f"x must have shape {tuple(state.rows.shape[:2])}, got {tuple(x.shape)}")
        left, right, _, _ = self._margins()
        rows, column = state.rows.clone(), state.column
        rows[:, :, -1, left + column] = x
        window = rows[:, :, :: self.dilation[0], column : column + left + right + 1 : self.dilation[1]]
        y = torch.einsum("ncij,ocij->no", window, self.weight * self.mask)
        if column + 1 == rows.shape[3] - left - right:
            rows = torch.cat([rows[:, :, 1:], torch.zeros_like(rows[:, :, :1])], 2)
            column = -1
        return y if self.bias is None else y + self.bias, MaskedConvState(rows, column + 1)

    def _margins(self) -> tuple[int, int, int, int]:
        return margins_of(*self.weight.shape[2:], self.dilation[0])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask_type}, colours={self.colours}"
