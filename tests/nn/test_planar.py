from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgen.nn.posterior.planar import Planar

D = 3


def draw(n: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, D, dtype=torch.float64, generator=generator)
    return x, scale * torch.randn(n, 2 * D + 1, dtype=torch.float64, generator=generator)


def test_it_is_the_formula_of_the_paper():
    layer = Planar(D, amortized=True)
    x, parameters = draw(50, 1.0)
    w, raw, b = parameters.split((D, D, 1), 1)
    found = (w * raw).sum(1, keepdim=True)
    u = raw + (F.softplus(found) - 1 - found) * w / w.square().sum(1, keepdim=True)
    a = (w * x).sum(1, keepdim=True) + b
    y, log_det = layer(x, parameters)
    torch.testing.assert_close(y, x + u * a.tanh())
    torch.testing.assert_close(log_det, (1 + a.cosh() ** -2 * (w * u).sum(1, keepdim=True)).log().squeeze(1))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_points_along_w_keep_their_order(scale):
    layer = Planar(D, amortized=True)
    x, parameters = draw(200, scale)
    w = parameters[:, :D]
    images = [(w * layer(x + step * w, parameters)[0]).sum(1) for step in (-1.0, -0.1, 0.0, 0.1, 1.0)]
    assert (torch.stack(images).diff(dim=0) > 0).all()


def test_the_inverse_stays_exact_where_the_map_is_almost_flat():
    layer = Planar(1, amortized=True)
    raw = torch.tensor([-5.0, -10.0, -20.0, -30.0], dtype=torch.float64)
    parameters = torch.stack((torch.ones(4, dtype=torch.float64), raw, torch.zeros(4, dtype=torch.float64)), 1)
    y = torch.tensor([[1e-3], [1e-3], [1e-3], [1e-3]], dtype=torch.float64)
    x, log_det = layer.inverse(y, parameters)
    back, forward_log_det = layer(x, parameters)
    torch.testing.assert_close(back, y, rtol=0, atol=1e-15)
    torch.testing.assert_close(log_det, -forward_log_det)


def test_a_direction_of_zero_makes_the_map_a_shift_with_finite_gradients():
    layer = Planar(D, amortized=True)
    x, parameters = draw(4, 1.0)
    parameters[:, :D] = 0
    parameters.requires_grad_()
    y, log_det = layer(x, parameters)
    torch.testing.assert_close(y, x + parameters[:, D : 2 * D] * parameters[:, -1:].tanh())
    assert torch.equal(log_det, torch.zeros_like(log_det))
    (grad,) = torch.autograd.grad(y.sum() + log_det.sum(), parameters)
    assert grad.isfinite().all()
    torch.testing.assert_close(layer.inverse(y, parameters)[0], x)
