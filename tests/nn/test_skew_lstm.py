from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.nn import DiagonalLSTM, RowLSTM
from fastgen.nn.causal.skew_lstm import skew, unskew

H, W = 4, 5
LAYERS = [RowLSTM, DiagonalLSTM]


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, o, g = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def by_pixel(gates: Tensor, weight: Tensor, neighbours: list[tuple[int, int]]) -> Tensor:
    """One pixel after the other. Tap t reads the pixel at ``neighbours[t]``; c comes from tap k // 2."""
    n, wide, height, width = gates.shape
    nothing = gates.new_zeros(n, wide // 4)
    h, c = {}, {}
    for i in range(height):
        for j in range(width):
            near = [(i + down, j + right) for down, right in neighbours]
            pre = gates[:, :, i, j]
            for tap, pixel in enumerate(near):
                pre = pre + h.get(pixel, nothing) @ weight[:, :, tap].T
            h[i, j], c[i, j] = cell(pre, c.get(near[len(near) // 2], nothing))
    rows = [torch.stack([h[i, j] for j in range(width)], -1) for i in range(height)]
    return torch.stack(rows, 2)


@pytest.mark.parametrize("size", [(H, W), (1, 4), (5, 1), (1, 1)])
def test_the_row_lstm_is_the_loop_over_pixels(size):
    layer, x = RowLSTM(3, 4).double(), torch.randn(2, 3, *size, dtype=torch.float64)
    wanted = by_pixel(layer.input(x), layer.state, [(-1, -1), (-1, 0), (-1, 1)])
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("size", [(H, W), (1, 4), (5, 1), (1, 1)])
def test_the_diagonal_lstm_is_the_loop_over_pixels(size):
    layer, x = DiagonalLSTM(3, 4).double(), torch.randn(2, 3, *size, dtype=torch.float64)
    left = by_pixel(layer.left_input(x), layer.left_state, [(-1, 0), (0, -1)])
    right = by_pixel(layer.right_input(x).flip(-1), layer.right_state, [(-1, 0), (0, -1)]).flip(-1)
    wanted = left.clone()
    wanted[:, :, 1:] += right[:, :, :-1]
    torch.testing.assert_close(layer(x), wanted)


def seen(layer: torch.nn.Module, channels: int, height: int = H, width: int = W) -> Tensor:
    """[out, i, j, in, i', j']: whether an output element depends on an input element."""
    x = torch.randn(1, channels, height, width, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x: layer.double()(x)[0], x)[:, :, :, 0] != 0


def before(i: int, j: int, own: bool, height: int = H, width: int = W) -> Tensor:
    """The pixels before (i, j) in raster order, and itself if ``own``."""
    return torch.arange(height * width).reshape(height, width) < i * width + j + own


@pytest.mark.parametrize("mask", "AB")
def test_the_diagonal_lstm_sees_everything_before_and_nothing_else(mask):
    found = seen(DiagonalLSTM(2, 3, mask), 2)
    for i in range(H):
        for j in range(W):
            assert torch.equal(found[:, i, j].any(0).any(0), before(i, j, mask == "B"))
            assert torch.equal(found[:, i, j].all(0).all(0), before(i, j, mask == "B"))


@pytest.mark.parametrize("mask", "AB")
def test_the_row_lstm_sees_a_triangle(mask):
    found = seen(RowLSTM(2, 3, mask), 2)
    for i in range(H):
        for j in range(W):
            wanted = torch.zeros(H, W, dtype=torch.bool)
            for above in range(i + 1):
                for column in range(max(0, j - above), min(W, j + above + 1)):
                    wanted[i - above, max(0, column - 1) : column + (mask == "B")] = True
            assert torch.equal(found[:, i, j].all(0).all(0), wanted)
            assert torch.equal(found[:, i, j].any(0).any(0), wanted)
            assert not (wanted & ~before(i, j, mask == "B")).any()


@pytest.mark.parametrize("mask", "AB")
@pytest.mark.parametrize("kind", LAYERS)
def test_at_its_own_pixel_a_colour_sees_the_colours_before(kind, mask):
    found = seen(kind(3, 6, mask, colours=3), 3)
    colour = torch.arange(6) // 2
    wanted = colour[:, None] >= torch.arange(3) + (mask == "A")
    for i in range(H):
        for j in range(W):
            assert torch.equal(found[:, i, j, :, i, j], wanted)
            assert not found[:, i, j][:, :, ~before(i, j, True)].any()


@pytest.mark.parametrize("kind", LAYERS)
def test_the_residual_form_keeps_channels_and_order(kind):
    layer = kind(6, 3, colours=3, residual=True)
    found = seen(layer, 6)
    colour = torch.arange(6) // 2
    for i in range(H):
        for j in range(W):
            assert not found[:, i, j][:, :, ~before(i, j, True)].any()
            assert torch.equal(found[:, i, j, :, i, j], colour[:, None] >= colour)
    layer.up.weight.data.zero_()
    layer.up.bias.data.zero_()
    x = torch.randn(2, 6, H, W, dtype=torch.float64)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (1, 5), (5, 1), (1, 1)])
def test_a_column_of_the_skewed_map_is_a_diagonal(size):
    x = torch.randn(2, *size)
    skewed = skew(x)
    assert skewed.shape == (2, size[0], size[0] + size[1] - 1)
    for i in range(size[0]):
        assert torch.equal(skewed[:, i, i : i + size[1]], x[:, i])
    assert skewed.count_nonzero() == x.count_nonzero()
    assert torch.equal(unskew(skewed), x)


@pytest.mark.parametrize("kind", LAYERS)
def test_every_parameter_is_trained(kind):
    layer = kind(2, 3, residual=True)
    layer(torch.randn(2, 2, H, W)).square().sum().backward()
    assert all((p.grad != 0).any() for p in layer.parameters())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"mask": "C"}, "mask must be 'A' or 'B', got 'C'"),
        ({"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
        ({"colours": 4}, "colours=4"),
        ({"mask": "A", "residual": True}, "residual=True"),
    ],
)
def test_errors_name_the_argument(kind, changed, word):
    with pytest.raises(ValueError, match=word):
        kind(**{"channels": 3, "hidden": 6} | changed)


@pytest.mark.parametrize("taps", [0, 2])
def test_the_row_lstm_refuses_a_kernel_without_a_middle(taps):
    with pytest.raises(ValueError, match=f"taps must be odd and at least 1, got {taps}"):
        RowLSTM(3, 6, taps=taps)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_errors_name_the_input(kind, shape):
    with pytest.raises(ValueError, match="x must have shape"):
        kind(3, 6)(torch.zeros(shape))
