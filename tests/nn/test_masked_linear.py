from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import MaskedLinear


def test_it_is_a_linear_map_without_the_masked_weights():
    mask = torch.rand(4, 3) < 0.5
    layer, plain = MaskedLinear(mask), nn.Linear(3, 4)
    plain.load_state_dict({"weight": layer.weight * mask, "bias": layer.bias})
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(layer(x), plain(x))


def test_masked_weights_change_nothing_and_get_no_gradient():
    layer = MaskedLinear(torch.ones(3, 3).tril(), bias=False)
    x = torch.randn(5, 3)
    before = layer(x)
    with torch.no_grad():
        layer.weight[layer.mask == 0] = 1e30
    assert torch.equal(layer(x), before)
    layer(x).sum().backward()
    assert (layer.weight.grad[layer.mask == 0] == 0).all()
    assert (layer.weight.grad[layer.mask == 1] != 0).all()


def test_the_mask_is_saved_with_the_weights():
    first, second = MaskedLinear(torch.ones(2, 2).tril()), MaskedLinear(torch.ones(2, 2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 2)
    assert torch.equal(first(x), second(x))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="mask must have shape"):
        MaskedLinear(torch.ones(3))
