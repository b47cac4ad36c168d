"""Laws and extremes of the transform by a mixture of logistics; the rest is the contract's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgen
from fastgen.ops import logistic_mixture_cdf

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
EPSILON = torch.finfo(torch.float32).eps


def made(components: int, scale: float, seed: int, rows: int = 100):
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, scale * torch.randn(rows, 3 * components, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20)
@given(components=st.integers(1, 40), scale=st.floats(0.1, 2), seed=st.integers(0, 999))
def test_the_inverse_undoes_the_forward(backend, components, scale, seed):
    x, parameters = made(components, scale, seed)
    with fastgen.backend(backend):
        y, log_det = logistic_mixture_cdf(x, parameters)
        back, log_det_back = logistic_mixture_cdf(y, parameters, inverse=True)
    allowed = 64 * torch.finfo(torch.float64).eps * (1 + x.abs() + (1 + y.abs()) * (-log_det).exp())
    assert ((back - x).abs() <= allowed).all()
    close = log_det > -10  # x is known well enough for the derivative there to be
    torch.testing.assert_close(log_det_back[close], -log_det[close], rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_component_is_affine(backend):
    x, parameters = made(1, 1.0, 0)
    with fastgen.backend(backend):
        y, log_det = logistic_mixture_cdf(x, parameters)
    torch.testing.assert_close(y, (x - parameters[:, 1]) * (-parameters[:, 2]).exp(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, -parameters[:, 2], rtol=0, atol=1e-12)


def test_the_log_derivative_is_that_of_the_values():
    x, parameters = made(5, 1.0, 1)
    x.requires_grad_()
    y, log_det = logistic_mixture_cdf(x, parameters)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_det, slope.log())


def test_the_cdf_is_the_mixture_s():
    x, parameters = made(6, 1.0, 2)
    logits, means, log_scales = parameters.chunk(3, -1)
    cdf = (logits.softmax(-1) * ((x[:, None] - means) * (-log_scales).exp()).sigmoid()).sum(-1)
    middle = (cdf > 1e-6) & (cdf < 1 - 1e-6)
    torch.testing.assert_close(logistic_mixture_cdf(x, parameters)[0][middle], cdf[middle].logit(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("reach", [1e4, 1e-30])
@pytest.mark.parametrize("spread", [1.0, 10.0])
@pytest.mark.parametrize("logit", [1.0, 1e4])
def test_nothing_is_nan_or_infinite_far_out(backend, inverse, reach, spread, logit):
    generator = torch.Generator().manual_seed(0)
    x = (reach * torch.randn(200, generator=generator)).requires_grad_()
    parameters = torch.randn(200, 3, 4, generator=generator)
    parameters[:, 0] *= logit
    parameters[:, 2] = spread * torch.tanh(parameters[:, 2])
    parameters = parameters.flatten(1).requires_grad_()
    with fastgen.backend(backend):
        y, log_det = logistic_mixture_cdf(x, parameters, inverse=inverse)
        found = torch.autograd.grad(y.sum() + log_det.sum(), (x, parameters))
    for value in (y, log_det, *found):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gap_between_two_far_components(backend):
    """At 0 between logistics at -a and a, of scale 1: the density is exp(-a), which float32 has no number for."""
    parameters = torch.tensor([[0.0, 0.0, -500.0, 500.0, 0.0, 0.0]])
    with fastgen.backend(backend):
        y, log_det = logistic_mixture_cdf(torch.zeros(1), parameters)
    assert y.abs().item() <= 4 * EPSILON
    assert log_det.item() == pytest.approx(-500 + torch.tensor(4.0).log().item(), abs=1e-3)


def test_nan_stays_where_it_is():
    x, parameters = (t.float() for t in made(4, 1.0, 3, rows=33))
    for inverse in (False, True):
        wanted = logistic_mixture_cdf(x, parameters, inverse=inverse)[0]
        spoilt_x, spoilt = x.clone(), parameters.clone()
        spoilt_x[5], spoilt[9, 2] = torch.nan, torch.nan
        y, _ = logistic_mixture_cdf(spoilt_x, spoilt, inverse=inverse)
        assert y.isnan().nonzero().flatten().tolist() == [5, 9]
        kept = [i for i in range(33) if i not in (5, 9)]
        assert torch.equal(y[kept], wanted[kept])


def test_wrong_arguments_are_named():
    x, parameters = torch.randn(3), torch.randn(3, 12)
    with pytest.raises(TypeError, match=r"x must be .*, got torch\.int64"):
        logistic_mixture_cdf(x.long(), parameters)
    with pytest.raises(TypeError, match="parameters must be floating point"):
        logistic_mixture_cdf(x, parameters.long())
    with pytest.raises(ValueError, match=r"parameters must have the shape of x,.*, got \(2, 12\)"):
        logistic_mixture_cdf(x, parameters[:2])
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"parameters must have 3 M numbers .*, got {count}"):
            logistic_mixture_cdf(x, torch.randn(3, count))
