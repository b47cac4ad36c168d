"""Laws and extremes of mixtures of discretized logistics; what every op must do is in test_contract.py."""

from __future__ import annotations

import itertools

import pytest
import torch

import fastgen
from fastgen.distributions import discretized_logistic_mixture_log_prob
from fastgen.ops import logistic_mixture
from fastgen.reference.logistic_mixture import discretized_logistic_log_prob

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with fastgen.backend(request.param):
        yield request.param


def check_finite(level: torch.Tensor, parameters: torch.Tensor, **options) -> torch.Tensor:
    """Value and gradient are finite, and the value is that of float64."""
    parameters = parameters.requires_grad_()
    value = logistic_mixture(level, parameters, **options)
    (gradient,) = torch.autograd.grad(value.sum(), parameters)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    exact = logistic_mixture(level, parameters.detach().double(), **options)
    near = logistic_mixture(level, parameters.detach().double() * (1 + EPSILON), **options)
    assert ((value - exact).abs() <= 16 * EPSILON * (1 + exact.abs()) + 8 * (near - exact).abs()).all()
    return value


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 300), (3, 2), (3, 6)])
def test_probabilities_sum_to_one(channels, levels, scale):
    level = torch.tensor(list(itertools.product(range(levels), repeat=channels)))
    parameters = scale * torch.randn(5, 1, 4 * (3 if channels == 1 else 10), dtype=torch.float64)
    total = logistic_mixture(level, parameters, levels=levels).exp().sum(-1)
    assert ((total - 1).abs() <= 1e3 * torch.finfo(torch.float64).eps * (1 + scale)).all()


def test_one_component_of_one_channel_is_the_discretized_logistic():
    level, raw = torch.arange(256)[:, None], torch.randn(3, dtype=torch.float64)
    value = logistic_mixture(level, raw)
    torch.testing.assert_close(value, discretized_logistic_log_prob(level[:, 0], raw[1], raw[2], 256))


def test_bins_of_any_width_in_float64():
    """From hundreds of scales to 1e-17 of one, across the points where their formula changes."""
    level, log_scale = torch.full((500, 1), 100), torch.linspace(-12, 40, 500, dtype=torch.float64)
    raw = torch.stack([torch.zeros_like(log_scale), torch.full_like(log_scale, -0.2), log_scale], 1).requires_grad_()
    value = logistic_mixture(level, raw, min_log_scale=-60.0)
    wanted = discretized_logistic_log_prob(level[:, 0], raw[:, 1], raw[:, 2], 256)
    torch.testing.assert_close(value, wanted, rtol=1e-13, atol=0)
    (mine,), (theirs,) = (torch.autograd.grad(v.sum(), raw) for v in (value, wanted))
    torch.testing.assert_close(mine[:, 2], theirs[:, 2], rtol=1e-12, atol=1e-12)


def test_equal_components_are_as_one():
    level = torch.randint(0, 256, (64, 3))
    raw = torch.randn(64, 10, 1, dtype=torch.float64)
    logits = torch.randn(64, 1, 7, dtype=torch.float64)
    seven = torch.cat([logits, raw[:, 1:].expand(-1, -1, 7)], 1).flatten(1)
    torch.testing.assert_close(logistic_mixture(level, seven), logistic_mixture(level, raw.flatten(1)))


@pytest.mark.parametrize("size", [1e4, 1e6])
@pytest.mark.parametrize("channels", [1, 3])
def test_extreme_logits(channels, size):
    level = torch.randint(0, 256, (50, channels))
    parameters = torch.randn(50, 10 * (3 if channels == 1 else 10))
    parameters[:, :10] = size * torch.randint(-1, 2, (50, 10))
    check_finite(level, parameters)


@pytest.mark.parametrize("log_scale", [-1e4, -7.0, 20.0, 80.0])
@pytest.mark.parametrize("mean", [0.0, -1e4, 1e4])
@pytest.mark.parametrize("level", [0, 100, 255])
def test_extreme_scales_and_means(level, mean, log_scale):
    check_finite(torch.tensor([level]), torch.tensor([0.3, -0.2, mean, mean, log_scale, log_scale]))


def test_a_component_of_no_weight_is_as_none():
    level, parameters = torch.randint(0, 256, (20, 1)), torch.randn(20, 9)
    alone = torch.stack([parameters[:, 1:3], parameters[:, 4:6], parameters[:, 7:9]], 1).flatten(1)
    parameters[:, 0] = -float("inf")
    torch.testing.assert_close(logistic_mixture(level, parameters), logistic_mixture(level, alone))


def test_log_scales_under_the_least_count_as_it():
    level, parameters = torch.randint(0, 256, (20, 1)), torch.randn(20, 3)
    low, least = parameters.clone(), parameters.clone()
    low[:, 2], least[:, 2] = -9.0, -3.0
    low.requires_grad_()
    value = logistic_mixture(level, low, min_log_scale=-3.0)
    assert torch.equal(value, logistic_mixture(level, least, min_log_scale=-3.0))
    (gradient,) = torch.autograd.grad(value.sum(), low)
    assert (gradient[:, 2] == 0).all()
    assert (gradient[:, 1] != 0).any()


def test_leading_dimensions_broadcast():
    level, parameters = torch.randint(0, 9, (4, 1, 3)), torch.randn(5, 20)
    value = logistic_mixture(level, parameters, levels=9)
    assert value.shape == (4, 5)
    assert torch.equal(value[1, 2], logistic_mixture(level[1, 0], parameters[2], levels=9))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_distribution_of_parts_is_that_of_the_whole(channels):
    """Parts of different leading dimensions; without coefficients the means are not shifted."""
    level, logits = torch.randint(0, 256, (4, 6, channels)), torch.randn(6, 2, dtype=torch.float64)
    means, log_scales = torch.randn(2, 4, 1, channels, 2, dtype=torch.float64)
    value = discretized_logistic_mixture_log_prob(logits, means, log_scales, None, level, 256)
    each = discretized_logistic_log_prob(level[..., None], means, log_scales, 256).sum(-2)
    torch.testing.assert_close(value, (logits.log_softmax(-1) + each).logsumexp(-1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"level": torch.zeros(2, 3)}, TypeError, "level must be .*, got torch.float32"),
        ({"parameters": torch.zeros(2, 10, dtype=torch.int64)}, TypeError, "parameters must be .*, got torch.int64"),
        ({"level": torch.tensor(1)}, ValueError, "level must have at least one dimension, got none"),
        ({"level": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, "level must have 1 or 3 channels, got 2"),
        ({"parameters": torch.zeros(2, 11)}, ValueError, r"parameters must have 10 M numbers for.*, got 11"),
        (
            {"parameters": torch.zeros(3, 10)},
            ValueError,
            r"parameters and level must broadcast in.*, got shapes \(3, 10\) and \(2, 3\)",
        ),
        ({"levels": 1}, ValueError, "levels must .*, got 1"),
        ({"min_log_scale": float("nan")}, ValueError, "min_log_scale must .*, got nan"),
        ({"level": torch.full((2, 3), 8)}, ValueError, "level must be in 0 to 7, got 8 to 8"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    right = {"level": torch.zeros(2, 3, dtype=torch.int64), "parameters": torch.zeros(2, 10), "levels": 8}
    with pytest.raises(error, match=message):
        logistic_mixture(**(right | change))


def test_levels_are_read_where_that_waits_for_no_device():
    level, parameters = torch.full((2, 3), 8, device="meta"), torch.zeros(2, 10, device="meta")
    with fastgen.backend("reference"):
        assert logistic_mixture(level, parameters, levels=8).shape == (2,)


@pytest.mark.gpu
def test_on_cuda_a_log_scale_that_is_nan_is_not_taken_for_a_small_one():
    level, parameters = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 3)
    parameters[0, 2] = torch.nan
    assert logistic_mixture(level.cuda(), parameters.cuda()).isnan().tolist() == [True, False]
