"""normflows under ``fastgen.accelerate("normflows")``: the same functions, on kernels, until restored."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from tests.interop.parity import check_parity, count_calls, results, shaken
from tests.interop.peers import import_peer

nf = import_peer("normflows")

pytestmark = [
    # normflows' own: how it makes an LU, a remark on networks it cannot scale
    pytest.mark.filterwarnings("ignore:torch.lu is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Inputs to the softmax are not scaled down:UserWarning"),
]
DIRECTIONS = {"forward": lambda layer, x: layer(x), "inverse": lambda layer, x: layer.inverse(x)}
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def coupling(rng: random.Random, scale_map: str):
    kept, changed, size = rng.randint(1, 4), rng.randint(1, 5), rng.randint(1, 4)
    image = rng.random() < 0.5
    shape = (kept, size, size) if image else (kept,)
    network = nn.Conv2d(kept, 2 * changed, 1) if image else nn.Linear(kept, 2 * changed)
    layer = nf.flows.AffineCoupling(network, scale_map=scale_map)
    passive = torch.randn(6, *shape)
    return Passive(layer, passive), torch.randn(6, changed, *shape[1:])


class Passive(nn.Module):
    """A coupling layer as a function of its second half."""

    def __init__(self, layer: nn.Module, passive: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("passive", passive)

    def forward(self, x):
        (_, y), log_det = self.layer([self.passive, x])
        return y, log_det

    def inverse(self, x):
        (_, y), log_det = self.layer.inverse([self.passive, x])
        return y, log_det


def coupling_block(rng: random.Random):
    channels = 2 * rng.randint(1, 3)
    mode = rng.choice(["channel", "channel_inv", "checkerboard", "checkerboard_inv"])
    outputs = 2 * channels if "checkerboard" in mode else channels
    inputs = channels if "checkerboard" in mode else channels // 2
    layer = nf.flows.AffineCouplingBlock(nn.Conv2d(inputs, outputs, 3, padding=1), split_mode=mode)
    return layer, torch.randn(4, channels, 4, 6)


def masked_coupling(rng: random.Random):
    size = rng.randint(1, 8)
    networks = [nf.nets.MLP([size, 8, size]) if rng.random() < 0.7 else None for _ in range(2)]
    return nf.flows.MaskedAffineFlow(torch.randint(0, 2, (size,)).float(), *networks), torch.randn(7, size)


def masked_affine_autoregressive(rng: random.Random):
    features = rng.randint(1, 9)
    layer = nf.flows.MaskedAffineAutoregressive(
        features,
        rng.randint(1, 24),
        num_blocks=rng.randint(1, 3),
        use_residual_blocks=False,
        random_mask=features > 1 and rng.random() < 0.3,
        activation=rng.choice([F.relu, torch.tanh, F.elu, torch.sigmoid, nn.Tanh()]),
        dropout_probability=rng.choice([0.0, 0.5]),
    )
    return layer.eval(), torch.randn(6, features)


def residual_autoregressive(rng: random.Random):
    features = rng.randint(1, 7)
    activation = rng.choice([F.relu, torch.tanh, F.gelu])
    layer = nf.flows.MaskedAffineAutoregressive(features, 16, num_blocks=rng.randint(0, 2), activation=activation)
    return layer, torch.randn(6, features)


def coupled_spline(rng: random.Random):
    tails = rng.choice(["linear", "circular"])
    layer = nf.flows.CoupledRationalQuadraticSpline(
        rng.randint(2, 7),
        1,
        8,
        num_bins=rng.randint(2, 9),
        tails=tails,
        tail_bound=rng.uniform(0.5, 4),
        reverse_mask=rng.random() < 0.5,
    )
    return layer, 2 * torch.randn(9, layer.prqct.features)


def circular_spline(rng: random.Random):
    features = rng.randint(2, 6)
    circular = sorted(rng.sample(range(features), rng.randint(1, features)))
    bound = rng.uniform(1, 4) if rng.random() < 0.5 else torch.rand(features) + 1
    layer = nf.flows.CircularCoupledRationalQuadraticSpline(features, 1, 8, circular, tail_bound=bound)
    return layer, torch.randn(9, features)


def autoregressive_spline(rng: random.Random):
    features = rng.randint(1, 5)
    layer = nf.flows.AutoregressiveRationalQuadraticSpline(features, 1, 8, permute_mask=rng.random() < 0.5)
    return layer, 2 * torch.randn(9, features)


def elementwise_spline(rng: random.Random):
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCDF

    features, tails = rng.randint(1, 5), rng.choice([None, "linear", "circular"])
    layer = PiecewiseRationalQuadraticCDF([features], rng.randint(2, 9), tails=tails, identity_init=False)
    return layer, torch.rand(9, features)


def convolution(rng: random.Random):
    channels = rng.randint(1, 12)
    layer = nf.flows.Invertible1x1Conv(channels, use_lu=rng.random() < 0.8)
    return layer, torch.randn(3, channels, rng.randint(1, 5), rng.randint(1, 5))


def glow_block(rng: random.Random):
    channels = 2 * rng.randint(1, 3)
    layer = nf.flows.GlowBlock(channels, 8, scale_map=rng.choice(["exp", "sigmoid", "sigmoid_inv"]), init_zeros=False)
    for module in layer.modules():
        if isinstance(module, nf.flows.ActNorm):
            module.data_dep_init_done.fill_(1)
    return layer, torch.randn(3, channels, 4, 4)


KINDS = {
    "coupling-exp": lambda rng: coupling(rng, "exp"),
    "coupling-sigmoid": lambda rng: coupling(rng, "sigmoid"),
    "coupling-sigmoid_inv": lambda rng: coupling(rng, "sigmoid_inv"),
    "coupling_block": coupling_block,
    "masked_coupling": masked_coupling,
    "masked_affine_autoregressive": masked_affine_autoregressive,
    "residual_autoregressive": residual_autoregressive,
    "coupled_spline": coupled_spline,
    "circular_spline": circular_spline,
    "autoregressive_spline": autoregressive_spline,
    "elementwise_spline": elementwise_spline,
    "convolution": convolution,
    "glow_block": glow_block,
}


def cases(kind: str, count: int = 5) -> list:
    rng = random.Random(kind)
    torch.manual_seed(rng.randint(0, 10**6))
    made = [KINDS[kind](rng) for _ in range(count)]
    return [(shaken(layer, 0.1 if kind in ("convolution", "glow_block") else 0.3), x) for layer, x in made]


@each_direction
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_as_exact_as_float32_allows(kind, direction):
    check_parity("normflows", cases(kind), DIRECTIONS[direction])


@each_direction
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_the_values_are_as_exact(kind, direction):
    check_parity("normflows", cases(kind), DIRECTIONS[direction], recorded=False)


USED = {
    "coupling-exp": "affine_coupling",
    "coupling-sigmoid": "affine_coupling",
    "coupling-sigmoid_inv": "affine_coupling",
    "coupling_block": "affine_coupling",
    "masked_coupling": "affine_coupling",
    "coupled_spline": "rq_spline",
    "circular_spline": "rq_spline",
    "autoregressive_spline": "rq_spline",
    "elementwise_spline": "rq_spline",
    "glow_block": "affine_coupling",
}


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch):
    monkeypatch.setattr("fastgen.interop.worthwhile.ALWAYS", True)


@pytest.fixture
def calls(monkeypatch):
    """Names of the ops that the acceleration has called."""
    found = count_calls(monkeypatch, "fastgen.interop.normflows", ["affine_coupling", "lu_conv1x1", "rq_spline"])
    return count_calls(monkeypatch, "fastgen.interop.normflows_autoregressive", ["sequential_affine"], found)


@pytest.mark.needs_extension
@each_direction
@pytest.mark.parametrize("kind", USED)
def test_objects_that_exist_run_on_kernels_until_restored(kind, direction, calls):
    made = cases(kind, 6)
    with fastgen.accelerated("normflows"):
        for layer, x in made:
            DIRECTIONS[direction](layer, x)
    assert calls.count(USED[kind]) >= 1
    calls.clear()
    for layer, x in made:
        DIRECTIONS[direction](layer, x)
    assert not calls


@pytest.mark.needs_extension
def test_a_masked_autoregressive_flow_is_inverted_in_one_call(calls):
    layer, x = nf.flows.MaskedAffineAutoregressive(5, 16, use_residual_blocks=False), torch.randn(4, 5)
    with fastgen.accelerated("normflows"):
        layer.inverse(x)
    assert calls == ["sequential_affine"]


@pytest.mark.parametrize(
    ("kind", "direction"), [("residual_autoregressive", "inverse"), ("autoregressive_spline", "forward")]
)
def test_without_gradients_no_autoregressive_network_runs_d_passes(kind, direction, monkeypatch):
    passes = []
    forward = nf.nets.MADE.forward

    def counted(self, *given):
        passes.append(given)
        return forward(self, *given)

    with fastgen.accelerated("normflows"), torch.no_grad():
        monkeypatch.setattr(nf.nets.MADE, "forward", counted)
        for layer, x in cases(kind):
            DIRECTIONS[direction](layer, x)
        monkeypatch.undo()
    assert not passes


@pytest.mark.needs_extension
@pytest.mark.parametrize(("direction", "recorded", "expected"), [("inverse", True, 1), ("forward", False, 1)])
def test_an_lu_convolution_runs_on_the_kernel_where_it_is_faster(direction, recorded, expected, calls):
    layer, x = nf.flows.Invertible1x1Conv(6, use_lu=True), torch.randn(2, 6, 3, 3)
    with fastgen.accelerated("normflows"), torch.set_grad_enabled(recorded):
        DIRECTIONS[direction](layer, x)
    assert len(calls) == expected


@each_direction
@pytest.mark.parametrize("kind", KINDS)
def test_float64_reaches_no_kernel(kind, direction, calls):
    for layer, x in cases(kind, 2):
        layer, x = layer.double(), x.double()
        expected = results(layer, x, DIRECTIONS[direction])
        with fastgen.accelerated("normflows"):
            found = results(layer, x, DIRECTIONS[direction])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not calls


def test_a_whole_flow_has_the_same_log_prob_and_samples():
    torch.manual_seed(0)
    flows = [nf.flows.CoupledRationalQuadraticSpline(4, 1, 8), nf.flows.LULinearPermute(4)]
    flows += [nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0, 1, 0]), nf.nets.MLP([4, 8, 4]), nf.nets.MLP([4, 8, 4]))]
    model = shaken(nf.NormalizingFlow(nf.distributions.DiagGaussian(4), flows), 0.1)
    x = torch.randn(50, 4)

    def found():
        torch.manual_seed(1)
        return model.log_prob(x), *model.sample(50)

    expected = found()
    with fastgen.accelerated("normflows"):
        for mine, theirs in zip(found(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.needs_extension
@pytest.mark.parametrize(("count", "expected"), [(2**15, 1), (4, 0)])
def test_only_what_is_large_enough_to_gain_runs_on_the_coupling_kernel(count, expected, calls, monkeypatch):
    monkeypatch.setattr("fastgen.interop.worthwhile.ALWAYS", False)
    layer, x = nf.flows.AffineCoupling(nn.Linear(1, 16)), torch.randn(count, 8)
    with fastgen.accelerated("normflows"):
        layer([x[:, :1], x])
    assert len(calls) == expected
