"""The laws of heads: probabilities sum to one, layouts are read as told, and what is wrong is refused."""

from __future__ import annotations

import json
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastgen.distributions import discretized_logistic_log_prob
from fastgen.generate import heads
from tests.generate.head_cases import CUSTOM, DISCRETE, HEADS, Mixture, joint, random_levels, shape_of


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_sum_to_one(name, scale):
    head, channels = DISCRETE[name]
    for _ in range(20):
        parameters = torch.randn(*shape_of(head, channels), dtype=torch.float64) * scale
        total = joint(head, parameters, channels).sum()
        assert abs(total - 1) <= 1e3 * torch.finfo(torch.float64).eps * (1 + scale)


@pytest.mark.parametrize("head", [heads.Gaussian(), heads.Gaussian(3), heads.LogisticMixture(3)], ids=str)
def test_densities_integrate_to_one(head):
    parameters = torch.randn(1, head.parameters_per_group, dtype=torch.float64) / 2
    values = torch.linspace(-300, 300, 2_000_001, dtype=torch.float64)
    density = head.group_log_prob(parameters.expand(len(values), 1, -1), values[:, None, None]).exp()
    assert abs(torch.trapezoid(density[:, 0], values) - 1) < 1e-12


def test_bivariate_density_integrates_to_one():
    head = heads.BivariateGaussianMixture(2)
    parameters = torch.randn(1, 12, dtype=torch.float64) / 2
    line = torch.linspace(-25, 25, 1501, dtype=torch.float64)
    values = torch.cartesian_prod(line, line)
    density = head.group_log_prob(parameters.expand(len(values), 1, -1), values[:, None]).exp().reshape(1501, 1501)
    assert abs(torch.trapezoid(torch.trapezoid(density, line), line) - 1) < 1e-12


def test_bivariate_density_is_torch_s():
    head = heads.BivariateGaussianMixture(3)
    logits, x, y, log_x, log_y, r = parameters = torch.randn(6, 3, dtype=torch.float64)
    covariance = torch.tanh(r) * (log_x + log_y).exp()
    matrix = torch.stack([(2 * log_x).exp(), covariance, covariance, (2 * log_y).exp()], -1).reshape(3, 2, 2)
    exact = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.MultivariateNormal(torch.stack([x, y], -1), matrix),
    )
    values = torch.randn(100, 2, dtype=torch.float64) * 3
    ours = head.log_prob(parameters.reshape(1, 18, 1).expand(100, 18, 1), values[:, :, None])
    torch.testing.assert_close(ours, exact.log_prob(values), rtol=1e-12, atol=1e-12)


def test_logistic_mixture_is_the_limit_of_the_discretized_one():
    """With narrow bins a bin's probability is its width times the density."""
    levels, mixtures = 1 << 16, 3
    parameters = torch.randn(1, 3 * mixtures, 1, dtype=torch.float64) / 4
    level = torch.randint(1, levels - 1, (50, 1))
    value = level.double() / (levels - 1) * 2 - 1
    density = heads.LogisticMixture(mixtures).log_prob(parameters.expand(50, -1, -1), value)
    discretized = Mixture(mixtures, levels).log_prob(parameters.expand(50, -1, -1), level)
    torch.testing.assert_close(discretized, density + math.log(2 / (levels - 1)), rtol=0, atol=1e-8)


@given(
    st.integers(2, 256),
    st.floats(0, 1),
    st.floats(-2, 2),
    st.floats(-7, 30),
)
def test_discretized_logistic_in_many_digits(levels, where, mean, log_scale):
    """The error is a few roundings of the log-probability and of the standardised bin edges, however far the tail."""
    level = round(where * (levels - 1))
    with mpmath.workdps(400):
        x, half = mpmath.mpf(2 * level) / (levels - 1) - 1, mpmath.mpf(1) / (levels - 1)
        scale = mpmath.exp(log_scale)
        a, b = (x + half - mean) / scale, (x - half - mean) / scale
        upper = 1 if level == levels - 1 else 1 / (1 + mpmath.exp(-a))
        lower = 0 if level == 0 else 1 / (1 + mpmath.exp(-b))
        exact = mpmath.log(upper - lower)
        size = float(abs(exact) + abs(a) + abs(b) + 1 / scale)
    for dtype in (torch.float64, torch.float32):
        arguments = (torch.tensor(v, dtype=dtype) for v in (mean, log_scale))
        value = float(discretized_logistic_log_prob(torch.tensor(level), *arguments, levels))
        rounded = 1 + abs(log_scale)
        assert abs(value - float(exact)) <= 8 * rounded * torch.finfo(dtype).eps * (1 + size)


def public_mixture_log_prob(x: Tensor, output: Tensor, mixtures: int) -> tuple[Tensor, Tensor]:
    """PixelCNN++'s loss as its public code has it: x [N, H, W, 3] in [-1, 1], output [N, H, W, 10 M].

    Returns the log-probability of each pixel, and where every bin has mass enough that no density stands in for it.
    """
    logits, rest = output[..., :mixtures], output[..., mixtures:].reshape(*x.shape, 3 * mixtures)
    means, log_scales = rest[..., :mixtures], rest[..., mixtures : 2 * mixtures].clamp(min=-7)
    coefficients = torch.tanh(rest[..., 2 * mixtures :])
    x = x[..., None].expand(*x.shape, mixtures)
    m2 = means[:, :, :, 1] + coefficients[:, :, :, 0] * x[:, :, :, 0]
    m3 = means[:, :, :, 2] + coefficients[:, :, :, 1] * x[:, :, :, 0] + coefficients[:, :, :, 2] * x[:, :, :, 1]
    centered = x - torch.stack([means[:, :, :, 0], m2, m3], 3)
    plus, minus = torch.exp(-log_scales) * (centered + 1 / 255), torch.exp(-log_scales) * (centered - 1 / 255)
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    inner = torch.log(delta.clamp(min=1e-12))
    upper = torch.where(x > 0.999, -F.softplus(minus), inner)
    log_probs = torch.where(x < -0.999, plus - F.softplus(plus), upper).sum(3) + F.log_softmax(logits, -1)
    return torch.logsumexp(log_probs, -1), (delta > 1e-5).flatten(3).all(-1)


def test_mixture_is_the_public_one():
    mixtures, head = 4, Mixture(4)
    output = torch.randn(16, 10 * mixtures, 8, 8, dtype=torch.float64)
    levels = torch.randint(0, 256, (16, 3, 8, 8))
    levels[0], levels[1] = 0, 255
    x = (levels.double() / 127.5 - 1).permute(0, 2, 3, 1)
    theirs, settled = public_mixture_log_prob(x, output.permute(0, 2, 3, 1), mixtures)
    ours = head.group_log_prob(head.arrange(output, (3, 8, 8)), levels.flatten(2).transpose(1, 2)[:, :, None]).reshape(
        theirs.shape
    )
    assert settled.float().mean() > 0.5
    torch.testing.assert_close(ours[settled], theirs[settled], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_gradients(name):
    head, channels = HEADS[name]
    groups, count = shape_of(head, channels)
    parameters = torch.randn(2, groups * count, 2, 1, dtype=torch.float64, requires_grad=True)
    levels = random_levels(head, 2, channels, 2, 1)
    assert torch.autograd.gradcheck(lambda p: head.log_prob(p, levels), parameters, fast_mode=True)


@pytest.mark.parametrize("name", HEADS)
def test_float32_loss_and_gradient_stay_finite(name):
    head, channels = HEADS[name]
    groups, count = shape_of(head, channels)
    for scale in (1e-3, 1.0, 30.0):
        output = (torch.randn(8, groups * count, 5, 5) * scale).requires_grad_()
        shape = (8, channels, 5, 5)
        levels = random_levels(head, *shape)
        loss = head.log_prob(output, levels)
        assert loss.dtype == torch.float32
        loss.sum().backward()
        assert loss.isfinite().all()
        assert output.grad.isfinite().all()
        assert head.log_prob(output.detach().bfloat16(), levels).dtype == torch.float32


LAYOUTS = [
    (heads.Bernoulli(), (3, 2, 4), (3, 2, 4), 3),
    (heads.Bernoulli(), (6,), (6,), 1),
    (heads.Bernoulli(), (6,), (1, 6), 1),
    (heads.Categorical(5), (6,), (5, 6), 1),
    (heads.Categorical(5), (1, 2, 4), (5, 2, 4), 1),
    (heads.Categorical(5), (3, 2, 4), (15, 2, 4), 3),
    (heads.Categorical(5), (3, 2, 4), (3, 5, 2, 4), 3),
    (Mixture(2, 7), (1, 2, 4), (6, 2, 4), 1),
    (Mixture(2, 7), (3, 2, 4), (20, 2, 4), 1),
    (Mixture(2, 7, channels=1), (3, 2, 4), (18, 2, 4), 3),
    (Mixture(2, 7), (6,), (6, 6), 1),
    (heads.Gaussian(), (2, 6), (4, 6), 2),
    (heads.Gaussian(3), (2, 6), (18, 6), 2),
    (heads.LogisticMixture(1), (2, 6), (6, 6), 2),
    (heads.BivariateGaussianMixture(3), (2, 6), (18, 6), 1),
    (heads.BivariateGaussianMixture(3), (4, 2, 3), (36, 2, 3), 2),
    (heads.Composite(heads.BivariateGaussianMixture(3), heads.Bernoulli()), (3, 6), (19, 6), 1),
    (heads.Composite(heads.Categorical(5), heads.Gaussian()), (2, 2, 4), (7, 2, 4), 1),
    (CUSTOM["custom"][0], (2, 6), (2, 6), 1),
    (CUSTOM["custom-discrete"][0], (6,), (1, 6), 1),
]


@pytest.mark.parametrize(("head", "event_shape", "layout", "groups"), LAYOUTS, ids=str)
def test_arrange_moves_channels_last(head, event_shape, layout, groups):
    ids = torch.arange(2 * math.prod(layout)).reshape(2, *layout)
    arranged = head.arrange(ids, event_shape)
    count = head.resolve(event_shape).parameters_per_group
    positions = math.prod(event_shape[1:]) if len(event_shape) > 1 else event_shape[0]
    assert head.groups(event_shape) == groups
    assert arranged.shape == (2, positions, groups, count)
    n, p, g, k = torch.meshgrid(*map(torch.arange, arranged.shape), indexing="ij")
    assert torch.equal(arranged, ((n * groups + g) * count + k) * positions + p)


@pytest.mark.parametrize(("head", "event_shape", "layout", "groups"), LAYOUTS, ids=str)
def test_arrange_refuses_other_layouts(head, event_shape, layout, groups):
    for wrong in ((layout[0] + 1, *layout[1:]), layout[:-1], (*layout, 1), (*layout[:-1], layout[-1] + 1)):
        with pytest.raises(ValueError, match=r"output must have shape \[N, .*, got \[2"):
            head.arrange(torch.zeros(2, *wrong), event_shape)


def test_one_event_two_layouts():
    head = heads.Categorical(4)
    output, levels = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 4, (2, 3, 5))
    exact = F.log_softmax(output, 2).gather(2, levels[:, :, None]).sum((1, 2, 3))
    for layout in (output, output.flatten(1, 2)):
        torch.testing.assert_close(head.log_prob(layout, levels), exact)


def test_inputs():
    levels = torch.tensor([[0, 1, 4]])
    assert heads.Categorical(5).to_input(levels).dtype == torch.int64
    assert torch.equal(heads.Categorical(5).to_input(levels.byte()), levels)
    table = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0])
    for to_input, expected in (("unit", [0, 0.25, 1]), ("symmetric", [-1, -0.5, 1]), (table, [3, 1, 9])):
        values = heads.Categorical(5, to_input).to_input(levels)
        assert values.dtype == torch.float32
        assert values.tolist() == [expected]
    assert torch.equal(heads.Gaussian().to_input(torch.tensor([[0.5]])), torch.tensor([[0.5]]))


WRONG = [
    (lambda: heads.Categorical(1), "levels must be an integer, 2 or more.*, got 1"),
    (lambda: heads.Categorical(4.0), "levels must be .*, got 4.0"),
    (lambda: Mixture(0), "mixtures must be an integer, 1 or more.*, got 0"),
    (lambda: Mixture(5, 1), "levels must be .*, got 1"),
    (lambda: Mixture(5, channels=2), "channels must be 1, 3 or None.*, got 2"),
    (lambda: Mixture(5, to_input="unit", feed_raw=True), "feed_raw=True needs to_input='symmetric'"),
    (lambda: Mixture(5).parameters_per_group, "call resolve"),
    (lambda: Mixture(5).groups((2, 4, 4)), "has 2 channels; .* couples 1 or 3"),
    (lambda: Mixture(5, channels=3).groups((4, 4, 4)), "has 4 channels"),
    (lambda: heads.Gaussian(min_log_scale=math.inf), "min_log_scale must be .*, got inf"),
    (
        lambda: heads.Categorical(4, "indexed"),
        "to_input must be None, 'index', 'float', 'unit', 'symmetric' or a tensor of 4 values, got 'indexed'",
    ),
    (lambda: heads.Categorical(4, torch.zeros(3)), r"to_input must be a table of .* \[4\], got torch.float32 \[3\]"),
    (lambda: heads.Categorical(4).groups(()), r"event_shape must be .*, got \(\)"),
    (lambda: heads.Categorical(4).check_sampling(0.0), "temperature must be a finite number above 0.*, got 0.0"),
    (lambda: heads.Categorical(4).check_sampling(math.nan), "temperature must be a finite number of float32, got nan"),
    (lambda: heads.Categorical(4).check_sampling(1.0, top_k=5), r"top_k must be an integer in 0 \(off\) .. 4.*, got 5"),
    (lambda: heads.Categorical(4).check_sampling(1.0, top_k=-1), "top_k must be .*, got -1"),
    (lambda: heads.Categorical(4).check_sampling(1.0, top_p=0.0), "top_p must be above 0 and at most 1.*, got 0.0"),
    (lambda: heads.Bernoulli().check_sampling(1.0, top_k=1), "only a Categorical head"),
    (lambda: Mixture(5).check_sampling(1.0, top_p=0.5), "only a Categorical head"),
    (lambda: Mixture(5, feed_raw=True).check_sampling(1.0, scored=True), "feed_raw=True draws have no log-probability"),
    (lambda: heads.Categorical(4).log_prob(torch.zeros(1, 4, 2), torch.full((1, 2), 4)), "levels has values in 4 .. 4"),
    (lambda: heads.Categorical(4).log_prob(torch.zeros(1, 4, 2), torch.zeros(1, 2)), "levels has dtype torch.float32"),
    (lambda: heads.Categorical(4).log_prob(torch.zeros(1, 4, 2), torch.zeros(2, 2).long()), "levels has 2 samples"),
    (lambda: heads.Gaussian().log_prob(torch.zeros(1, 2, 2), torch.zeros(1, 2).long()), "takes floating-point values"),
    (lambda: heads.from_config({"kind": "poisson"}), "kind must be one of bernoulli.*, got 'poisson'"),
    (lambda: heads.LogisticMixture(0), "mixtures must be an integer, 1 or more.*, got 0"),
    (lambda: heads.BivariateGaussianMixture(2, math.nan), "min_log_scale must be .*, got nan"),
    (lambda: heads.BivariateGaussianMixture(2).groups((3, 4)), "has 3 channels; .* couples 2"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", HEADS)
def test_config_makes_the_same_head(name):
    head, channels = HEADS[name]
    twin = heads.from_config(json.loads(json.dumps(heads.to_config(head))), head if name in CUSTOM else None)
    assert repr(twin) == repr(head)
    specs = [str(h.spec()) for h in (head, twin)]
    assert specs[0] == specs[1]
    assert twin.resolve((channels, 2, 2)).layouts((channels, 2, 2)) == head.layouts((channels, 2, 2))
