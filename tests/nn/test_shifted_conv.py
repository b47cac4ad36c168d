"""The shifted convolutions against the textbook: pad, convolve, then move the output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgen.nn import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    GatedResnet,
    concat_elu,
    down_shift,
    right_shift,
)

SIZES = [(2, 2), (5, 3), (8, 8)]


def image(channels: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, channels, *size, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", [(1, 3), (2, 3), (3, 5)])
def test_down_shift(kernel, size):
    layer = DownShiftedConv2d(3, 4, kernel).double()
    x = image(3, size)
    y = F.conv2d(F.pad(x, (kernel[1] // 2, kernel[1] // 2, kernel[0] - 1, 0)), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(down_shift(layer(x)), F.pad(y, (0, 0, 1, 0))[:, :, :-1])
    assert (down_shift(layer(x))[:, :, 0] == 0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", [(2, 1), (2, 2), (3, 3)])
def test_right_shift(kernel, size):
    layer = DownRightShiftedConv2d(3, 4, kernel).double()
    x = image(3, size)
    y = F.conv2d(F.pad(x, (kernel[1] - 1, 0, kernel[0] - 1, 0)), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(right_shift(layer(x)), F.pad(y, (1, 0))[:, :, :, :-1])
    assert (right_shift(layer(x))[:, :, :, 0] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
def test_transposed_convolutions_are_the_cropped_ones(size):
    """Public code computes a larger output and crops it."""
    h, w = 2 * size[0], 2 * size[1]
    x = image(3, size)
    down, right = DownShiftedConvTranspose2d(3, 4).double(), DownRightShiftedConvTranspose2d(3, 4).double()
    full = F.conv_transpose2d(x, down.weight, down.bias, stride=2, output_padding=1)
    torch.testing.assert_close(down(x), full[:, :, :h, 1 : w + 1])
    full = F.conv_transpose2d(x, right.weight, right.bias, stride=2, output_padding=1)
    torch.testing.assert_close(right(x), full[:, :, :h, :w])


@pytest.mark.parametrize("layer", [DownShiftedConv2d, DownRightShiftedConv2d])
@pytest.mark.parametrize("size", [(2, 2), (8, 6)])
def test_stride_halves_the_image(layer, size):
    assert layer(3, 4, stride=2)(torch.zeros(1, 3, *size)).shape == (1, 4, size[0] // 2, size[1] // 2)


def test_concat_elu():
    x = image(3, (2, 2))
    torch.testing.assert_close(concat_elu(x), torch.cat([F.elu(x), F.elu(-x)], 1))


def test_gated_resnet_without_its_output_is_the_identity():
    block = GatedResnet(3, DownShiftedConv2d, skip_channels=2).double()
    with torch.no_grad():
        block.conv_output.weight.zero_()
        block.conv_output.bias.zero_()
    x = image(3, (4, 4))
    torch.testing.assert_close(block(x, image(2, (4, 4))), x, rtol=0, atol=0)
    condition = torch.randn(2, 6, dtype=torch.float64)
    a, b = condition.chunk(2, 1)
    wanted = x + (a * b.sigmoid())[:, :, None, None]
    torch.testing.assert_close(block(x, image(2, (4, 4)), condition), wanted)


def test_an_even_width_is_refused():
    with pytest.raises(ValueError, match="kernel_size"):
        DownShiftedConv2d(1, 1, (2, 2))
