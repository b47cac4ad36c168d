from __future__ import annotations

import copy

import pytest
import torch

from fastgen.nn import ActNorm, FlowSequential


@pytest.mark.parametrize("shape", [(64, 3), (8, 3, 50), (4, 3, 9, 7)])
def test_the_first_batch_leaves_with_mean_0_and_variance_1(shape):
    layer = ActNorm(3)
    x = torch.randn(shape).mul_(3).add_(100)
    y, _ = layer(x)
    variance, mean = torch.var_mean(y.double(), [0, *range(2, x.dim())], correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-4)


def test_only_the_first_batch_in_training_sets_the_parameters():
    layer = ActNorm(2).eval()
    x = 5 + torch.randn(10, 2)
    assert torch.equal(layer(x)[0], x)
    assert not layer.initialized
    layer.train()
    layer.inverse(x)
    assert not layer.initialized
    layer(x)
    assert layer.initialized
    first = copy.deepcopy(layer.state_dict())
    layer(x + 3)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, first[name])


def test_the_state_dict_says_whether_it_was_set():
    layer, other = ActNorm(2), ActNorm(2)
    empty = copy.deepcopy(other.state_dict())
    x = 5 + torch.randn(10, 2)
    layer(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x + 1)[0], layer(x + 1)[0])
    other.load_state_dict(empty)
    assert not torch.equal(other(x + 1)[0], layer(x + 1)[0])
    assert other.initialized


def test_half_precision_is_computed_in_float32():
    layer = ActNorm(3)
    layer(7 + torch.randn(50, 3))
    x = torch.randn(4, 3).bfloat16()
    y, log_det = layer(x)
    wide, wide_log_det = layer(x.float())
    assert torch.equal(y, wide.bfloat16())
    assert log_det.dtype == torch.float32
    assert torch.equal(log_det, wide_log_det)


def test_it_compiles_once_it_is_set():
    layer, x = ActNorm(3), torch.randn(4, 3, 5)
    layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(compiled(x), layer(x), strict=True):
        torch.testing.assert_close(mine, eager)


def test_wrong_arguments_and_parameters_are_named():
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        ActNorm(0)
    with pytest.raises(ValueError, match=r"x must have shape .*got \(2, 4\)"):
        ActNorm(3)(torch.zeros(2, 4))
    for shape in ((0, 3), (1, 3), (1, 3, 1)):  # reports_actnorm_constant_channel
        layer = ActNorm(3)
        with pytest.raises(ValueError, match="must have 2 values of a channel or more"):
            layer(torch.randn(shape))
        assert not layer.initialized
    for wrong in (float("nan"), float("inf")):
        layer = ActNorm(3)
        with pytest.raises(ValueError, match="not finite"):
            layer(torch.full((2, 3), wrong))
        assert not layer.initialized


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4, -7.7e8])
@pytest.mark.parametrize("shape", [(33, 3), (2, 3, 5)])
def test_a_channel_that_is_constant_in_the_first_batch_keeps_its_scale(shape, constant):
    """reports_actnorm_constant_channel"""
    x = torch.randn(shape)
    x[:, 1] = constant
    layer, other = ActNorm(3), ActNorm(3)
    with pytest.warns(RuntimeWarning, match=r"1 of 3 channels are constant .* \(channel 1 is the first of them\)"):
        layer(x)
    assert layer.log_scale[1] == 0
    torch.testing.assert_close(layer.bias[1], torch.tensor(-constant))
    other(torch.where(torch.arange(3).reshape(3, *[1] * (x.dim() - 2)) == 1, torch.randn(shape), x))
    assert torch.equal(layer.log_scale[::2], other.log_scale[::2])
    layer(x)  # says nothing more


def test_a_small_deviation_is_no_constant():
    layer = ActNorm(1)
    layer(1 + 1e-4 * torch.randn(100, 1))
    assert layer.log_scale > 8


@pytest.mark.parametrize("norm", [ActNorm, lambda channels: FlowSequential(ActNorm(channels), ActNorm(channels))])
def test_batches_after_one_with_a_constant_channel_stay_of_their_size(norm):
    x, layer = torch.randn(160, 3), norm(3)
    x[:40, 2] = 0
    with pytest.warns(RuntimeWarning, match="are constant"):
        layer(x[:40])
    y, log_det = layer(x[40:])
    assert y.abs().max() < 10
    assert log_det.abs().max() < 5


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_parameters_that_cannot_be_used_are_named(method):
    layer = ActNorm(3).eval()
    layer.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match="bias must be finite, got 1 values that are not"):
        getattr(layer, method)(torch.zeros(2, 3))
    layer.bias.data[1] = 0
    layer.log_scale.data[1] = 100
    with pytest.raises(ValueError, match=r"log_scale must have an exp .*, got numbers from 0 to 100"):
        getattr(layer, method)(torch.zeros(2, 3))
