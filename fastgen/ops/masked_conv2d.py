"""Masked 2-d convolution: what the mask hides costs nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.registry import Op
from fastgen.reference import masked_conv2d as reference
from fastgen.reference.masked_conv2d import causal_mask, margins_of


def _cropped(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, stride: int, dilation: int) -> Tensor:
    """The rows and columns of the kernel that the mask leaves, handed to the library's convolution.

    It pads alike on both sides, which does for the columns. The rows above are joined on: ``F.pad`` would write all of
    them before it copies x into them.
    """
    height, width = weight.shape[2:]
    left, right, top, _ = margins_of(height, width, dilation)
    if height > 1:
        x = torch.cat([x.new_zeros(*x.shape[:2], top, x.shape[3]), x], 2)
    elif width > 1:
        x = F.pad(x, (left, 0))
    return F.conv2d(x, weight * mask, bias, stride, (0, right), dilation)


OP = Op(
    "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor mask, int stride, int dilation) -> Tensor",
    reference=reference.masked_conv2d,
    composite=_cropped,
    absent={
        "cpu": "oneDNN's dense convolution is the kernel: it is handed the rows that the mask leaves",
        "triton": "cuDNN's dense convolution is the kernel: it is handed the rows that the mask leaves",
    },
)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: str | Tensor,
    colours: int = 1,
    parts: int = 1,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Convolution that sees the rows above and, in its own row, what lies to the left, under zero padding.

    At the centre, mask "A" shows a channel the colours before its own, mask "B" also its own. Channels are ``colours``
    nearly equal runs in the order R, G, B; ``parts`` says that the output is several such runs one after the other (the
    halves of a gate). ``MaskedConv2d.step`` computes one position at a time.

    Args:
        x: float [N, in, H, W].
        weight: [out, in, h // 2 + 1, w]: an h x w kernel, both odd, without the rows below its centre, which nobody
            uses: of one that has them, ``weight[:, :, : h // 2 + 1]``. A kernel of one row, 1 x w, has the columns up
            to its centre: [out, in, 1, w // 2 + 1].
        bias: [out].
        mask: "A", "B", or what ``causal_mask`` made of it once and for all, of weight's shape.

    Returns:
        [N, out, ceil(H / stride), ceil(W / stride)], of the dtype that ``torch.nn.functional.conv2d`` gives, autocast
        included.

    Raises:
        ValueError: a shape or number that does not fit, an unknown mask, channels that cannot be split into colours.

    Reference: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks", ICML 2016.

    Example:
        >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(6, 3, 2, 3)
        >>> masked_conv2d(x, weight, mask="A", colours=3).shape
        torch.Size([2, 6, 8, 8])
    """
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1] or 0 in weight.shape[2:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; they must be [N, in, H, W] and "
            "[out, in, h // 2 + 1, w]"
        )
    height, width = weight.shape[2:]
    if height > 1 and width % 2 == 0:
        raise ValueError(f"weight has {width} columns; a kernel of several rows must have an odd number of them")
    if stride < 1 or dilation < 1:
        raise ValueError(f"stride={stride} and dilation={dilation} must be at least 1")
    if isinstance(mask, str):
        if mask not in ("A", "B"):
            raise ValueError(f'mask={mask!r} must be "A" or "B"')
        mask = causal_mask(mask, tuple(weight.shape), colours, parts).to(weight)
    elif mask.shape != weight.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be that of weight, {tuple(weight.shape)}")
    return OP(x, weight, bias, mask, stride, dilation)
