from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.models import create_model
from fastgen.models.flows import NICE
from fastgen.nn import MLP, ActNorm, AffineCoupling, FlowSequential, VariationalDequantization

LEVELS = 2
PAIRS = torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS))


def of_pairs(scale: float = 1.0, context_features: int = 0) -> VariationalDequantization:
    """Of events (2,): each number is scaled and shifted by the levels, and the other number."""
    nets = [MLP(1, 2, hidden=(8,), activation=torch.tanh, context_features=2 + context_features) for _ in range(2)]
    wide = ActNorm(2).eval()
    nn.init.constant_(wide.log_scale, math.log(scale))
    options = {"parameterisation": "tanh", "scale": 0.5}  # bounded: no tail leaves a grid
    flow = FlowSequential(wide, AffineCoupling(nets[0], **options), AffineCoupling(nets[1], swap=True, **options))
    return VariationalDequantization(flow, LEVELS).double().eval()


def grid(end: float, size: int) -> tuple[Tensor, float]:
    """Points of a square around 0, and the area of each: the trapezoid rule for what vanishes at the border."""
    line = torch.linspace(-end, end, size, dtype=torch.float64)
    return torch.cartesian_prod(line, line), float(line[1] - line[0]) ** 2


def normal_grid() -> tuple[Tensor, Tensor]:
    """Uniform noise [M, 2] and weights [M] of the trapezoid rule for expectations over it."""
    points, area = grid(8, 161)
    return torch.special.ndtr(points), area * (-0.5 * points.square().sum(1)).exp() / (2 * math.pi)


def a_flow_of_pairs() -> NICE:
    """A smooth density, so that quadratures are exact to the last digits."""
    torch.manual_seed(0)
    model = create_model("nice", preset="tiny", event_shape=(2,), levels=LEVELS, hidden=8).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for net in (module for module in model.modules() if isinstance(module, MLP)):
        net.activation = torch.tanh
    return model


def bounds(model: NICE, pair: Tensor, noise: Tensor) -> Tensor:
    return model.elbo(pair.expand(len(noise), 2), noise=noise)


@torch.no_grad()
@pytest.mark.parametrize("pair", PAIRS.tolist())
def test_the_density_of_the_noise_integrates_to_one(pair):
    """In y = logit(u), where the density vanishes at the border and the trapezoid rule has no error to speak of."""
    y, area = grid(20, 401)
    density = of_pairs().log_prob(torch.sigmoid(y), torch.tensor(pair).expand(len(y), 2))
    slope = torch.nn.functional.logsigmoid(torch.stack((y, -y))).sum((0, 2))
    torch.testing.assert_close((density + slope).exp().sum() * area, torch.ones((), dtype=torch.float64))


def test_the_log_density_is_that_of_the_change_of_variables():
    layer = of_pairs(context_features=3)
    levels, context = PAIRS, torch.randn(4, 3, dtype=torch.float64)
    noise = torch.rand(4, 2, dtype=torch.float64)
    u, log_q = layer(levels, noise, context)
    assert ((u > 0) & (u < 1)).all()
    jacobian = torch.autograd.functional.jacobian(lambda noise: layer(levels, noise, context)[0].sum(0), noise)
    torch.testing.assert_close(log_q, -jacobian.movedim(1, 0).slogdet()[1])
    torch.testing.assert_close(layer.log_prob(u, levels, context), log_q)


@torch.no_grad()
def test_the_bound_is_one_and_its_exponential_is_right_in_the_mean():
    """E[exp(bound)] = P(v), whatever the noise's flow, so that E[bound] <= log P(v): both by quadrature."""
    model = a_flow_of_pairs()
    nodes, node_weights = (torch.from_numpy(part) / 2 for part in np.polynomial.legendre.leggauss(60))
    uniform, uniform_weights = torch.cartesian_prod(nodes + 0.5, nodes + 0.5), torch.outer(node_weights, node_weights)
    noise, weights = normal_grid()
    for pair in PAIRS:
        model.dequantization = None
        log_p = (uniform_weights.flatten() * bounds(model, pair, uniform).exp()).sum().log()
        model.dequantization = of_pairs(scale=6.0)
        bound = bounds(model, pair, noise)
        found = (weights * bound.exp()).sum().log()
        torch.testing.assert_close(found, log_p)
        assert (weights * bound).sum() < log_p


def test_training_brings_the_bound_nearer_than_uniform_noise_does():
    """Where the density varies much within a level; both bounds by quadrature."""
    model = a_flow_of_pairs()
    nn.init.constant_(model.flow.layers[-1].log_scale, 2.0)
    noise, weights = normal_grid()
    with torch.no_grad():
        uniform = sum((weights * bounds(model, pair, noise)).sum() for pair in PAIRS)
    model.dequantization = of_pairs()
    optimizer, levels = torch.optim.Adam(model.dequantization.parameters(), 0.05), PAIRS.repeat(16, 1)
    for _ in range(60):
        optimizer.zero_grad()
        (-model.elbo(levels)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        trained = sum((weights * bounds(model, pair, noise)).sum() for pair in PAIRS)
    assert trained > uniform


def test_images_have_the_dequantization_of_flow_plus_plus():
    """Of every number given the whole image: a change of one level, or of the context, changes all of log q's terms."""
    layer = VariationalDequantization.of_images(
        (2, 2, 4), 5, couplings=2, filters=8, blocks=1, components=2, heads=2, features=4, context_features=3
    ).double()
    levels, noise = torch.randint(0, 4, (3, 2, 2, 4)), torch.rand(3, 2, 2, 4, dtype=torch.float64)
    context = torch.randn(3, 3, dtype=torch.float64)
    layer(levels, noise, context)
    u, log_q = layer.eval()(levels, noise, context)
    assert u.shape == levels.shape
    torch.testing.assert_close(layer.log_prob(u, levels, context), log_q)
    changed = levels.clone()
    changed[:, 0, 0, 0] += 1
    for others in ((changed, noise, context), (levels, noise, context + 1)):
        assert (layer(*others)[0] != u).all()
    jacobian = torch.autograd.functional.jacobian(lambda noise: layer(levels[:1], noise, context[:1])[0], noise[:1])
    torch.testing.assert_close(jacobian.reshape(16, 16).slogdet()[1], -log_q[0])
    assert layer(levels[:0], noise[:0], context[:0])[1].shape == (0,)


@torch.no_grad()
def test_the_ends_of_the_noise_are_finite_in_single_precision():
    """PyTorch's generator draws 0, and a sigmoid of float32 reaches 1."""
    layer = of_pairs(scale=30.0).float()
    levels, noise = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    u, log_q = layer(levels, noise)
    assert ((u >= 0) & (u < 1)).all()
    assert log_q.isfinite().all()
    assert log_q.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(levels, noise)[1].dtype == torch.float32


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="levels must be an integer of at least 2, got 1"):
        VariationalDequantization(nn.Identity(), 1)
    for wrong in (torch.rand(2, 3), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(
            ValueError,
            match=r"noise must be floating point of the shape of levels, \(2, 2\), got",
        ):
            of_pairs()(PAIRS[:2], wrong)
    for shape in ((4,), (1, 4, 3)):
        with pytest.raises(ValueError, match="event_shape must be"):
            VariationalDequantization.of_images(shape, 2)
