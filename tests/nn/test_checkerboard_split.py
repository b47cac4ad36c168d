from __future__ import annotations

import pytest
import torch

from fastgen.nn import CheckerboardSplit, checkerboard_mask


def test_the_halves_are_the_colours_in_their_order():
    x = torch.arange(2.0 * 3 * 3 * 6).reshape(2, 3, 3, 6)
    y, log_det = CheckerboardSplit()(x)
    assert torch.equal(log_det, torch.zeros(2))
    for half, flip in zip(y.chunk(2, 1), (False, True), strict=True):
        mask = checkerboard_mask(3, 6, flip=flip).bool().expand(2, 3, 3, 6)
        assert torch.equal(half.flatten(), x[mask])


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (0, 3, 4, 2), (1, 2, 5, 6)])
def test_inverse(shape):
    layer, x = CheckerboardSplit(), torch.randn(shape, dtype=torch.float64)
    back, log_det = layer.inverse(layer(x)[0])
    assert torch.equal(back, x)
    assert torch.equal(log_det, torch.zeros(shape[0], dtype=torch.float64))


def test_wrong_shapes_are_named():
    for wrong in (torch.zeros(1, 2, 4, 3), torch.zeros(2, 4, 4)):
        with pytest.raises(ValueError, match="with W even"):
            CheckerboardSplit()(wrong)
    with pytest.raises(ValueError, match="with C even"):
        CheckerboardSplit().inverse(torch.zeros(1, 3, 4, 4))
