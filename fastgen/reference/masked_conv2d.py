"""Masked 2-d convolution, in plain PyTorch.

van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks" (2016).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Device = torch.device | str | None


def colour_of(channels: int, colours: int, parts: int = 1, device: Device = None) -> Tensor:
    """Returns each channel's colour, int64 [channels]: ``parts`` equal runs, each of ``colours`` nearly equal runs."""
    if channels % parts or channels // parts < colours:
        raise ValueError(
            f"channels must be parts={parts} equal runs of at least colours={colours} channels, got {channels}"
        )
    return (torch.arange(channels // parts, device=device) * colours // (channels // parts)).repeat(parts)


def causal_mask(kind: str, shape: tuple[int, ...], colours: int, parts: int = 1, device: Device = None) -> Tensor:
    """Returns the mask of a weight [out, in, height, width] whose last row is the centre's: float32, 1 or 0.

    The centre is the middle column; where the kernel has one row, the last.
    """
    out_channels, in_channels, height, width = shape
    source = colour_of(in_channels, colours, device=device)
    target = colour_of(out_channels, colours, parts, device)
    centre = width // 2 if height > 1 else width - 1
    mask = torch.ones(shape, device=device)
    mask[:, :, -1, centre:] = 0
    mask[:, :, -1, centre] = (target[:, None] > source if kind == "A" else target[:, None] >= source).float()
    return mask


def margins_of(height: int, width: int, dilation: int) -> tuple[int, int, int, int]:
    """Returns the zeros to the left, right, top and bottom that keep the size."""
    left = width // 2 if height > 1 else width - 1
    return left * dilation, (width - 1 - left) * dilation, (height - 1) * dilation, 0


def masked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, stride: int, dilation: int) -> Tensor:
    """The square convolution of the paper: the masked weight, rows of zeros below it, zero padding all around.

    Args:
        x: [N, in, H, W].
        weight, mask: [out, in, k // 2 + 1, k]: the rows of a k x k kernel down to its centre. A kernel of one row has
            the columns up to its centre.
    """
    height, width = weight.shape[2:]
    left, right, top, _ = margins_of(height, width, dilation)
    full = F.pad(weight * mask, (0, (left - right) // dilation, 0, height - 1))
    return F.conv2d(x, full, bias, stride, (top, left), dilation)


def _case(n: int, channels: tuple[int, int], size: tuple[int, int], kernel: int, kind: str = "B", **more):
    colours, parts, bias = more.pop("colours", 1), more.pop("parts", 1), more.pop("bias", True)
    rows = more.pop("rows", kernel // 2 + 1)
    width = kernel if rows > 1 else kernel // 2 + 1

    def make(generator: torch.Generator) -> dict:
        source, target = channels
        return {
            "x": torch.randn(n, source, *size, generator=generator),
            "weight": torch.randn(target, source, rows, width, generator=generator),
            "bias": torch.randn(target, generator=generator) if bias else None,
            "mask": kind,
            "colours": colours,
            "parts": parts,
        } | more

    return make


CASES = {
    "small": _case(2, (2, 3), (3, 4), 3),
    "small, mask A, colours, no bias": _case(1, (3, 6), (3, 3), 3, "A", colours=3, parts=2, bias=False),
    "small, one row, strided": _case(1, (2, 2), (2, 5), 3, rows=1, stride=2),
    "none": _case(0, (3, 5), (4, 4), 3),
    "one": _case(1, (1, 1), (1, 1), 1, "A"),
    "7 x 7": _case(2, (3, 16), (9, 11), 7, "A", colours=3),
    "dilated": _case(3, (5, 7), (13, 8), 5, dilation=2),
    "strided": _case(2, (8, 8), (17, 15), 3, stride=2, colours=2),
    "wide": _case(2, (33, 31), (7, 7), 3),
    # images that the compiled kernel takes
    "none of 16 columns": _case(0, (16, 17), (4, 16), 3),
    "one row of 15": _case(2, (17, 19), (1, 15), 5, "A", bias=False),
    "dilated, of primes": _case(3, (17, 23), (19, 31), 5, "A", dilation=2, colours=3),
    "7 x 7 of 32 columns": _case(2, (70, 40), (9, 32), 7, colours=2, parts=2),
    "a high kernel of 43 columns": _case(1, (33, 31), (40, 43), 3, rows=5),
}
