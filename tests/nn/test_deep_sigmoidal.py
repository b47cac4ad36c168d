from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgen.nn.elementwise.deep_sigmoidal import DeepDenseSigmoidal, DeepSigmoidal


def slopes(raw):
    one = torch.tensor(1 - 1e-6, dtype=raw.dtype).expm1().log()
    return F.softplus(raw + one) + 1e-6


def test_a_layer_is_the_logit_of_a_mixture_of_sigmoids():
    transform = DeepSigmoidal(4, layers=2).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    parameters = torch.randn(5, 3, transform.parameters_per_element, dtype=torch.float64)
    wanted = x
    for part in parameters.split(12, -1):
        a, b, w = part.split(4, -1)
        wanted = (w.softmax(-1) * (slopes(a) * wanted[..., None] + b).sigmoid()).sum(-1).logit()
    torch.testing.assert_close(transform(x, parameters)[0], wanted)


def test_a_dense_layer_is_two_stochastic_matrices_around_sigmoids():
    transform = DeepDenseSigmoidal(3, layers=2).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    parameters = torch.randn(5, 2, transform.parameters_per_element, dtype=torch.float64)
    h = x[..., None]
    sizes = [3, 3, 1, 3, 3, 3, 3, 3]
    parts = parameters.split(sizes, -1)
    for (a, b, u, w), inner, outer in zip((parts[:4], parts[4:]), transform.inner, transform.outer, strict=True):
        into = (inner + u[..., None, :]).softmax(-1)
        out = (outer + w[..., None, :]).softmax(-1)
        units = (slopes(a) * (into @ h[..., None])[..., 0] + b).sigmoid()
        h = (out @ units[..., None])[..., 0].logit()
    assert sum(sizes) == transform.parameters_per_element
    torch.testing.assert_close(transform(x, parameters)[0], h[..., 0])


@pytest.mark.parametrize("make", [DeepSigmoidal, DeepDenseSigmoidal])
def test_parameters_of_zero_are_the_identity(make):
    transform = make(5, layers=2).double()
    x = torch.linspace(-1e3, 1e3, 11, dtype=torch.float64)[:, None]
    y, log_det = transform(x, x.new_zeros(11, 1, transform.parameters_per_element))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-9, rtol=0)


@pytest.mark.parametrize("make", [DeepSigmoidal, DeepDenseSigmoidal])
def test_slopes_that_vanish_leave_everything_finite(make):
    transform = make(4)
    x = torch.randn(6, 2, requires_grad=True)
    parameters = torch.full((6, 2, transform.parameters_per_element), -200.0, requires_grad=True)
    y, log_det = transform(x, parameters)
    (y.sum() + log_det.sum()).backward()
    assert all(t.isfinite().all() for t in (y, log_det, x.grad, parameters.grad))


@pytest.mark.parametrize("make", [DeepSigmoidal, DeepDenseSigmoidal])
def test_wrong_numbers_are_named(make):
    with pytest.raises(ValueError, match="units must be"):
        make(0)
    with pytest.raises(ValueError, match="layers must be"):
        make(layers=0)
