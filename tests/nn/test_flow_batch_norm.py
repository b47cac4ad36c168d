from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastgen.nn import FlowBatchNorm


def make(channels: int = 3, affine: bool = False) -> FlowBatchNorm:
    layer = FlowBatchNorm(channels, affine=affine).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("affine", [False, True])
def test_after_the_first_batch_both_modes_agree_on_it(affine):
    layer, x = make(affine=affine), 7 + 2 * torch.randn(6, 3, 4, dtype=torch.float64)
    y, log_det = layer(x)
    for mine, other in zip(layer.eval()(x), (y, log_det), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(layer.train().inverse(y)[0], x)
    if not affine:
        variance, mean = torch.var_mean(y, (0, 2), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean))
        torch.testing.assert_close(variance, (own := x.var((0, 2), correction=0)) / (own + layer.epsilon))


def test_the_averages_are_plain_until_momentum_weighs_more():
    layer = FlowBatchNorm(1, momentum=0.25).double()
    batches = torch.randn(7, 5, 1, dtype=torch.float64)
    for batch in batches[:4]:
        layer(batch)
    torch.testing.assert_close(layer.mean[0], batches[:4].mean())
    torch.testing.assert_close(layer.variance[0], batches[:4].var(1, correction=0).mean())
    for batch in batches[4:]:
        wanted = 0.75 * layer.mean + 0.25 * batch.mean()
        layer(batch)
        torch.testing.assert_close(layer.mean, wanted)


def test_the_gradient_goes_through_the_statistics_of_the_batch():
    """y does not change when a number is added to a channel, so the gradient of any function of y sums to 0 there."""
    layer, x = make(), torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    y, log_det = layer(x)
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * weights).sum() + log_det.sum(), x)
    torch.testing.assert_close(gradient.sum((0, 2)), torch.zeros(3, dtype=torch.float64))
    assert torch.autograd.gradcheck(copy.deepcopy(layer), x)


def test_half_precision_is_computed_in_float32():
    layer, x = FlowBatchNorm(3, affine=True), (7 + torch.randn(50, 3)).bfloat16()
    y, log_det = copy.deepcopy(layer)(x)
    wide, wide_log_det = layer(x.float())
    assert torch.equal(y, wide.bfloat16())
    assert log_det.dtype == torch.float32
    assert torch.equal(log_det, wide_log_det)


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_and_averages_alike(training):
    layer, x = FlowBatchNorm(3, affine=True).train(training), torch.randn(4, 3, 5)
    other = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for mine, eager in zip(compiled(x), other(x), strict=True):
            torch.testing.assert_close(mine, eager)
    torch.testing.assert_close(layer.state_dict(), other.state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_forward_that_is_computed_again_adds_nothing_to_the_averages(use_reentrant):
    layer, x = make(), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    other = copy.deepcopy(layer)
    checkpoint(layer, x, use_reentrant=use_reentrant)[0].square().sum().backward()
    other(x)
    assert layer.batches == 1
    torch.testing.assert_close(layer.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_in_half_precision_averages_within_its_rounding(dtype):
    torch.manual_seed(0)
    layer, half = FlowBatchNorm(2, affine=True), FlowBatchNorm(2, affine=True).to(dtype)
    for _ in range(5):
        x = (3 + 4 * torch.randn(50, 2)).to(dtype)
        torch.testing.assert_close(half(x)[0], layer(x)[0], rtol=0, atol=0)
    for y, wide in zip(half.eval()(x), layer.eval()(x), strict=True):
        torch.testing.assert_close(y.float(), wide.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_constant_channel_and_evaluation_before_training_stay_finite(dtype):
    layer, x = FlowBatchNorm(2).to(dtype), torch.randn(20, 2, dtype=dtype)
    assert torch.equal(layer.eval()(x)[0], FlowBatchNorm(2).eval()(x)[0])
    x[:, 1] = 3.0
    y, log_det = layer.train()(x)
    assert (y[:, 1] == 0).all()
    assert log_det.isfinite().all()
    assert layer.eval()(torch.randn(20, 2, dtype=dtype))[0].isfinite().all()


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_averages_that_are_not_finite_are_named(method):
    layer = FlowBatchNorm(2).half()
    layer((1000 * torch.randn(50, 2)).half())  # whose variance is beyond half precision
    with pytest.raises(ValueError, match="variance must be finite, got 2 values that are not"):
        getattr(layer.eval(), method)(torch.randn(3, 2).half())


def test_errors():
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        FlowBatchNorm(0)
    with pytest.raises(ValueError, match="momentum must be greater than 0 and at most 1, got 0"):
        FlowBatchNorm(3, momentum=0)
    layer = FlowBatchNorm(3)
    for call in (layer, layer.inverse):
        with pytest.raises(ValueError, match=r"x must have shape \[N, 3, ...\], got \(4, 2\)"):
            call(torch.randn(4, 2))
    for shape in ((1, 3), (0, 3), (1, 3, 1)):
        with pytest.raises(ValueError, match=r"x must have 2 values of a channel or more in training mode, got shape"):
            layer(torch.randn(shape))
    assert layer.batches == 0
