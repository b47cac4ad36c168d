"""Masked 2-d convolution that skips masked weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.arguments import check_reach
from fastgen.ops.autograd import backward_of, differentiable, loop
from fastgen.ops.precision import without_autocast
from fastgen.ops.registry import Op
from fastgen.reference import masked_conv2d as reference
from fastgen.reference.masked_conv2d import causal_mask, margins_of

_ARGUMENTS = "Tensor x, Tensor weight, Tensor bias, Tensor seen, int dilation"
_LANES, _LEAST_CHANNELS, _MOST_PAIRS = 16, 16, 1 << 15
"""The kernel's vectors lie along a row; channels from which, and pairs of them up to which, it was measured to win."""


def _plain(x: Tensor, weight: Tensor, bias: Tensor, seen: Tensor, dilation: int) -> Tensor:
    with without_autocast(x):
        return reference.masked_conv2d(x, weight, bias, seen, 1, dilation)


TAPS = Op(
    f"masked_conv2d_taps({_ARGUMENTS}) -> Tensor",
    _plain,
    lambda x, weight, *_: x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:]),
    absent={"triton": "cuDNN's dense convolution is the kernel: it is handed the rows that the mask leaves"},
    part_of="masked_conv2d",
)
TAPS_BACKWARD = Op(
    f"masked_conv2d_taps_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    backward_of(_plain, 1),
    lambda grad, *arguments: tuple(t.new_empty(t.shape) for t in arguments[:3]),
    absent=TAPS.absent,
    part_of="masked_conv2d",
)
_by_taps = differentiable(TAPS, TAPS_BACKWARD, loop)
_COMPILED = all(op.refusal("cpu", "cpu") is None for op in (TAPS, TAPS_BACKWARD))


def _has_kernel(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Returns whether the compiled kernel takes the call and is faster: some taps masked, its vectors nearly full."""
    if torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return False  # who looks into the op finds PyTorch's own
    if not _COMPILED or stride > 1 or weight.shape[2] == 1 or x.device.type != "cpu":
        return False
    outputs, channels, width = *weight.shape[:2], x.shape[3]
    if min(outputs, channels) < _LEAST_CHANNELS or outputs * channels > _MOST_PAIRS or 8 * (-width % _LANES) > width:
        return False
    known = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    return known and not torch.is_autocast_enabled("cpu")


def _composed(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, stride: int, dilation: int) -> Tensor:
    if _has_kernel(x, weight, stride):
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        return _by_taps(x, weight * mask, bias, mask != 0, dilation)
    return _cropped(x, weight, bias, mask, stride, dilation)


def _cropped(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, stride: int, dilation: int) -> Tensor:
    """Crops the kernel to the rows and columns that the mask leaves, and calls PyTorch's convolution.

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
    composite=_composed,
    absent={
        "cpu": "of two: at stride 1 a kernel that multiplies by the taps which the mask leaves, elsewhere oneDNN's "
        "dense convolution of the rows that it leaves",
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
    """Convolution that sees the rows above and, in its own row, the pixels to the left, with zero padding.

    Masked weights cost nothing: on the CPU a kernel multiplies only by the taps that some output sees, bitwise the same
    for any number of threads (stride 1, float32 or float64, from 16 channels to 128 x 256 pairs of them, images 14 to
    16, 28 to 32, ... wide); otherwise PyTorch convolves with the rows of the kernel that the mask leaves.

    At the centre, mask "A" shows a channel the colours before its own, mask "B" also its own. Channels are ``colours``
    nearly equal runs in the order R, G, B; ``parts`` says that the output is several such runs one after the other (the
    halves of a gate). ``MaskedConv2d.step`` computes one position at a time.

    Args:
        x: float [N, in, H, W].
        weight: [out, in, h // 2 + 1, w]: an h x w kernel, both odd, without the unused rows below its centre,
            that is ``weight[:, :, : h // 2 + 1]`` of a whole one. A kernel of one row, 1 x w, has the columns up
            to its centre: [out, in, 1, w // 2 + 1].
        bias: [out].
        mask: "A", "B", or the mask that ``causal_mask`` returns, of weight's shape.

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
            f"x and weight must have shapes [N, in, H, W] and [out, in, h // 2 + 1, w], got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    height, width = weight.shape[2:]
    if height > 1 and width % 2 == 0:
        raise ValueError(f"weight must have an odd number of columns where it has several rows, got {width}")
    if stride < 1 or dilation < 1:
        raise ValueError(f"stride and dilation must be at least 1, got {stride} and {dilation}")
    check_reach(dilation, max(height, width))
    if isinstance(mask, str):
        if mask not in ("A", "B"):
            raise ValueError(f'mask must be "A", "B" or a tensor, got {mask!r}')
        mask = causal_mask(mask, tuple(weight.shape), colours, parts).to(weight)
    elif mask.shape != weight.shape:
        raise ValueError(f"mask must have the shape of weight, {tuple(weight.shape)}, got {tuple(mask.shape)}")
    return OP(x, weight, bias, mask, stride, dilation)
