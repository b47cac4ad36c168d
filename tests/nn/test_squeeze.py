from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgen.nn import Squeeze2d, checkerboard_mask


@pytest.mark.parametrize("order", ["glow", "realnvp"])
@pytest.mark.parametrize("shape", [(3, 2, 4, 6), (1, 3, 2, 2), (0, 2, 4, 4)])
def test_it_moves_numbers_and_back(order, shape):
    layer, x = Squeeze2d(order), torch.randn(shape)
    y, log_det = layer(x)
    back, back_log_det = layer.inverse(y)
    n, channels, height, width = shape
    assert y.shape == (n, 4 * channels, height // 2, width // 2)
    assert torch.equal(back, x)
    assert torch.equal(y.flatten().sort()[0], x.flatten().sort()[0])
    for zeros in (log_det, back_log_det):
        assert torch.equal(zeros, torch.zeros(n))


def test_the_order_of_glow_is_that_of_pixel_unshuffle():
    x = torch.randn(3, 2, 4, 6)
    assert torch.equal(Squeeze2d("glow")(x)[0], F.pixel_unshuffle(x, 2))


def test_the_order_of_realnvp_halves_the_colours_of_a_checkerboard():
    x = torch.tensor([[[[1, 2], [3, 4]], [[10, 20], [30, 40]]]])
    assert Squeeze2d("realnvp")(x)[0].flatten().tolist() == [1, 10, 4, 40, 2, 20, 3, 30]
    mask = checkerboard_mask(6, 8).expand(2, 6, 8)[None]
    one, other = Squeeze2d("realnvp")(mask)[0].chunk(2, 1)
    assert (one == 1).all()
    assert (other == 0).all()
    assert torch.equal(checkerboard_mask(6, 8, flip=True), 1 - checkerboard_mask(6, 8))


def test_errors():
    with pytest.raises(ValueError, match="order must be one of 'glow', 'realnvp', got 'rows'"):
        Squeeze2d("rows")
    for shape in ((1, 2, 3, 4), (1, 2, 4, 3), (2, 4, 4)):
        with pytest.raises(ValueError, match="with H and W even"):
            Squeeze2d()(torch.zeros(shape))
    for shape in ((1, 6, 2, 2), (4, 2, 2)):
        with pytest.raises(ValueError, match="with C a multiple of 4"):
            Squeeze2d().inverse(torch.zeros(shape))
