"""Laws and extremes of rational-quadratic splines; the rest is the contract's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgen
from fastgen.ops import rq_spline
from fastgen.reference.rq_spline import TAILS, parameters_of

EPSILON = torch.finfo(torch.float32).eps
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]


def made(bins: int, tails: str, scale: float, seed: int, rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(rows, generator=generator) - 3
    return x, scale * torch.randn(rows, parameters_of(bins, TAILS.index(tails)), generator=generator)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(bins=st.integers(2, 64), tails=st.sampled_from(TAILS), scale=st.floats(1, 30), seed=st.integers(0, 999))
def test_the_error_bound(backend, inverse, bins, tails, scale, seed):
    """float32 gives, within 32 eps B, the exact value at an argument within 32 eps B of the one given (B = 3)."""
    x, parameters = made(bins, tails, scale, seed)
    with fastgen.backend(backend):
        y, log_det = rq_spline(x, parameters, inverse=inverse, tails=tails)
    assert torch.isfinite(y).all()
    assert torch.isfinite(log_det).all()
    allowed = 32 * EPSILON * 3
    with fastgen.backend("reference"):
        lowest, highest = (
            rq_spline((x.double() + d).clamp(-3, 3), parameters.double(), inverse=inverse, tails=tails)[0]
            for d in (-allowed, allowed)
        )
    assert (y >= lowest - allowed).all()
    assert (y <= highest + allowed).all()


@settings(max_examples=40)
@given(bins=st.integers(1, 20), tails=st.sampled_from(TAILS), seed=st.integers(0, 999))
def test_the_inverse_undoes_the_forward_and_the_map_is_monotone(bins, tails, seed):
    x, parameters = made(bins, tails, 1.0, seed)
    x, parameters = x.double().sort().values, parameters[:1].double().expand(len(x), -1)
    y, log_det = rq_spline(x, parameters, tails=tails)
    back, log_det_back = rq_spline(y.clamp(-3, 3), parameters, inverse=True, tails=tails)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)
    assert (y.diff() >= 0).all()
    ends, _ = rq_spline(torch.tensor([-3.0, 3.0], dtype=torch.float64), parameters[:2], tails=tails)
    torch.testing.assert_close(ends, torch.tensor([-3.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_log_derivative_is_that_of_the_values(inverse):
    x, parameters = made(8, "linear", 1.0, 0)
    x = x.double().requires_grad_()
    y, log_det = rq_spline(x, parameters.double(), inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_det, slope.log())


def test_linear_tails_are_the_identity_joined_smoothly():
    x = torch.tensor([-50.0, -3.0000002, 3.0000002, 1e30, float("inf"), -float("inf")])
    parameters = torch.randn(6, 23)
    y, log_det = rq_spline(x, parameters)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(6))
    edge = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(rq_spline(edge, parameters[:2].double())[1], torch.zeros(2, dtype=torch.float64))


def test_a_circular_spline_has_one_derivative_at_both_ends():
    _, log_det = rq_spline(
        torch.tensor([-3.0, 3.0]).double(), torch.randn(1, 24).double().expand(2, -1), tails="circular"
    )
    torch.testing.assert_close(log_det[0], log_det[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_values_and_gradients_are_finite_at_edges_and_in_tails(scale, inverse, backend):
    parameters = (scale * torch.randn(64, 23)).requires_grad_()
    with torch.no_grad():
        widths = 6 * (1e-3 + (1 - 8e-3) * parameters[:, 8 * inverse : 8 * inverse + 8].softmax(1))
    knots = (-3 + widths.cumsum(1)).clamp(-3, 3)
    for x in (knots[:, 3], knots[:, 7], torch.full((64,), -3.0), torch.full((64,), 3.0), 100 * torch.randn(64)):
        x = x.clone().requires_grad_()
        with fastgen.backend(backend):
            y, log_det = rq_spline(x, parameters, inverse=inverse)
            gradients = torch.autograd.grad(y.sum() + log_det.sum(), (x, parameters))
        for value in (y, log_det, *gradients):
            assert torch.isfinite(value).all()


def test_nan_stays_where_it_is():
    x, parameters = made(8, "linear", 1.0, 0, rows=33)
    wanted = rq_spline(x, parameters)[0]
    x[5], parameters[9, 2] = torch.nan, torch.nan
    y, _ = rq_spline(x, parameters)
    assert y.isnan().nonzero().flatten().tolist() == [5, 9]
    kept = [i for i in range(33) if i not in (5, 9)]
    assert torch.equal(y[kept], wanted[kept])


def test_an_interval_that_is_not_a_square():
    x = torch.linspace(0, 1, 50).double()
    parameters = torch.randn(50, 25).double()[:1].expand(50, -1)
    y, log_det = rq_spline(x, parameters, tails="bounded", bound=(0.0, 1.0, -2.0, 5.0))
    torch.testing.assert_close(y[[0, -1]], torch.tensor([-2.0, 5.0]).double())
    back, inverse = rq_spline(y.clamp(-2, 5), parameters, inverse=True, tails="bounded", bound=(0.0, 1.0, -2.0, 5.0))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse, -log_det, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tails", ["bounded", "circular"])
@pytest.mark.parametrize("inverse", [False, True])
def test_values_are_read_where_that_waits_for_no_device(tails, inverse):
    x, parameters = made(5, tails, 1.0, 0)
    x[::2] += 7
    with pytest.raises(ValueError, match="x must be within"):
        rq_spline(x, parameters, tails=tails, inverse=inverse)
    y, log_det = torch.func.vmap(lambda x, p: rq_spline(x, p, tails=tails, inverse=inverse))(x, parameters)
    assert torch.equal(y[::2], x[::2])
    assert not log_det[::2].any()
    elsewhere, _ = rq_spline(x.to("meta"), parameters.to("meta"), tails=tails, inverse=inverse)
    assert elsewhere.shape == x.shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, dtype=torch.int64)}, TypeError, "x must be .*, got torch.int64"),
        ({"parameters": torch.zeros(3, 22)}, ValueError, r"parameters must have 3 K - 1 numbers.*, got 22"),
        ({"parameters": torch.zeros(2, 23)}, ValueError, r"parameters must have the shape of x,.*, got \(2, 23\)"),
        ({"tails": "none"}, ValueError, "tails must .*, got 'none'"),
        ({"bound": -1.0}, ValueError, "bound must .*, got -1.0"),
        ({"bound": math.inf}, ValueError, r"bound must be a finite number or four,.*, got inf"),
        ({"bound": (0.0, 1.0)}, ValueError, r"bound must be a finite number or four,.*, got \(0\.0, 1\.0\)"),
        ({"bound": (0.0, 1.0, 0.0, 2.0)}, ValueError, "with linear tails"),
        ({"min_width": 0.2}, ValueError, "min_width must .*, got 0.2"),
        ({"min_height": -0.1}, ValueError, "min_height must .*, got -0.1"),
        ({"min_derivative": 0.0}, ValueError, "min_derivative must .*, got 0.0"),
        ({"min_derivative": math.inf}, ValueError, "min_derivative must .*, got inf"),
        (
            {"tails": "bounded", "parameters": torch.zeros(3, 25), "x": torch.full((3,), 4.0)},
            ValueError,
            r"x must be within -3\.0 to 3\.0 for a.*, got 4\.0 to 4\.0",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        rq_spline(**({"x": torch.zeros(3), "parameters": torch.zeros(3, 23)} | change))
