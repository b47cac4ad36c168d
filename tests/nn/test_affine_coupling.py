from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import AdditiveCoupling, AffineCoupling


class Conditioner(nn.Module):
    def __init__(self, inputs: int, outputs: int, context: int):
        super().__init__()
        self.main, self.side = nn.Linear(inputs, outputs), nn.Linear(context, outputs)

    def forward(self, x, context):
        return self.main(x) + self.side(context)


def test_images_with_a_checkerboard_keep_its_pixels():
    checkerboard = (torch.arange(4)[:, None] + torch.arange(6)) % 2
    layer = AffineCoupling(nn.Conv2d(3, 6, 3, padding=1), parameterisation="tanh", mask=checkerboard)
    x = torch.randn(2, 3, 4, 6)
    y, _ = layer(x)
    assert torch.equal(y[..., checkerboard == 1], x[..., checkerboard == 1])
    assert (y[..., checkerboard == 0] != x[..., checkerboard == 0]).all()
    torch.testing.assert_close(layer.inverse(y)[0], x)


def test_context_reaches_the_network_and_a_learned_scale_its_gradient():
    scale = nn.Parameter(torch.ones(2))
    layer = AffineCoupling(Conditioner(2, 4, 3), parameterisation="tanh", scale=scale)
    x, context = torch.randn(5, 4), torch.randn(5, 3)
    y, log_det = layer(x, context)
    assert not torch.equal(y, layer(x, context + 1)[0])
    log_det.sum().backward()
    assert scale in set(layer.parameters())
    assert (scale.grad != 0).all()


@pytest.mark.parametrize("shape", [(3,), (2, 4), (5, 4), (4, 1)])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_mask_of_another_shape_is_named(shape, inverse):
    """Also one of the shape of the whole batch, which would mask its samples differently."""
    for layer in (
        AffineCoupling(nn.Linear(4, 8), mask=torch.ones(shape)),
        AdditiveCoupling(nn.Linear(4, 4), mask=torch.ones(shape)),
    ):
        with pytest.raises(ValueError, match=r"mask must broadcast to \(4,\), the shape of a sample"):
            (layer.inverse if inverse else layer)(torch.zeros(5, 4))


@pytest.mark.parametrize("entry", [0.5, -1.0, 2.0, float("nan")])
def test_a_mask_of_other_numbers_is_named(entry):
    with pytest.raises(ValueError, match="mask must be 1 where x is kept and 0 elsewhere, got other numbers"):
        AdditiveCoupling(nn.Linear(2, 2), mask=torch.tensor([1.0, entry]))
    AdditiveCoupling(nn.Linear(2, 2), mask=torch.tensor([1.0, entry], device="meta"))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"swap must be False with a mask \(give 1 - mask instead\), got True"):
        AffineCoupling(nn.Identity(), mask=torch.ones(2), swap=True)
    with pytest.raises(ValueError, match="x must have shape"):
        AdditiveCoupling(nn.Identity())(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="net must return shape"):
        AdditiveCoupling(nn.Linear(2, 3))(torch.zeros(3, 4))
