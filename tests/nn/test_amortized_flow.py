"""The laws of layers whose parameters are one vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.nn.posterior.amortized_flow import AmortizedFlow, DiagonalAffine, LinearAmortization
from fastgen.nn.posterior.planar import Planar
from fastgen.nn.posterior.radial import Radial
from fastgen.nn.posterior.sylvester import Sylvester

D = 3
LAYERS = {
    "diagonal": lambda **kwargs: DiagonalAffine(D, **kwargs),
    "planar": lambda **kwargs: Planar(D, **kwargs),
    "radial": lambda **kwargs: Radial(D, **kwargs),
    "orthogonal": lambda **kwargs: Sylvester(D, rank=2, **kwargs),
    "orthogonal, full": lambda **kwargs: Sylvester(D, **kwargs),
    "householder": lambda **kwargs: Sylvester(D, "householder", reflections=2, **kwargs),
    "triangular": lambda **kwargs: Sylvester(D, "triangular", **kwargs),
    "reversed": lambda **kwargs: Sylvester(D, "triangular", reverse=True, **kwargs),
}


@pytest.fixture(params=LAYERS)
def name(request) -> str:
    torch.manual_seed(0)
    return request.param


def amortized(name: str, n: int, dtype: torch.dtype = torch.float64) -> tuple[AmortizedFlow, Tensor, Tensor]:
    """The layer, x and parameters for every row."""
    layer = LAYERS[name](amortized=True)
    return layer, 2 * torch.randn(n, D, dtype=dtype), torch.randn(n, layer.parameter_size, dtype=dtype)


def test_forward_after_inverse_is_the_identity_and_the_log_dets_cancel(name):
    for dtype in (torch.float64, torch.float32):
        layer, y, parameters = amortized(name, 200, dtype)
        x, inverse_log_det = layer.inverse(y, parameters)
        back, log_det = layer(x, parameters)
        rounding = 200 * torch.finfo(dtype).eps
        torch.testing.assert_close(back, y, rtol=rounding, atol=rounding)
        # a log-determinant changes by its derivative times the error of x, which a flat map makes larger than y's
        slack = rounding * (1 + inverse_log_det.exp())
        assert ((log_det + inverse_log_det).abs() <= slack).all()


def test_the_log_det_is_that_of_the_jacobian(name):
    layer, x, parameters = amortized(name, 4)
    _, log_det = layer(x, parameters)
    for i in range(4):
        own = torch.autograd.functional.jacobian(lambda row: layer(row[None], parameters[i : i + 1])[0][0], x[i])  # noqa: B023
        torch.testing.assert_close(log_det[i], own.slogdet()[1])


def test_both_directions_have_the_derivatives_of_their_values(name):
    layer, x, parameters = amortized(name, 2)
    x.requires_grad_()
    parameters.requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, parameters), fast_mode=True)
    assert torch.autograd.gradcheck(layer.inverse, (x, parameters), fast_mode=True)


def test_a_layer_with_its_own_parameters_is_the_same_map_for_every_row(name):
    layer = LAYERS[name]().double()
    other = LAYERS[name](amortized=True)
    x = torch.randn(5, D, dtype=torch.float64)
    parameters = layer.own.expand(5, -1)
    torch.testing.assert_close(layer(x), other(x, parameters))
    torch.testing.assert_close(layer.inverse(x), other.inverse(x, parameters))
    assert list(other.parameters()) == []


def test_rows_are_independent_and_batches_may_be_empty(name):
    layer, x, parameters = amortized(name, 4)
    whole = layer(x, parameters), layer.inverse(x, parameters)
    part = layer(x[1:2], parameters[1:2]), layer.inverse(x[1:2], parameters[1:2])
    for (y, log_det), (row, row_log_det) in zip(whole, part, strict=True):
        torch.testing.assert_close((row, row_log_det), (y[1:2], log_det[1:2]))
    for function in (layer, layer.inverse):
        y, log_det = function(x[:0], parameters[:0])
        assert (y.shape, log_det.shape) == ((0, D), (0,))


def test_half_precision_and_autocast_compute_in_float32(name):
    layer, x, parameters = amortized(name, 5, torch.float32)
    expected = layer(x, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, parameters)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    y, log_det = layer(x.bfloat16(), parameters.bfloat16())
    assert (y.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)


def test_an_amortization_is_a_linear_map_of_the_context(name):
    layer = LAYERS[name](amortized=True)
    conditional = LinearAmortization(layer, 4).double()
    x, context = torch.randn(5, D, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    y, log_det = conditional(x, context)
    torch.testing.assert_close((y, log_det), layer(x, conditional.net(context)))
    torch.testing.assert_close(conditional.inverse(y, context)[0], x)


def test_arguments_that_cannot_be_used_are_refused(name):
    layer, x, parameters = amortized(name, 5)
    for function in (layer, layer.inverse):
        with pytest.raises(ValueError, match="parameters must have shape"):
            function(x, parameters[:, 1:])
        with pytest.raises(ValueError, match="parameters must have shape"):
            function(x, parameters[:1])
        with pytest.raises(ValueError, match="parameters must be given for a layer with amortized=True, got None"):
            function(x)
        with pytest.raises(ValueError, match="must have shape"):
            function(x[:, 1:], parameters)
    own = LAYERS[name]().double()
    with pytest.raises(ValueError, match=r"parameters must be None for a layer with amortized=False, got a tensor"):
        own(x, parameters)
    with pytest.raises(ValueError, match="layer must be amortized"):
        LinearAmortization(own, 2)


def test_no_features_are_refused():
    for layer in (DiagonalAffine, Planar, Radial, Sylvester):
        with pytest.raises(ValueError, match="features must be at least 1, got 0"):
            layer(0)
