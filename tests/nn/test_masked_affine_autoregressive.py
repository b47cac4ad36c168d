from __future__ import annotations

import pytest
import torch

from fastgen.nn import InverseAutoregressive, MaskedAffineAutoregressive

BOTH = pytest.mark.parametrize("layer_class", [MaskedAffineAutoregressive, InverseAutoregressive])


@BOTH
@pytest.mark.parametrize("samples", [0, 1, 5])
def test_one_feature_and_no_samples(samples, layer_class):
    layer = layer_class(1, (4,), hidden_degrees="random")
    x = torch.randn(samples, 1)
    u, log_det = layer(x)
    assert log_det.shape == (samples,)
    torch.testing.assert_close(layer.inverse(u)[0], x)


@BOTH
def test_both_directions_train_every_parameter_that_is_used(layer_class):
    layer = layer_class(3, (8, 8), activation="tanh", context_features=2)
    for direction in (layer.forward, layer.inverse):
        layer.zero_grad()
        y, log_det = direction(torch.randn(7, 3), torch.randn(7, 2))
        (y.square().sum() + log_det.sum()).backward()
        for linear in layer.made.layers:
            assert (linear.weight.grad[linear.mask == 1] != 0).all()
        assert (layer.made.context.weight.grad != 0).all()


def test_gradients_of_both_directions_agree():
    """d inverse = (d forward)^-1, with respect to the input; and x stays where it is, with respect to the weights."""
    torch.manual_seed(0)
    layer = MaskedAffineAutoregressive(4, (9, 9), activation="elu", parameterisation="softplus").double()
    u = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x, _ = layer.inverse(u)
    again, _ = layer(x)
    gradients = torch.autograd.grad(again.sin().sum(), [u, *layer.parameters()], allow_unused=True)
    torch.testing.assert_close(gradients[0], u.detach().cos())
    for grad in gradients[1:]:
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


@BOTH
def test_log_determinants_are_float32_at_least(layer_class):
    layer = layer_class(3, (8,)).bfloat16()
    for direction in (layer.forward, layer.inverse):
        y, log_det = direction(torch.randn(5, 3, dtype=torch.bfloat16))
        assert (y.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match="parameterisation must be one of 'exp', 'sigmoid', 'softplus', 'bounded', got 'tanh'"
    ):
        MaskedAffineAutoregressive(3, parameterisation="tanh")
