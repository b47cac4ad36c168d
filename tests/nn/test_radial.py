from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgen.nn.posterior.radial import Radial

D = 3


def draw(n: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, D, dtype=torch.float64, generator=generator)
    return x, scale * torch.randn(n, D + 2, dtype=torch.float64, generator=generator)


def test_it_is_the_formula_of_the_paper():
    layer = Radial(D, amortized=True)
    x, parameters = draw(50, 1.0)
    center, alpha = parameters[:, :D], F.softplus(parameters[:, D : D + 1])
    beta = F.softplus(parameters[:, D + 1 :]) - alpha
    r = (x - center).norm(dim=1, keepdim=True)
    h = 1 / (alpha + r)
    slope = 1 + beta * h
    log_det = (D - 1) * slope.log() + (slope - beta * r * h.square()).log()
    y, found = layer(x, parameters)
    torch.testing.assert_close(y, x + beta * h * (x - center))
    torch.testing.assert_close(found, log_det.squeeze(1))


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_points_on_a_ray_keep_their_order_and_direction(scale):
    layer = Radial(D, amortized=True)
    _, parameters = draw(200, scale)
    center, direction = parameters[:, :D], F.normalize(draw(200, 1.0)[0], dim=1)
    radii = [
        ((layer(center + r * direction, parameters)[0] - center) * direction).sum(1) for r in (0.0, 0.1, 1.0, 30.0)
    ]
    assert (torch.stack(radii).diff(dim=0) >= 0).all()


def test_the_center_stays_and_its_gradients_are_finite():
    layer = Radial(D, amortized=True)
    _, parameters = draw(5, 3.0)
    parameters.requires_grad_()
    x = parameters[:, :D].detach()
    for function in (layer, layer.inverse):
        y, log_det = function(x, parameters)
        torch.testing.assert_close(y, x)
        (grad,) = torch.autograd.grad(y.sum() + log_det.sum(), parameters)
        assert grad.isfinite().all()


def test_the_inverse_is_precise_near_the_center_and_far_away():
    layer = Radial(D, amortized=True)
    _, parameters = draw(100, 3.0)
    direction = F.normalize(draw(100, 1.0)[0], dim=1)
    parameters[:, :D] = 0
    for distance in (1e-8, 1e-3, 1.0, 1e3, 1e8):
        x = distance * direction
        back = layer.inverse(layer(x, parameters)[0], parameters)[0]
        torch.testing.assert_close(back, x, rtol=1e-10, atol=0)
