"""Laws and extremes of monotone cubic splines; the rest is the contract's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgen
from fastgen.ops import cubic_spline
from fastgen.reference.cubic_spline import parameters_of
from fastgen.reference.rq_spline import TAILS

EPSILON = torch.finfo(torch.float32).eps
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]


def made(bins: int, tails: str, scale: float, seed: int, rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(rows, generator=generator) - 3
    return x, scale * torch.randn(rows, parameters_of(bins, TAILS.index(tails)), generator=generator)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(bins=st.integers(1, 64), tails=st.sampled_from(TAILS), scale=st.floats(1, 30), seed=st.integers(0, 999))
def test_the_error_bound(backend, inverse, bins, tails, scale, seed):
    """float32 gives, within 16 eps B, the exact value at an argument within 16 eps B of the one given (B = 3)."""
    x, parameters = made(bins, tails, scale, seed)
    with fastgen.backend(backend):
        y, log_det = cubic_spline(x, parameters, inverse=inverse, tails=tails)
    assert torch.isfinite(y).all()
    assert torch.isfinite(log_det).all()
    assert y.abs().max() <= 3
    allowed = 16 * EPSILON * 3
    with fastgen.backend("reference"):
        lowest, highest = (
            cubic_spline((x.double() + d).clamp(-3, 3), parameters.double(), inverse=inverse, tails=tails)[0]
            for d in (-allowed, allowed)
        )
    assert (y >= lowest - allowed).all()
    assert (y <= highest + allowed).all()


@settings(max_examples=40)
@given(bins=st.integers(1, 20), tails=st.sampled_from(TAILS), seed=st.integers(0, 999))
def test_the_inverse_undoes_the_forward_and_the_map_is_monotone(bins, tails, seed):
    x, parameters = made(bins, tails, 1.0, seed)
    x, parameters = x.double().sort().values, parameters[:1].double().expand(len(x), -1)
    y, log_det = cubic_spline(x, parameters, tails=tails)
    back, log_det_back = cubic_spline(y, parameters, inverse=True, tails=tails)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)
    assert (y.diff() >= 0).all()
    ends, _ = cubic_spline(torch.tensor([-3.0, 3.0], dtype=torch.float64), parameters[:2], tails=tails)
    torch.testing.assert_close(ends, torch.tensor([-3.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bins", [1, 5])
def test_it_is_the_published_cubic(bins):
    """a t^3 + b t^2 + c t + d with Steffen's derivatives, one bin after the other, on [0, 1]."""
    raw = torch.randn(2 * bins + 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw[-2:] = 0  # derivatives of 3/2 of the slope at both ends
    w = (1e-3 + (1 - 1e-3 * bins) * raw[:bins].softmax(0)).tolist()
    h = (1e-3 + (1 - 1e-3 * bins) * raw[bins : 2 * bins].softmax(0)).tolist()
    s = [height / width for width, height in zip(w, h, strict=True)]
    d = [1.5 * s[0], *[0.0] * (bins - 1), 1.5 * s[-1]]
    for k in range(1, bins):
        mean = (s[k - 1] * w[k] + s[k] * w[k - 1]) / (w[k - 1] + w[k])
        d[k] = 2 * min(abs(s[k - 1]), abs(s[k]), 0.5 * abs(mean))
    for k in range(bins):
        a = (d[k] + d[k + 1] - 2 * s[k]) / w[k] ** 2
        b = (3 * s[k] - 2 * d[k] - d[k + 1]) / w[k]
        t = torch.linspace(0, 1, 11, dtype=torch.float64)[:10] * w[k]
        y, log_det = cubic_spline(
            sum(w[:k]) + t, raw.expand(10, -1), tails="bounded", bound=(0.0, 1.0, 0.0, 1.0), inverse=False
        )
        torch.testing.assert_close(y, sum(h[:k]) + a * t**3 + b * t**2 + d[k] * t)
        torch.testing.assert_close(log_det, (3 * a * t**2 + 2 * b * t + d[k]).log())


@pytest.mark.parametrize("raw", [-200.0, -1.0, 0.0, 2.0, 200.0])
def test_the_derivatives_at_both_ends(raw):
    parameters = torch.zeros(2, 18, dtype=torch.float64)
    parameters[0, 16] = parameters[1, 17] = raw
    _, log_det = cubic_spline(torch.tensor([-3.0, 3.0], dtype=torch.float64), parameters)
    part = 1e-6 + (1 - 2e-6) * torch.tensor(raw, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(log_det, (3 * part).log().expand(2))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", TAILS)
def test_the_log_derivative_is_that_of_the_values(tails, inverse):
    x, parameters = made(8, tails, 1.0, 0)
    x = x.double().requires_grad_()
    y, log_det = cubic_spline(x, parameters.double(), inverse=inverse, tails=tails)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_det, slope.log())


def test_linear_tails_are_the_identity_joined_without_a_gap():
    x = torch.tensor([-50.0, -3.0000002, 3.0000002, 1e30, float("inf"), -float("inf")])
    y, log_det = cubic_spline(x, torch.randn(6, 18))
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(6))
    edge = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(cubic_spline(edge, torch.randn(2, 18, dtype=torch.float64))[0], edge)


def turned(raw: Tensor, bins: int) -> Tensor:
    """The parameters of a circle that begins one bin later."""
    return torch.cat([raw[..., :bins].roll(-1, -1), raw[..., bins:].roll(-1, -1)], -1)


def on_circle(values: Tensor) -> Tensor:
    return torch.remainder(values + 3, 6) - 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
@settings(max_examples=30)
@given(bins=st.integers(1, 20), seed=st.integers(0, 999))
def test_a_circle_has_no_beginning(backend, inverse, bins, seed):
    """One that begins a bin later is the same map of the circle, values, log-derivatives and gradients."""
    x, raw = (t.double() for t in made(bins, "circular", 1.0, seed, rows=20))
    raw = raw[:1].expand(20, -1).clone().requires_grad_()
    widths, heights = (6 * (1e-3 + (1 - 1e-3 * bins) * part.softmax(-1)) for part in raw[0].split(bins))
    shift_in, shift_out = (heights[0], widths[0]) if inverse else (widths[0], heights[0])
    moved = on_circle(x - shift_in)
    with fastgen.backend(backend):
        y, log_det = cubic_spline(x, raw, inverse=inverse, tails="circular")
        again, log_det_again = cubic_spline(moved, turned(raw, bins), inverse=inverse, tails="circular")
        wound = (again + shift_out - y).div(6).round().detach() * 6
        torch.testing.assert_close(again + shift_out - wound, y, rtol=0, atol=1e-9)
        torch.testing.assert_close(log_det_again, log_det, rtol=0, atol=1e-6)
        weights = torch.linspace(0.5, 1.5, 20, dtype=torch.float64)
        (wanted,) = torch.autograd.grad((weights * (y + log_det)).sum(), raw, retain_graph=True)
        (found,) = torch.autograd.grad((weights * (again + shift_out + log_det_again)).sum(), raw)
    torch.testing.assert_close(found.sum(0), wanted.sum(0), rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("inverse", [False, True])
@given(bins=st.integers(1, 20), seed=st.integers(0, 999))
def test_a_circular_spline_has_one_derivative_at_both_ends(inverse, bins, seed):
    _, parameters = made(bins, "circular", 3.0, seed, rows=1)
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    _, log_det = cubic_spline(ends, parameters.double().expand(2, -1), inverse=inverse, tails="circular")
    torch.testing.assert_close(log_det[0], log_det[1])


def test_a_circle_of_one_bin_is_the_identity():
    x, parameters = made(1, "circular", 10.0, 0)
    y, log_det = cubic_spline(x, parameters, tails="circular")
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_det, torch.zeros(200))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("tails", ["linear", "circular"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_values_and_gradients_are_finite_at_edges_and_in_tails(scale, tails, bins, inverse, backend):
    parameters = (scale * torch.randn(64, parameters_of(bins, TAILS.index(tails)))).requires_grad_()
    with torch.no_grad():
        raw = parameters[:, bins * inverse : bins * inverse + bins]
        sizes = 6 * (1e-3 + (1 - 1e-3 * bins) * raw.softmax(1))
    knots = (-3 + sizes.cumsum(1)).clamp(-3, 3)
    inside = [knots[:, 0], knots[:, bins // 2], torch.full((64,), -3.0), torch.full((64,), 3.0)]
    for x in [*inside, 100 * torch.randn(64)] if tails == "linear" else inside:
        x = x.clone().requires_grad_()
        with fastgen.backend(backend):
            y, log_det = cubic_spline(x, parameters, inverse=inverse, tails=tails)
            gradients = torch.autograd.grad(y.sum() + log_det.sum(), (x, parameters))
        for value in (y, log_det, *gradients):
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_bin_flat_in_the_middle(backend):
    """Both ends at 3 times the slope: the cubic 3 (2 t - 1)^3, whose slope at 0 only the 1e-6 keep above 0."""
    x = torch.linspace(-3, 3, 101).requires_grad_()
    parameters = torch.tensor([0.0, 0.0, 300.0, 300.0]).expand(101, -1)
    with fastgen.backend(backend):
        y, log_det = cubic_spline(x, parameters)
        back, log_det_back = cubic_spline(y, parameters, inverse=True)
        again, _ = cubic_spline(back, parameters)
        gradients = torch.autograd.grad(back.sum() + log_det_back.sum(), x)
    for value in (y, log_det, back, log_det_back, *gradients):
        assert torch.isfinite(value).all()
    assert (y - x**3 / 9).abs().max() <= 3 * 3e-6
    assert (again - y).abs().max() <= 16 * EPSILON * 3


def test_nan_stays_where_it_is():
    x, parameters = made(8, "linear", 1.0, 0, rows=33)
    wanted = cubic_spline(x, parameters)[0]
    x[5], parameters[9, 2] = torch.nan, torch.nan
    y, _ = cubic_spline(x, parameters)
    assert y.isnan().nonzero().flatten().tolist() == [5, 9]
    kept = [i for i in range(33) if i not in (5, 9)]
    assert torch.equal(y[kept], wanted[kept])


def test_an_interval_that_is_not_a_square():
    x = torch.linspace(0, 1, 50).double()
    parameters = torch.randn(50, 18).double()[:1].expand(50, -1)
    y, log_det = cubic_spline(x, parameters, tails="bounded", bound=(0.0, 1.0, -2.0, 5.0))
    torch.testing.assert_close(y[[0, -1]], torch.tensor([-2.0, 5.0]).double())
    back, inverse = cubic_spline(y, parameters, inverse=True, tails="bounded", bound=(0.0, 1.0, -2.0, 5.0))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse, -log_det, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, dtype=torch.int64)}, TypeError, "x must be .*, got torch.int64"),
        ({"parameters": torch.zeros(3, 18).int()}, TypeError, "parameters must be .*, got torch.int32"),
        ({"parameters": torch.zeros(3, 17)}, ValueError, r"parameters must have 2 K \+ 2 numbers.*, got 17"),
        ({"parameters": torch.zeros(3, 2)}, ValueError, r"parameters must have 2 K \+ 2 numbers.*, got 2"),
        (
            {"parameters": torch.zeros(3, 15), "tails": "circular"},
            ValueError,
            r"parameters must have 2 K numbers for.*, got 15",
        ),
        ({"parameters": torch.zeros(2, 18)}, ValueError, r"parameters must have the shape of x,.*, got \(2, 18\)"),
        ({"tails": "none"}, ValueError, "tails must be one of 'bounded', 'linear', 'circular', got 'none'"),
        ({"bound": -1.0}, ValueError, "bound must .*, got -1.0"),
        ({"bound": math.inf}, ValueError, r"bound must be a finite number or four,.*, got inf"),
        ({"bound": (0.0, 1.0)}, ValueError, r"bound must be a finite number or four,.*, got \(0\.0, 1\.0\)"),
        ({"bound": (0.0, 1.0, 0.0, 2.0)}, ValueError, "with linear tails"),
        ({"min_width": 0.2}, ValueError, "min_width must .*, got 0.2"),
        ({"min_height": 0.0}, ValueError, "min_height must .*, got 0.0"),
        (
            {"tails": "bounded", "x": torch.full((3,), 4.0)},
            ValueError,
            r"x must be within -3\.0 to 3\.0 for a.*, got 4\.0 to 4\.0",
        ),
        (
            {"tails": "circular", "x": torch.full((3,), 4.0)},
            ValueError,
            r"x must be within -3\.0 to 3\.0 for a.*, got 4\.0 to 4\.0",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        cubic_spline(**({"x": torch.zeros(3), "parameters": torch.zeros(3, 18)} | change))
