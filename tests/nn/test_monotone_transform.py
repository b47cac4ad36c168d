"""The laws of every elementwise monotone transform without a closed inverse."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies

from fastgen.nn.elementwise.deep_sigmoidal import DeepDenseSigmoidal, DeepSigmoidal
from fastgen.nn.elementwise.monotone_integral import MonotoneIntegral
from fastgen.nn.elementwise.monotone_transform import MonotoneTransform
from fastgen.nn.elementwise.sos_polynomial import SOSPolynomial

TRANSFORMS = {
    "DeepSigmoidal": lambda: DeepSigmoidal(4),
    "DeepSigmoidal of two layers": lambda: DeepSigmoidal(3, layers=2),
    "DeepDenseSigmoidal of two layers": lambda: DeepDenseSigmoidal(3, layers=2),
    "SOSPolynomial": lambda: SOSPolynomial(3, 4),
    "MonotoneIntegral": lambda: MonotoneIntegral(2, (5, 5), intervals=30),
}


@pytest.fixture(params=TRANSFORMS)
def transform(request) -> MonotoneTransform:
    return TRANSFORMS[request.param]().double()


def arguments(transform: MonotoneTransform, *shape: int, dtype: torch.dtype = torch.float64):
    x = torch.randn(shape, dtype=dtype)
    return x.requires_grad_(), torch.randn(*shape, transform.parameters_per_element, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("name", TRANSFORMS)
@hypothesis.settings(max_examples=15)
@hypothesis.given(
    seed=strategies.integers(0, 2**31),
    x=strategies.floats(-8, 8),
    gap=strategies.floats(0.05, 8),
    scale=strategies.floats(0, 2),
)
def test_what_is_less_stays_less(name, seed, x, gap, scale):
    torch.manual_seed(seed)
    transform = TRANSFORMS[name]().double()
    parameters = scale * torch.randn(1, 1, transform.parameters_per_element, dtype=torch.float64)
    with torch.no_grad():
        low, high = (transform(torch.full((1, 1), v, dtype=torch.float64), parameters)[0] for v in (x, x + gap))
    assert low < high


def test_the_log_det_is_the_sum_of_the_log_derivatives(transform):
    x, parameters = arguments(transform, 7, 3)
    y, log_det = transform(x, parameters)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert log_det.shape == (7,)
    torch.testing.assert_close(log_det, slope.log().sum(1))


def test_inverse_after_forward_is_the_identity_and_the_log_dets_cancel(transform):
    x, parameters = arguments(transform, 5, 2, 3)
    with torch.no_grad():
        y, log_det = transform(x, parameters)
        back, inverse_log_det = transform.inverse(y, parameters)
    torch.testing.assert_close(back, x.detach())
    torch.testing.assert_close(log_det, -inverse_log_det)


def test_both_directions_have_exact_first_and_second_derivatives(transform):
    x, parameters = arguments(transform, 1, 1)
    y = transform(x, parameters)[0].detach().requires_grad_()
    for function, of in ((transform, x), (transform.inverse, y)):
        assert torch.autograd.gradcheck(function, (of, parameters), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (of, parameters), fast_mode=True)


@pytest.mark.parametrize("size", [0.0, 30.0, 1e3, -1e3])
def test_far_inputs_and_their_gradients_are_finite_in_single_precision(transform, size):
    transform = transform.float()
    parameters = arguments(transform, 16, 2, dtype=torch.float32)[1]
    x = torch.full((16, 2), size, requires_grad=True)
    y, log_det = transform(x, parameters)
    (y.sum() + log_det.sum()).backward()
    assert all(t.isfinite().all() for t in (y, log_det, x.grad, parameters.grad))
    assert all(p.grad.isfinite().all() for p in transform.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(transform, dtype):
    transform = transform.float()
    x, parameters = (t.detach() for t in arguments(transform, 4, 2, dtype=dtype))
    for direction in (transform, transform.inverse):
        y, log_det = direction(x, parameters)
        wide, wide_log_det = direction(x.float(), parameters.float())
        assert (y.dtype, log_det.dtype) == (dtype, torch.float32)
        assert torch.equal(y, wide.to(dtype))
        assert torch.equal(log_det, wide_log_det)


def test_autocast_changes_nothing(transform):
    transform = transform.float()
    x, parameters = (t.detach() for t in arguments(transform, 4, 2, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found = transform(x, parameters)
    for part, wanted in zip(found, transform(x, parameters), strict=True):
        assert torch.equal(part, wanted)


def test_vmap_goes_over_rows(transform):
    x, parameters = (t.detach() for t in arguments(transform, 4, 2))
    for direction in (transform, transform.inverse):
        y, log_det = direction(x, parameters)
        rows, row_log_dets = torch.func.vmap(lambda x, p, f=direction: f(x[None], p[None]))(x, parameters)
        torch.testing.assert_close(rows[:, 0], y)
        torch.testing.assert_close(row_log_dets[:, 0], log_det)


def test_gradients_of_every_row_come_from_vmap(transform):
    x, parameters = arguments(transform, 4, 2)
    wanted = torch.autograd.grad(sum(part.sum() for part in transform(x, parameters)), (x, parameters))

    def loss(x, p):
        y, log_det = transform(x[None], p[None])
        return y.sum() + log_det.sum()

    found = torch.func.vmap(torch.func.grad(loss, (0, 1)))(x.detach(), parameters.detach())
    for part, whole in zip(found, wanted, strict=True):
        torch.testing.assert_close(part, whole)


def test_an_empty_batch_has_an_empty_result(transform):
    x, parameters = arguments(transform, 0, 3)
    for direction in (transform, transform.inverse):
        y, log_det = direction(x, parameters)
        assert (y.shape, log_det.shape) == ((0, 3), (0,))


def test_wrong_shapes_are_named(transform):
    x, parameters = arguments(transform, 4, 2)
    for direction, name in ((transform, "x"), (transform.inverse, "y")):
        with pytest.raises(ValueError, match=r"parameters must have shape .*got \(4, 2, 1\)"):
            direction(x, parameters[..., :1])
        with pytest.raises(ValueError, match=rf"{name} must have shape .*got \(2,\)"):
            direction(x[0], parameters[0])


def test_a_value_that_is_not_a_number_has_no_inverse(transform):
    _, parameters = arguments(transform, 2, 2)
    with pytest.raises(ValueError, match="y must be values of the function, got 1 that are not, the first of them nan"):
        transform.inverse(torch.tensor([[0.0, torch.nan], [1.0, 2.0]], dtype=torch.float64), parameters)
